"""Models: a trunk and a head together."""

from ._model import BatchedPredict as BatchedPredict
from ._model import CachedPredict as CachedPredict
from ._model import ElasticModel as ElasticModel
