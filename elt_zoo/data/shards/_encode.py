from collections.abc import Callable, Sequence
from typing import Any, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from .._batches import Clips, Images
from .._convert import to_pixels


class Encoder(Protocol):
    """A pytree that encodes one example of pixels in [−1, 1] into ids below its `codebook_size`, or into mean and
    log-variance. Every tokenizer of the library is one.
    """

    @property
    def encode(self) -> Callable[..., Any]:
        """Encodes one example."""
        ...


class ViewEncoder:
    """Encodes the views of several examples as one batch of a fixed size, and packs the results into records."""

    def __init__(
        self,
        tokenizer: Encoder,
        example: Images | Clips,
        *,
        batch_size: int,
        dtype: DTypeLike,
        put: Callable[[Any], Any],
    ):
        """**Arguments:** `tokenizer`; `example`: one example with its views in the first axis, for the shapes;
        `batch_size`: examples at once; `dtype`: of latents; `put`: puts a batch on the devices.

        **Raises:** `TypeError` if the tokenizer gives neither ids nor mean and log-variance.
        """
        self.batch_size = batch_size
        self._tokenizer = tokenizer
        self._put = put
        self._views = len(values_of(example))
        outputs = eqx.filter_eval_shape(_encode, tokenizer, self._batch([example]))
        self.codebook_size: int | None = getattr(tokenizer, "codebook_size", None)
        match outputs:
            case jax.ShapeDtypeStruct() as ids if jnp.issubdtype(ids.dtype, jnp.integer) and self.codebook_size:
                self._names = ("ids",)
                dtype, shapes = "<u2" if self.codebook_size <= 2**16 else "<u4", [ids.shape]
            case (jax.ShapeDtypeStruct() as mean, jax.ShapeDtypeStruct() as log_variance):
                self._names = ("mean", "log_variance")
                self.codebook_size = None
                dtype, shapes = np.dtype(dtype).newbyteorder("<").str, [mean.shape, log_variance.shape]
            case _:
                raise TypeError(
                    f"`precompute` got a {type(tokenizer).__name__} whose `encode` gives {outputs}. It must give ids, "
                    "and have a `codebook_size`, or give mean and log-variance."
                )
        self.fields = {
            name: (dtype, (self._views, *shape[1:])) for name, shape in zip(self._names, shapes, strict=True)
        }

    def start(self, examples: Sequence[Images | Clips]) -> Any:
        """Starts to encode at most `batch_size` examples, and does not wait for the result."""
        if not examples:
            return ()
        outputs = _jit_encode(self._tokenizer, self._put(self._batch(examples)))
        return outputs if isinstance(outputs, tuple) else (outputs,)

    def finish(self, outputs: Any, labels: Sequence[int], record: np.dtype) -> list[bytes]:
        """Waits for a batch. **Returns:** a record for each label, of which there may be none.

        **Raises:** `ValueError` for latents that are not finite or too large for their dtype.
        """
        if not labels:
            return []
        records = np.zeros(len(labels), record)
        records["label"] = labels
        for name, output in zip(self._names, outputs, strict=True):
            values = np.asarray(output).reshape(self.batch_size, self._views, *output.shape[1:])[: len(labels)]
            largest = np.abs(values).max()
            dtype = record[name].base
            if dtype.kind == "f" and not largest <= np.finfo(dtype).max:
                raise ValueError(
                    f"The tokenizer gave a {name} of {largest}, which {dtype.name} cannot hold. Encode in float32, and "
                    "if it still happens call `precompute(dtype=np.float32)`."
                )
            records[name] = values
        return [row.tobytes() for row in records]

    def _batch(self, examples: Sequence[Images | Clips]) -> Images | Clips:
        """Stacks the views of all examples, and repeats the first example up to the batch size, so that one compiled
        program serves all batches.
        """
        padded = [*examples, *[examples[0]] * (self.batch_size - len(examples))]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *padded)


def values_of(example: Images | Clips) -> Any:
    """Returns the bytes of images or clips."""
    return example.images if isinstance(example, Images) else example.clips


def _encode(tokenizer: Encoder, batch: Images | Clips) -> Any:
    return jax.vmap(tokenizer.encode)(to_pixels(batch).examples)


_jit_encode = eqx.filter_jit(_encode)
