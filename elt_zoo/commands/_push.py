import dataclasses
from pathlib import Path

from ..generator import push


@dataclasses.dataclass(frozen=True, kw_only=True)
class PushOptions:
    """Upload a saved model to the Hugging Face hub, to be loaded by its address. Log in first: `hf auth login`."""

    model: Path
    """A folder that `elt_zoo.save` or a training wrote."""
    to: str
    """The address: hf://owner/name, or hf://owner/name@branch."""
    private: bool = False
    """Only you may see a repository that is created."""
    overwrite: bool = False
    """Put the model in place of one that is there; earlier commits stay on the hub."""
    message: str | None = None
    """Of the commit."""


def push_model(options: PushOptions) -> None:
    """`elt-zoo push`."""
    address = push(
        options.model, options.to, private=options.private, overwrite=options.overwrite, message=options.message
    )
    print(f'Pushed. Load it with `elt_zoo.load("{address}")`, or sample it with `elt-zoo sample --model {address}`.')
