"""Data: sources and pipelines on Grain. This room knows nothing of models."""

from ._arrays import ArraySource as ArraySource
from ._arrays import Batch as Batch
from ._arrays import from_pixels as from_pixels
from ._arrays import sample_latents as sample_latents
from ._arrays import to_pixels as to_pixels
from ._arrays import to_tokens as to_tokens
from ._batches import Clips as Clips
from ._batches import Images as Images
from ._batches import Latents as Latents
from ._batches import Tokens as Tokens
from ._decode import decode_image as decode_image
from ._digits import DIGIT_LEVELS as DIGIT_LEVELS
from ._digits import Digits as Digits
from ._digits import digits_to_pixels as digits_to_pixels
from ._digits import load_digits as load_digits
from ._digits import pixels_to_digits as pixels_to_digits
from ._pipeline import training_batches as training_batches
from ._source import AbstractSource as AbstractSource
from ._source import DataError as DataError
from ._source import UnreadableExample as UnreadableExample
from ._source import UnreadableLog as UnreadableLog
from ._source import Visit as Visit
from ._transform import ImageTransform as ImageTransform
