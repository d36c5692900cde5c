"""Operations and memory of a traced program, counted equation by equation."""

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
_REDUCTIONS = frozenset({"reduce_sum", "reduce_max", "reduce_min", "reduce_and", "reduce_or"})


class Costs:
    """The costs of one function of a module and its inputs, all of them given by shape."""

    def __init__(self, function: Callable[[Any, Any], PyTree], module: PyTree, inputs: PyTree):
        forward = jax.make_jaxpr(function)(module, inputs)
        self.macs = macs(forward.jaxpr)
        self.elementwise = elementwise(forward.jaxpr)
        self.workspace_bytes = workspace(forward.jaxpr, set(forward.jaxpr.invars[: len(jax.tree.leaves(module))]))

        def residuals(module, inputs):
            arrays, rest = eqx.partition((module, inputs), eqx.is_inexact_array)
            return jax.tree.leaves(jax.vjp(lambda arrays: function(*eqx.combine(arrays, rest)), arrays)[1])

        backward = jax.make_jaxpr(residuals)(module, inputs).jaxpr
        # What is an argument already, above all a weight, is not saved a second time.
        saved = {var for var in backward.outvars if not isinstance(var, Literal)} - set(backward.invars)
        self.saved_bytes = sum(aval_bytes(var.aval) for var in saved)


def macs(jaxpr: Jaxpr) -> int:
    """Multiply-accumulates of all matrix products of a program, a scan's body as often as it runs."""

    def of(equation: Any) -> int:
        if equation.primitive.name != "dot_general":
            return 0
        (contracted, _), _ = equation.params["dimension_numbers"]
        contracted_sizes = [equation.invars[0].aval.shape[axis] for axis in contracted]
        return math.prod(equation.outvars[0].aval.shape) * math.prod(contracted_sizes)

    return _total(of, jaxpr)


def elementwise(jaxpr: Jaxpr) -> int:
    """Floating-point operations of a program beside its matrix products, as XLA counts them: one per result of an
    elementwise operation and per entry of a reduction. Exponentials and their like XLA counts apart, and this does not.
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
    """The sum over the equations of a program: a scan's body as often as it runs, of branches the dearest."""
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
    """Bytes of the operands and results, parameters aside, of the largest single operation of a program."""
    largest = 0
    for equation in jaxpr.eqns:
        arrays = {var for var in (*equation.invars, *equation.outvars) if not isinstance(var, Literal)}
        size = sum(aval_bytes(var.aval) for var in arrays - parameters)
        for sub in _inner(equation):
            # The arguments of most of them are their operation's own, one to one.
            passed = zip(reversed(sub.invars), reversed(equation.invars), strict=False)
            known = {inside for inside, outside in passed if not isinstance(outside, Literal) and outside in parameters}
            size = max(size, workspace(sub, known))
        largest = max(largest, size)
    return largest


def _inner(equation: Any) -> list[Jaxpr]:
    found = []
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, Jaxpr):
                found.append(item)
    return found


def aval_bytes(aval: Any) -> int:
    return math.prod(aval.shape) * aval.dtype.itemsize
