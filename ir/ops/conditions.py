"""Pointwise ops that are not smooth: comparisons, a choice between two values, and rounding to whole numbers."""

from __future__ import annotations

from tilewright.ir.errors import GraphError
from tilewright.ir.opdef import op
from tilewright.ir.ops.shapes import Shape, broadcast, check_float, same_dtype
from tilewright.ir.types import TensorType

T = TensorType


def _compared(name: str, x: T, y: T | None, scalar: float | int | None) -> Shape:
    if (y is None) == (scalar is None):
        raise GraphError(name, "takes a second operand or the attribute scalar, one of the two")
    same_dtype(name, x, y)
    return broadcast(name, x.shape, y.shape) if y is not None else x.shape


@op(pointwise=True)
def less(x: T, y: T | None = None, *, scalar: float | int | None = None) -> T:
    """x < y, i1"""
    return T("i1", _compared("less", x, y, scalar))


@op(pointwise=True, commutative=True)
def equal(x: T, y: T | None = None, *, scalar: float | int | None = None) -> T:
    """x = y, i1"""
    return T("i1", _compared("equal", x, y, scalar))


@op(pointwise=True)
def where(condition: T, x: T, y: T) -> T:
    """x where the condition holds, else y"""
    if condition.dtype != "i1":
        raise GraphError("where", f"the condition is {condition}", "it must be i1")
    return T(same_dtype("where", x, y), broadcast("where", condition.shape, x.shape, y.shape))


@op(pointwise=True)
def floor(x: T) -> T:
    """The largest whole number that is not above x"""
    check_float("floor", x)
    return x


@op(pointwise=True)
def round_(x: T) -> T:
    """The nearest whole number; of two, the even one"""
    check_float("round", x)
    return x
