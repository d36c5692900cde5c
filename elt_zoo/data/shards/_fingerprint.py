import dataclasses
import hashlib

import jax
import numpy as np
from jaxtyping import PyTree


def fingerprint(tokenizer: PyTree) -> str:
    """Tells tokenizers apart: SHA-256 over the type, its own static fields and the path, dtype, shape and bytes of
    every array.

    **Arguments:** `tokenizer`: a module. **Returns:** 64 hexadecimal digits, the same in every process.
    """
    digest = hashlib.sha256(type(tokenizer).__qualname__.encode())
    for field in dataclasses.fields(tokenizer) if dataclasses.is_dataclass(tokenizer) else ():
        if field.metadata.get("static", False):
            digest.update(f"{field.name}={getattr(tokenizer, field.name)!r};".encode())
    leaves, _ = jax.tree.flatten_with_path(tokenizer)
    for path, leaf in leaves:
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)}:{array.dtype}{array.shape};".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
