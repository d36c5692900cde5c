"""Metrics: Fréchet distances, and the quality of generated digits."""

from ._digits import DigitsEvaluator as DigitsEvaluator
from ._digits import DigitsQuality as DigitsQuality
from ._frechet import GaussianStatistics as GaussianStatistics
from ._frechet import frechet_distance as frechet_distance
