"""Ops as a trace gives them: pointwise, layout, reduction, gather and matrix product."""

from __future__ import annotations

from collections.abc import Mapping

from tilewright.ir.errors import GraphError
from tilewright.ir.opdef import op
from tilewright.ir.ops.shapes import axis_of, broadcast, check_float, check_reshape, same_dtype, show, static_dim
from tilewright.ir.types import Dim, TensorType

T = TensorType


def _binary(name: str, x: T, y: T | None, scalar: float | int | None) -> T:
    if (y is None) == (scalar is None):
        raise GraphError(name, "takes a second operand or the attribute scalar, one of the two")
    if y is None:
        return x
    same_dtype(name, x, y)
    return T(x.dtype, broadcast(name, x.shape, y.shape))


def _float(name: str, x: T) -> T:
    check_float(name, x)
    return x


# -- pointwise, two operands (or one and a scalar) ------------------------------------------------------------------------------
@op(pointwise=True, commutative=True)
def add(x: T, y: T | None = None, *, scalar: float | int | None = None) -> T:
    """x + y"""
    return _binary("add", x, y, scalar)


@op(pointwise=True)
def sub(x: T, y: T | None = None, *, scalar: float | int | None = None, reverse: bool = False) -> T:
    """x - y; with reverse, y - x"""
    return _binary("sub", x, y, scalar)


@op(pointwise=True, commutative=True)
def mul(x: T, y: T | None = None, *, scalar: float | int | None = None) -> T:
    """x * y"""
    return _binary("mul", x, y, scalar)


@op(pointwise=True)
def div(x: T, y: T | None = None, *, scalar: float | int | None = None, reverse: bool = False) -> T:
    """x / y; with reverse, y / x"""
    return _binary("div", x, y, scalar)


@op(pointwise=True, commutative=True)
def maximum(x: T, y: T | None = None, *, scalar: float | int | None = None) -> T:
    """max(x, y)"""
    return _binary("maximum", x, y, scalar)


@op(pointwise=True, commutative=True)
def minimum(x: T, y: T | None = None, *, scalar: float | int | None = None) -> T:
    """min(x, y)"""
    return _binary("minimum", x, y, scalar)


@op(pointwise=True)
def pow_(x: T, y: T | None = None, *, exponent: float | None = None) -> T:
    """x ** y, or x ** exponent"""
    if (y is None) == (exponent is None):
        raise GraphError("pow", "takes a second operand or the attribute exponent, one of the two")
    return _binary("pow", _float("pow", x), y, exponent)


# -- pointwise, one operand -----------------------------------------------------------------------------------------------------
@op(pointwise=True)
def neg(x: T) -> T:
    """-x"""
    return x


@op(pointwise=True)
def abs_(x: T) -> T:
    """|x|"""
    return x


@op(pointwise=True)
def exp(x: T) -> T:
    """e ** x"""
    return _float("exp", x)


@op(pointwise=True)
def log(x: T) -> T:
    """Natural logarithm"""
    return _float("log", x)


@op(pointwise=True)
def sqrt(x: T) -> T:
    """x ** 0.5"""
    return _float("sqrt", x)


@op(pointwise=True)
def rsqrt(x: T) -> T:
    """x ** -0.5"""
    return _float("rsqrt", x)


@op(pointwise=True)
def cos(x: T) -> T:
    """cos(x), x in radians"""
    return _float("cos", x)


@op(pointwise=True)
def sin(x: T) -> T:
    """sin(x), x in radians"""
    return _float("sin", x)


@op(pointwise=True)
def tanh(x: T) -> T:
    """tanh(x)"""
    return _float("tanh", x)


@op(pointwise=True)
def sigmoid(x: T) -> T:
    """1 / (1 + e ** -x)"""
    return _float("sigmoid", x)


@op(pointwise=True)
def erf(x: T) -> T:
    """2 / sqrt(pi) * integral of e ** -t² from 0 to x"""
    return _float("erf", x)


@op(pointwise=True)
def relu(x: T) -> T:
    """max(x, 0)"""
    return _float("relu", x)


@op(pointwise=True)
def silu(x: T) -> T:
    """x * sigmoid(x)"""
    return _float("silu", x)


@op(pointwise=True)
def gelu(x: T, *, approximate: str = "none") -> T:
    """x * Phi(x); with approximate=tanh, 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x³)))"""
    if approximate not in ("none", "tanh"):
        raise GraphError("gelu", f"approximate={approximate!r}", "use none or tanh")
    return _float("gelu", x)


@op(pointwise=True)
def cast(x: T, *, dtype: str) -> T:
    """x rounded to dtype (to nearest, ties to even)"""
    return T(dtype, x.shape)


# -- layout ---------------------------------------------------------------------------------------------------------------------
@op()
def reshape(x: T, *, shape: tuple[Dim, ...]) -> T:
    """The same elements in row-major order under another shape"""
    check_reshape("reshape", x.shape, shape)
    return x.with_shape(*shape)


@op()
def transpose(x: T, *, perm: tuple[int, ...]) -> T:
    """y[i_perm[0], i_perm[1], …] = x[i_0, i_1, …]: axis a of y is axis perm[a] of x"""
    if sorted(perm) != list(range(x.rank)):
        raise GraphError("transpose", f"perm {perm} of {x}", f"it must order the axes 0 to {x.rank - 1}")
    return x.with_shape(*(x.shape[a] for a in perm))


@op()
def expand(x: T, *, shape: tuple[Dim, ...]) -> T:
    """x broadcast to shape"""
    if broadcast("expand", x.shape, shape) != tuple(shape):
        raise GraphError("expand", f"{x} does not broadcast to {show(shape)}")
    return x.with_shape(*shape)


@op()
def slice_(x: T, *, axis: int, start: int, stop: int, step: int = 1) -> T:
    """x[..., start:stop:step, ...] along axis; 0 <= start < stop <= size"""
    axis = axis_of("slice", x, axis)
    size = static_dim("slice", x, axis)
    if not 0 <= start < stop <= size or step < 1:
        raise GraphError("slice", f"{start}:{stop}:{step} of axis {axis} of {x}")
    return x.with_shape(*x.shape[:axis], -(-(stop - start) // step), *x.shape[axis + 1 :])


@op()
def concat(*parts: T, axis: int) -> T:
    """The parts one after another along axis"""
    if not parts:
        raise GraphError("concat", "has no operands")
    axis = axis_of("concat", parts[0], axis)
    same_dtype("concat", *parts)
    rest = {(p.shape[:axis], p.shape[axis + 1 :]) for p in parts}
    if len(rest) > 1:
        raise GraphError("concat", f"{' and '.join(map(str, parts))} differ outside axis {axis}")
    if any(p.encoding != parts[0].encoding for p in parts) or (parts[0].encoding and axis != 0):
        raise GraphError("concat", f"encodings of {' and '.join(map(str, parts))} do not join along axis {axis}")
    total = sum(static_dim("concat", p, axis) for p in parts)
    return parts[0].with_shape(*parts[0].shape[:axis], total, *parts[0].shape[axis + 1 :])


@op()
def interleave(*parts: T) -> T:
    """Rows of the parts in turn: y[i * n + j] = parts[j][i] along axis 0, n parts of equal shape"""
    if len({(p.shape, p.dtype) for p in parts}) != 1:
        raise GraphError("interleave", f"parts {' and '.join(map(str, parts))} differ")
    return parts[0].with_shape(static_dim("interleave", parts[0], 0) * len(parts), *parts[0].shape[1:])


@op()
def iota(*, size: int, dtype: str = "i32") -> T:
    """0, 1, …, size - 1"""
    return T(dtype, (size,))


@op()
def full(*, shape: tuple[int, ...], value: float, dtype: str) -> T:
    """Every element is value"""
    return T(dtype, tuple(shape))


# -- reductions -----------------------------------------------------------------------------------------------------------------
def _reduce(name: str, x: T, axis: int, keepdim: bool) -> T:
    axis = axis_of(name, x, axis)
    return x.with_shape(*x.shape[:axis], *((1,) if keepdim else ()), *x.shape[axis + 1 :])


@op()
def mean(x: T, *, axis: int = -1, keepdim: bool = True) -> T:
    """Mean along axis"""
    return _reduce("mean", _float("mean", x), axis, keepdim)


@op()
def sum_(x: T, *, axis: int = -1, keepdim: bool = True) -> T:
    """Sum along axis"""
    return _reduce("sum", x, axis, keepdim)


@op()
def max_(x: T, *, axis: int = -1, keepdim: bool = True) -> T:
    """Maximum along axis"""
    return _reduce("max", x, axis, keepdim)


@op()
def softmax(x: T, *, axis: int = -1) -> T:
    """e ** (x - max) / sum(e ** (x - max)) along axis"""
    axis_of("softmax", x, axis)
    return _float("softmax", x)


# -- gathers --------------------------------------------------------------------------------------------------------------------
def _index(name: str, rows: T) -> None:
    if rows.dtype not in ("i32", "i64") or rows.rank != 1:
        raise GraphError(name, f"rows are {rows}", "they must be i32 or i64 with one axis")


@op()
def embedding(weight: T, ids: T) -> T:
    """weight[ids]: weight [V, H], ids [T] -> [T, H]"""
    _index("embedding", ids)
    return T(weight.dtype, (ids.shape[0], *weight.shape[1:]))


@op()
def gather_rows(x: T, rows: T) -> T:
    """x[rows]: x [N, ...], rows [S] -> [S, ...]"""
    _index("gather_rows", rows)
    return T(x.dtype, (rows.shape[0], *x.shape[1:]))


# -- products -------------------------------------------------------------------------------------------------------------------
def _linear_operations(dims: Mapping[str, int], x: T, weight: T, bias: T | None = None) -> int:
    return 2 * x.num_elements(dims) * int(weight.shape[0])


@op(operations=_linear_operations)
def linear(x: T, weight: T, bias: T | None = None) -> T:
    """x · weightᵀ + bias: x [..., K], weight [N, K] (possibly encoded), bias [N] -> [..., N]"""
    check_float("linear", x)
    if weight.rank != 2 or x.shape[-1] != weight.shape[1]:
        raise GraphError("linear", f"x {x} and weight {weight} differ in K", "weight is [N, K]")
    if weight.encoding is None:
        same_dtype("linear", x, weight)
    if bias is not None and bias.shape != (weight.shape[0],):
        raise GraphError("linear", f"bias {bias} does not fit weight {weight}")
    return T(x.dtype, (*x.shape[:-1], weight.shape[0]))


def _matmul_operations(dims: Mapping[str, int], x: T, y: T) -> int:
    return 2 * x.num_elements(dims) * (dims[n] if isinstance(n := y.shape[-1], str) else n)


@op(operations=_matmul_operations)
def matmul(x: T, y: T) -> T:
    """x · y over the last two axes: x [..., M, K], y [..., K, N] -> [..., M, N]"""
    dtype = same_dtype("matmul", x, y)
    if x.rank < 2 or y.rank < 2 or x.shape[-1] != y.shape[-2]:
        raise GraphError("matmul", f"x {x} and y {y} differ in K")
    return T(dtype, (*broadcast("matmul", x.shape[:-2], y.shape[:-2]), x.shape[-2], y.shape[-1]))
