import dataclasses

from jaxtyping import PyTree

from ...storage import hash_arrays


def fingerprint(tokenizer: PyTree) -> str:
    """Identifies a tokenizer by its type, its own static fields and its arrays.

    **Arguments:** `tokenizer`: a module. **Returns:** 64 hexadecimal digits, the same in every process.
    """
    fields = dataclasses.fields(tokenizer) if dataclasses.is_dataclass(tokenizer) else ()
    static = {field.name: repr(getattr(tokenizer, field.name)) for field in fields if field.metadata.get("static")}
    return hash_arrays(tokenizer, {"type": type(tokenizer).__qualname__, "static": static})
