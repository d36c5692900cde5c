import dataclasses
import os
import sys
from pathlib import Path

from ..anytime import load_planner
from ..demo import Studio, make_page, serve
from ..generator import load
from ..tokenizers import load_tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Play with a saved model in the browser: sliders for loops and steps, and views of what the loops do."""

    model: str = "digits-dit"
    """A folder that `elt_zoo.save` wrote, a bundled model, or one on the hub, hf://owner/name@revision."""
    tokenizer: Path | None = None
    """The folder of the tokenizer or autoencoder, where the model was saved without."""
    samples: int = 4
    """Samples at a time."""
    measurements: Path | None = None
    """A file of `elt-zoo plan --measurements`, so that the page need not measure the machine for its plans."""
    host: str = "127.0.0.1"
    """Who can open the page: 127.0.0.1 this machine alone, 0.0.0.0 everyone who can reach it."""
    port: int | None = None
    """Default the first free one from 7860 on."""
    share: bool = False
    """Also give the page a public address, through Gradio's servers."""

    def __post_init__(self):
        if self.samples < 1:
            raise ValueError(f"`--samples {self.samples}` must be at least 1.")
        if self.port is not None and not 1 <= self.port <= 65_535:
            raise ValueError(f"`--port {self.port}` must be from 1 to 65535.")


def demo(options: DemoOptions) -> None:
    """`elt-zoo demo`."""
    generator = load(options.model)
    if options.tokenizer is not None:
        generator = dataclasses.replace(generator, tokenizer=load_tokenizer(options.tokenizer))
    if options.measurements is not None:
        generator = dataclasses.replace(generator, planner=load_planner(options.measurements, generator))
    studio = Studio(generator, count=options.samples)
    page = make_page(studio, name=options.model)
    print("Compiling ...", flush=True)
    studio.prepare()
    print(
        f"Open {serve(page, host=options.host, port=options.port, share=options.share)} (Ctrl-C stops it).", flush=True
    )
    studio.warm_up()
    page.block_thread()  # until Ctrl-C
    # Threads of the page may be inside a compiled program, which Python cannot end in order: it would abort.
    sys.stdout.flush()
    os._exit(0)
