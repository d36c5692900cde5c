import contextlib
import gc
import io
import re
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from .._version import __version__
from ..data import DataError
from ..distributed import ProcessFailed, leave, lost_process
from ..storage import FolderLocked, WeightsError
from ..training import CheckpointError, TrainingDiverged
from ._convert import ConvertOptions, convert
from ._demo import DemoOptions, demo
from ._evaluate import EvaluateOptions, evaluate
from ._fetch import FetchOptions, fetch
from ._plan import PlanOptions, plan
from ._precompute import PrecomputeOptions, precompute
from ._profile import ProfileOptions, profile
from ._programs import keep_programs
from ._push import PushOptions, push_model
from ._sample import SampleOptions, sample
from ._serve import ServeOptions, serve
from ._train import TrainOptions, train
from ._train_tokenizer import TrainTokenizerOptions, train_tokenizer

_WRONG_USE = (ValueError, TypeError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)
_FAILED = (
    DataError,
    WeightsError,
    FolderLocked,
    CheckpointError,
    TrainingDiverged,
    ProcessFailed,
    ImportError,
    OSError,
)


class Command(NamedTuple):
    """What a word after `elt-zoo` does."""

    options: type
    """A dataclass, whose fields are the command's options."""
    function: Callable[[Any], None]
    summary: str


COMMANDS: Mapping[str, Command] = {
    "train": Command(TrainOptions, train, "train an elastic model and measure every exit"),
    "sample": Command(SampleOptions, sample, "sample a saved model at any number of loops"),
    "demo": Command(DemoOptions, demo, "play with a saved model in the browser"),
    "serve": Command(ServeOptions, serve, "sample a saved model over HTTP, each request in its time"),
    "evaluate": Command(EvaluateOptions, evaluate, "measure a saved model over loops, steps and guidance"),
    "plan": Command(PlanOptions, plan, "find the best steps and loops for any time on this machine"),
    "profile": Command(ProfileOptions, profile, "count what a model costs before it is built"),
    "fetch": Command(FetchOptions, fetch, "download CIFAR-10 or MNIST, to name them as data"),
    "precompute": Command(PrecomputeOptions, precompute, "encode a data set once, into shards"),
    "train-tokenizer": Command(TrainTokenizerOptions, train_tokenizer, "train a tokenizer with a learned codebook"),
    "convert": Command(ConvertOptions, convert, "convert published weights, optionally into a looped model"),
    "push": Command(PushOptions, push_model, "upload a saved model to the Hugging Face hub"),
}
"""The commands by name."""


def main(arguments: Sequence[str] | None = None) -> None:
    """`elt-zoo COMMAND …`: runs a command; without one, or with `--help`, lists them.

    Exits with 2 for wrong use, 1 for what went wrong on the way, 130 for an interruption.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print("usage: elt-zoo COMMAND [OPTIONS]\n")
        print("\n".join(f"  {word:<{width}}  {command.summary}" for word, command in COMMANDS.items()))
        print("\n`elt-zoo COMMAND --help` lists the options of a command.")
        return
    if name == "--version":
        print(__version__)
        return
    if name not in COMMANDS:
        print(f"error: there is no command {name!r}; there are {', '.join(COMMANDS)}.", file=sys.stderr)
        raise SystemExit(2)
    command = COMMANDS[name]
    run(command.function, command.options, prog=f"elt-zoo {name}", arguments=arguments[1:])


def run(
    function: Callable[[Any], None],
    options: type,
    *,
    description: str | None = None,
    prog: str | None = None,
    arguments: Sequence[str] | None = None,
) -> None:
    """Parses the fields of a dataclass from a command line, calls a function with it, and says errors in one line.

    Compiled programs are kept for the next command in `~/.cache/elt_zoo`, at most 1 GiB. JAX's settings come first:
    `JAX_COMPILATION_CACHE_DIR` names another folder, `JAX_ENABLE_COMPILATION_CACHE=false` keeps none.

    **Arguments:** `function`: what to do; `options`: the dataclass; `description`, `prog`: for the help, default the
    dataclass's docstring and the script's name; `arguments`: default those of the process.
    """
    try:
        # A cluster's SIGTERM is a keyboard's Ctrl-C.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        keep_programs()
        # What was imported stays to the end. Tracing makes many objects, and each collection would look at it again.
        gc.freeze()
        function(_parsed(options, description=description, prog=prog, arguments=arguments))
    except Exception as error:
        lost = lost_process(error)
        if lost is not None:
            raise _stop(f"error: {lost}", 1, lost=True) from None
        if not isinstance(error, (*_WRONG_USE, *_FAILED)):
            if jax.distributed.is_initialized():
                traceback.print_exc()
                leave(1)
            raise
        raise _stop(f"error: {_one_line(str(error))}", 2 if isinstance(error, _WRONG_USE) else 1) from None
    except KeyboardInterrupt as error:
        # A third Ctrl-C has nothing left to interrupt.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        said = str(error) or "Interrupted. What was saved is kept; the same command goes on from there."
        raise _stop(f"\n{_one_line(said)}", 130) from None


def _parsed(options: type, *, description: str | None, prog: str | None, arguments: Sequence[str] | None) -> Any:
    """The options that a command line gives. What is wrong with them is said in one line."""
    import tyro  # late, as it is slow to import

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            by_value = (tyro.conf.EnumChoicesFromValues,)
            return tyro.cli(options, description=description, prog=prog, args=arguments, config=by_value)
    except SystemExit as stop:
        if not stop.code:
            raise
        # It is framed, under a title and above a rule.
        lines = [line.strip(" │|") for line in said.getvalue().splitlines()]
        text = " ".join(line for line in lines[1:] if line.strip("╭╮╰╯─-"))
        raise _stop(f"error: {re.sub(r'^Error parsing [^:]*: ', '', text)}", 2) from None


def _one_line(message: str) -> str:
    first, *others = (line.strip() for line in message.splitlines() or [""])
    return " ".join([first, "; ".join(others)]).strip()


def _stop(message: str, code: int, *, lost: bool = False) -> SystemExit:
    print(message, file=sys.stderr)
    leave(code, lost=lost)
    return SystemExit(code)
