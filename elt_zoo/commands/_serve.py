import dataclasses
import math
from pathlib import Path

from ..anytime import load_planner, make_planner
from ..generator import Generator, load
from ..recipes import DIGITS
from ..serve import Server, bind, make_service
from ..storage import require_writable
from ..tokenizers import load_tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Sample a saved model over HTTP: requests with a deadline are sampled together, as well as the time allows."""

    model: str = "digits-dit"
    """A folder that `elt_zoo.save` wrote, a bundled model, or one on the hub, hf://owner/name@revision."""
    tokenizer: Path | None = None
    """The folder of the tokenizer or autoencoder, where the model was saved without."""
    measurements: Path | None = None
    """A JSON file of `elt-zoo plan --measurements`, for requests with a deadline. If it is not there, a model of digits
    is measured and it is written."""
    batches: tuple[int, ...] = (1, 4, 16)
    """Sizes that batches are padded to; the largest is the most labels of a request."""
    queue: int = 64
    """Requests that may wait; more are refused."""
    patience: float = 1.0
    """Seconds after which it is the turn of a request without a deadline, though others are more urgent."""
    host: str = "127.0.0.1"
    """Who can send requests: 127.0.0.1 this machine alone, 0.0.0.0 everyone who can reach it."""
    port: int = 8000
    """0 is any that is free."""

    def __post_init__(self):
        if not self.batches or min(self.batches) < 1:
            raise ValueError(f"`--batches {' '.join(map(str, self.batches))}` must be sizes of at least 1.")
        if self.queue < 1:
            raise ValueError(f"`--queue {self.queue}` must be at least 1.")
        if not 0 < self.patience < math.inf:
            raise ValueError(f"`--patience {self.patience}` must be a positive number of seconds.")
        if not 0 <= self.port <= 65_535:
            raise ValueError(f"`--port {self.port}` must be from 0 to 65535.")


def serve(options: ServeOptions) -> None:
    """`elt-zoo serve`."""
    with bind(options.host, options.port) as listener:  # refuses a port that is taken before anything takes long
        generator = load(options.model)
        if options.tokenizer is not None:
            generator = dataclasses.replace(generator, tokenizer=load_tokenizer(options.tokenizer))
        generator = _planned(options, generator)
        print("Compiling and timing ...", flush=True)
        service = make_service(generator, batches=options.batches, queue=options.queue, patience=options.patience)
        server = Server(service, name=options.model, listener=listener)
        print(f"Ready at {server.address} (Ctrl-C or SIGTERM finishes what waits, and stops).", flush=True)
        try:
            server.wait()
        except KeyboardInterrupt:  # SIGTERM is one to commands
            print("Finishing what waits ...", flush=True)
            server.drain()


def _planned(options: ServeOptions, generator: Generator) -> Generator:
    """The generator with a planner, if it can have one."""
    file = options.measurements
    if file is not None and file.exists():
        return dataclasses.replace(generator, planner=load_planner(file, generator))
    if generator.metadata.get("data") != DIGITS:
        if file is not None:
            raise FileNotFoundError(f"{file} is not there: `elt-zoo plan --measurements {file}` writes it.")
        print("There are no measurements: requests cannot have deadlines.", flush=True)
        return generator
    if file is not None:
        require_writable(file)
    print("Measuring what loops and steps are worth, for about a minute ...", flush=True)
    planner = make_planner(generator)
    if file is not None:
        planner.save(file)
    return dataclasses.replace(generator, planner=planner)
