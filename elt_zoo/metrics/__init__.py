"""Metrics: Fréchet distances, features to take them in, and the quality of generated digits."""

from ._digits import DigitsEvaluator as DigitsEvaluator
from ._digits import DigitsQuality as DigitsQuality
from ._frechet import GaussianStatistics as GaussianStatistics
from ._frechet import frechet_distance as frechet_distance
from ._i3d import I3D as I3D
from ._i3d import I3DFeatures as I3DFeatures
from ._i3d import i3d_names as i3d_names
from ._i3d import resize_video as resize_video
from ._inception import InceptionFeatures as InceptionFeatures
from ._inception import InceptionV3 as InceptionV3
from ._inception import inception_names as inception_names
from ._load import load_i3d as load_i3d
from ._load import load_inception as load_inception
