import enum
from collections.abc import Callable

import equinox as eqx
import jax

from ..nn import save_fused_attention

_PRODUCTS = jax.checkpoint_policies.save_from_both_policies(jax.checkpoint_policies.dots_saveable, save_fused_attention)


class Remat(enum.StrEnum):
    """What the backward pass recomputes instead of storing. Values and gradients do not depend on it.

    | kind | stored | recomputed |
    |---|---|---|
    | `AUTO` | as `ELEMENTWISE` where loops are scanned, as `NONE` in a single loop or unrolled ones | the same |
    | `NONE` | every activation | nothing |
    | `ELEMENTWISE` | results of matrix products and fused attention | what lies between: norms, softmax, activations |
    | `LAYER` | the state before every layer | one layer at a time |
    | `LOOP` | the state before every loop | one loop at a time |

    `ELEMENTWISE` repeats no matrix product, and is usually faster than `NONE` on a CPU, where writing the activations
    of all loops to memory takes longer than computing them again (`benchmarks/training.py`). `LAYER` and `LOOP` repeat
    the whole forward pass. `LOOP` stores fewer states, but holds all activations of the loop that it recomputes; with a
    single loop it therefore saves nothing.

    The kinds that recompute need a loop to work in. The trunk scans the loops even with `unroll_loops`, and for `LAYER`
    and `ELEMENTWISE` scans the layers of a call with a single loop. A model of one layer in one loop has nothing to
    recompute piece by piece, and saves nothing.
    """

    AUTO = "auto"
    NONE = "none"
    ELEMENTWISE = "elementwise"
    LOOP = "loop"
    LAYER = "layer"

    def resolve(self, loops: int | None, *, unrolled: bool) -> "Remat":
        """The kind that a call uses.

        **Arguments:** `loops`: of the call, `None` where their number is not static, which has no backward pass;
        `unrolled`: whether the trunk is asked to unroll its loops.
        """
        if self != Remat.AUTO:
            return self
        return Remat.NONE if unrolled or loops is None or loops == 1 else Remat.ELEMENTWISE


def recompute(function: Callable, *, in_loop: bool, store_products: bool = False) -> Callable:
    """A function whose activations the backward pass recomputes; `store_products` spares matrix products and fused
    attention.

    **Arguments:** `in_loop`: whether the function runs inside a scan of at least two steps.
    """
    # Forward and backward pass of a scan are two separate loops. In straight-line code XLA merges the recomputation
    # with the forward pass and stores the activations after all; `prevent_cse` puts a barrier between them, which
    # accelerators respect and CPUs ignore (jaxlib 0.10). Inside a scan the barrier would only hinder fusion.
    return eqx.filter_checkpoint(function, prevent_cse=not in_loop, policy=_PRODUCTS if store_products else None)
