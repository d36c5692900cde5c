"""Commands: `elt-zoo train`, `sample`, `evaluate` and the others. They parse, call the rooms below, and print."""

from ._convert import ConvertOptions as ConvertOptions
from ._convert import convert as convert
from ._demo import DemoOptions as DemoOptions
from ._demo import demo as demo
from ._evaluate import EvaluateOptions as EvaluateOptions
from ._evaluate import evaluate as evaluate
from ._fetch import FetchOptions as FetchOptions
from ._fetch import fetch as fetch
from ._main import COMMANDS as COMMANDS
from ._main import main as main
from ._main import run as run
from ._plan import PlanOptions as PlanOptions
from ._plan import plan as plan
from ._precompute import PrecomputeOptions as PrecomputeOptions
from ._precompute import precompute as precompute
from ._profile import ProfileOptions as ProfileOptions
from ._profile import profile as profile
from ._push import PushOptions as PushOptions
from ._push import push_model as push_model
from ._sample import SampleOptions as SampleOptions
from ._sample import sample as sample
from ._train import TrainOptions as TrainOptions
from ._train import train as train
from ._train_tokenizer import TrainTokenizerOptions as TrainTokenizerOptions
from ._train_tokenizer import tokenizer_for_moving_digits as tokenizer_for_moving_digits
from ._train_tokenizer import train_tokenizer as train_tokenizer
