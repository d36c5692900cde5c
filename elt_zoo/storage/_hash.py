import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from ._assemble import named_arrays
from ._tensor_file import bytes_of


def hash_arrays(tree: PyTree, description: Mapping[str, Any] | None = None) -> str:
    """SHA-256 of the arrays of a tree: their attribute paths, dtypes, shapes and bytes. It is the same in every
    process, for every order of the leaves, and wherever the arrays were read from.

    **Arguments:**

    - `tree`: a module, or any tree of arrays on this host or its devices. What is not an array does not count.
    - `description`: what else tells it from others, of JSON's types; its order does not count.

    **Returns:** 64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    if description is not None:
        digest.update(json.dumps(description, sort_keys=True).encode())
    for name, leaf in sorted(named_arrays(tree).items()):
        is_key = jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        digest.update(f"\0{name}\0{leaf.dtype}\0{array.shape}\0".encode())
        digest.update(bytes_of(np.ascontiguousarray(array)))
    return digest.hexdigest()
