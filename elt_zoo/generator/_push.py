import os
from pathlib import Path

from .._optional import optional_import
from ..storage import CONFIG, WEIGHTS
from ._card import CARD, card_by_hand, model_card
from ._files import load
from ._hub import Address, first_line


def push(
    folder: str | os.PathLike,
    address: str,
    *,
    private: bool = False,
    overwrite: bool = False,
    message: str | None = None,
) -> str:
    """Uploads a saved model to the Hugging Face hub, for everybody to `load("hf://owner/name")`.

    The folder is read first, so that a damaged model is refused. Its `model.safetensors`, `config.json` and `README.md`
    become one commit; earlier commits stay on the hub. Log in with `hf auth login`, or set `HF_TOKEN`.

    **Arguments:**

    - `folder`: what [`save`][elt_zoo.save] wrote.
    - `address`: `hf://owner/name`, created if it is new; with `@branch` to write to a branch.
    - `private`: only you may see a repository that is created.
    - `overwrite`: put the model in place of one that is there.
    - `message`: of the commit.

    **Returns:** the address of that commit, `hf://owner/name@commit`.

    **Raises:** `ValueError` for a wrong address; `FileNotFoundError` if the folder holds no model; `FileExistsError` if
    the repository does, without `overwrite`; `ImportError` without the extra `hub`;
    [`WeightsError`][elt_zoo.storage.WeightsError] for a damaged model; `OSError` in one line for what the hub refuses.
    """
    where = Address.parse(address)
    hub = optional_import("huggingface_hub", extra="hub")
    folder = Path(folder)
    generator = load(folder)
    api = hub.HfApi()
    try:
        api.create_repo(where.repository, private=private, exist_ok=True)
        if where.revision is not None:
            api.create_branch(where.repository, branch=where.revision, exist_ok=True)
        if not overwrite and api.file_exists(where.repository, WEIGHTS, revision=where.revision):
            raise FileExistsError(f"{address} holds a model already. Choose another name, or pass `overwrite=True`.")
        card = card_by_hand(folder) or model_card(generator, address=address)
        files = {WEIGHTS: folder / WEIGHTS, CONFIG: folder / CONFIG, CARD: card.encode()}
        commit = api.create_commit(
            where.repository,
            [hub.CommitOperationAdd(name, content) for name, content in files.items()],
            commit_message=message or f"Add a {generator.config.family} model with elt_zoo",
            revision=where.revision,
        )
    except FileExistsError:
        raise
    except Exception as error:  # As above.
        raise OSError(f"The hub did not take {address}: {first_line(error)}") from error
    return str(Address(where.repository, commit.oid))
