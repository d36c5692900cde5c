"""Operations and memory of a traced program, counted equation by equation."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jaxtyping import PyTree

_ELEMENTWISE = frozenset(
    {"abs", "add", "and", "ceil", "clamp", "div", "eq", "floor", "ge", "gt", "le", "lt", "max", "min", "mul", "ne"}
    | {"neg", "not", "or", "rem", "round", "select_n", "sign", "square", "sub", "xor"}
)
_BRANCHES_AND_LOOPS = frozenset({"cond", "while", "scan"})
_REDUCTIONS = frozenset({"reduce_sum", "reduce_max", "reduce_min", "reduce_and", "reduce_or"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
    """What one part of a model costs for one example. `3 * costs` is the part applied three times in a row.

    **Fields:**

    - `macs`: multiply-accumulates of the matrix products.
    - `elementwise`: floating-point operations beside the matrix products, without exponentials and the like.
    - `saved_bytes`: memory of the arrays that the backward pass needs.
    - `product_bytes`: memory of the results of the matrix products.
    - `workspace_bytes`: memory of the operands and results of the largest single operation, without parameters.
    """

    macs: int = 0
    elementwise: int = 0
    saved_bytes: int = 0
    product_bytes: int = 0
    workspace_bytes: int = 0

    def __rmul__(self, times: int) -> "Costs":
        # Applications in a row take turns in one workspace.
        return Costs(
            macs=times * self.macs,
            elementwise=times * self.elementwise,
            saved_bytes=times * self.saved_bytes,
            product_bytes=times * self.product_bytes,
            workspace_bytes=self.workspace_bytes,
        )


def costs_of(function: Callable[[Any, Any], PyTree], module: PyTree, inputs: PyTree) -> Costs:
    """The costs of `function(module, inputs)`, traced with shapes only."""
    forward = jax.make_jaxpr(function)(module, inputs).jaxpr
    parameters = set(forward.invars[: len(jax.tree.leaves(module))])

    def residuals(module, inputs):
        arrays, rest = eqx.partition((module, inputs), eqx.is_inexact_array)
        return jax.tree.leaves(jax.vjp(lambda arrays: function(*eqx.combine(arrays, rest)), arrays)[1])

    backward = jax.make_jaxpr(residuals)(module, inputs).jaxpr
    # What is an argument already, above all a weight, is not saved a second time. A constant, such as a table of
    # angles, is in memory once for all examples and layers.
    saved = {var for var in backward.outvars if not isinstance(var, Literal)}
    saved &= _computed(backward, set(backward.invars)) - set(backward.invars)
    return Costs(
        macs=macs(forward),
        elementwise=elementwise(forward),
        saved_bytes=sum(aval_bytes(var.aval) for var in saved),
        product_bytes=product_bytes(forward),
        workspace_bytes=workspace(forward, parameters),
    )


def _computed(jaxpr: Jaxpr, arguments: set) -> set:
    """The variables of a program that depend on these of its arguments, which are among them."""
    known = set(arguments)
    for equation in jaxpr.eqns:
        depends = [not isinstance(var, Literal) and var in known for var in equation.invars]
        if not any(depends):
            continue
        results, inner = list(equation.outvars), _inner(equation)
        if len(inner) == 1 and equation.primitive.name not in _BRANCHES_AND_LOOPS:
            # A call: what it returns may be a constant all the same.
            (call,) = inner
            if (len(call.invars), len(call.outvars)) == (len(depends), len(results)):
                inside = _computed(call, {var for var, given in zip(call.invars, depends, strict=True) if given})
                pairs = zip(results, call.outvars, strict=True)
                results = [var for var, within in pairs if not isinstance(within, Literal) and within in inside]
        known.update(results)
    return known


def macs(jaxpr: Jaxpr) -> int:
    """Multiply-accumulates of all matrix products of a program."""

    def of(equation: Any) -> int:
        if equation.primitive.name != "dot_general":
            return 0
        (contracted, _), _ = equation.params["dimension_numbers"]
        contracted_sizes = [equation.invars[0].aval.shape[axis] for axis in contracted]
        return math.prod(equation.outvars[0].aval.shape) * math.prod(contracted_sizes)

    return _total(of, jaxpr)


def product_bytes(jaxpr: Jaxpr) -> int:
    """Memory of the results of all matrix products of a program."""

    def of(equation: Any) -> int:
        return aval_bytes(equation.outvars[0].aval) if equation.primitive.name == "dot_general" else 0

    return _total(of, jaxpr)


def elementwise(jaxpr: Jaxpr) -> int:
    """Floating-point operations of a program beside its matrix products, as XLA counts them: one per result of an
    elementwise operation, one per entry of a reduction, none for exponentials and the like.
    """

    def of(equation: Any) -> int:
        name = equation.primitive.name
        if name in _REDUCTIONS:
            return math.prod(equation.invars[0].aval.shape)
        results = math.prod(equation.outvars[0].aval.shape)
        if name == "integer_pow":
            return results * (abs(equation.params["y"]) - 1)
        return results if name in _ELEMENTWISE else 0

    return _total(of, jaxpr)


def _total(count: Callable[[Any], int], jaxpr: Jaxpr) -> int:
    """Sums a count over the equations of a program: a scan's body as often as it runs, and the costliest branch of a
    `cond`.
    """
    total = 0
    for equation in jaxpr.eqns:
        inner = [_total(count, sub) for sub in _inner(equation)]
        if not inner:
            total += count(equation)
        elif equation.primitive.name == "cond":
            total += max(inner)
        else:
            total += sum(inner) * equation.params.get("length", 1)
    return total


def workspace(jaxpr: Jaxpr, parameters: set) -> int:
    """Bytes of the operands and results of the largest single operation of a program.

    **Arguments:** `jaxpr`: the program; `parameters`: those of its variables that hold parameters, which are not
    counted: they are in memory all the time.
    """
    largest = 0
    for equation in jaxpr.eqns:
        arrays = {var for var in (*equation.invars, *equation.outvars) if not isinstance(var, Literal)}
        size = sum(aval_bytes(var.aval) for var in arrays - parameters)
        for inner in _inner(equation):
            # Find the parameters among the inner program's variables. Its inputs are the last inputs of the equation,
            # in the same order, so pair them from the end: a `cond` has its index in front of them, a `while` what its
            # condition reads, a call and a scan nothing.
            pairs = zip(reversed(inner.invars), reversed(equation.invars), strict=False)
            inside = {within for within, given in pairs if not isinstance(given, Literal) and given in parameters}
            size = max(size, workspace(inner, inside))
        largest = max(largest, size)
    return largest


def _inner(equation: Any) -> list[Jaxpr]:
    """The programs inside an equation: the body of a scan or a call, the branches of a `cond`. A kernel has none: what
    it does with blocks stays on the chip.
    """
    found = []
    if equation.primitive.name == "pallas_call":
        return found
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, Jaxpr):
                found.append(item)
    return found


def aval_bytes(aval: Any) -> int:
    return math.prod(aval.shape) * aval.dtype.itemsize
