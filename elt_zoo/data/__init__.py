"""Data: sources and pipelines on Grain. This room knows nothing of models."""

from ._digits import DIGIT_LEVELS as DIGIT_LEVELS
from ._digits import Digits as Digits
from ._digits import digits_to_pixels as digits_to_pixels
from ._digits import load_digits as load_digits
from ._digits import pixels_to_digits as pixels_to_digits
from ._pipeline import ArraySource as ArraySource
from ._pipeline import Batch as Batch
from ._pipeline import training_batches as training_batches
