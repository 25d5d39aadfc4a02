"""The closed table from ATen calls to ops of the graph. Knows neither models nor where tensors come from.

Axes count in the traced shape; a value in the graph lacks the leading unit axes of its traced shape (the batch axis of one, above all).
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch.fx import Node

from tilewright.ir.errors import TraceError
from tilewright.ir.graph import Value
from tilewright.ir.opdef import Attr
from tilewright.ir.types import FLOATS, Dim

ATEN = torch.ops.aten
Shape = tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class Traced:
    """A tensor of the trace: its value in the graph, and its traced shape with all unit axes."""

    value: Value
    shape: Shape

    @property
    def rank(self) -> int:
        return len(self.shape)

    def axis(self, axis: int) -> int:
        return axis % self.rank


@dataclass(frozen=True, slots=True)
class Pieces:
    """Result of a split: slices that getitem takes when they are used."""

    source: Traced
    axis: int
    bounds: tuple[tuple[int, int], ...]


class Emitter(Protocol):
    """What a rule may do. `emit` adds the op that the call is about, `prepare` one that only fits operands or result to it."""

    def emit(self, op: str, *operands: Value | None, **attrs: Attr | Shape) -> Value: ...
    def prepare(self, op: str, *operands: Value | None, **attrs: Attr | Shape) -> Value: ...
    def result_shape(self) -> Shape: ...
    def result_dtype(self) -> str: ...
    def refuse(self, problem: str) -> TraceError: ...


Rule = Callable[..., Any]  # gives a Value, or the Pieces of a split
R = TypeVar("R", bound=Rule)
RULES: dict[object, Rule] = {}


def imports(*targets: object) -> Callable[[R], R]:
    """Registers a rule: it gets the emitter and the call's arguments, nodes replaced by Traced."""

    def register(rule: R) -> R:
        for target in targets:
            assert target not in RULES, f"{target} has two rules"
            RULES[target] = rule
        return rule

    return register


def strip(shape: Shape) -> Shape:
    """Without leading unit axes."""
    first = next((i for i, d in enumerate(shape) if d != 1), len(shape))
    return shape[first:]


# -- fitting operands ---------------------------------------------------------------------------------------------------------------
def with_rank(e: Emitter, x: Traced, rank: int) -> Value:
    """x with at least its last `rank` traced axes."""
    shape = x.shape[min(x.rank - rank, x.rank - x.value.type.rank) :] if rank <= x.rank else (1,) * (rank - x.rank) + x.shape
    return reshaped(e, x.value, shape)


def reshaped(e: Emitter, x: Value, shape: Shape) -> Value:
    return x if x.type.shape == shape else e.prepare("reshape", x, shape=shape)


def as_dtype(e: Emitter, x: Value, dtype: str) -> Value:
    return x if x.type.dtype == dtype else e.prepare("cast", x, dtype=dtype)


def local_axis(x: Traced, value: Value, axis: int) -> int:
    """The traced axis counted in `value`, which has the last axes of x."""
    return x.axis(axis) - (x.rank - value.type.rank)


# -- pointwise ----------------------------------------------------------------------------------------------------------------------
_UNARY = {
    ATEN.neg.default: "neg", ATEN.abs.default: "abs", ATEN.exp.default: "exp", ATEN.sqrt.default: "sqrt", ATEN.rsqrt.default: "rsqrt",
    ATEN.cos.default: "cos", ATEN.sin.default: "sin", ATEN.tanh.default: "tanh", ATEN.sigmoid.default: "sigmoid", ATEN.erf.default: "erf",
    ATEN.relu.default: "relu", ATEN.silu.default: "silu",
}  # fmt: skip
_BINARY = {
    ATEN.add.Tensor: "add", ATEN.add.Scalar: "add", ATEN.sub.Tensor: "sub", ATEN.sub.Scalar: "sub", ATEN.mul.Tensor: "mul", ATEN.mul.Scalar: "mul",
    ATEN.div.Tensor: "div", ATEN.div.Scalar: "div", ATEN.maximum.default: "maximum", ATEN.minimum.default: "minimum",
}  # fmt: skip


def _unary(name: str) -> Rule:
    return lambda e, x: e.emit(name, x.value)


def _binary(name: str) -> Rule:
    def rule(e: Emitter, x: Traced | float, y: Traced | float, alpha: float = 1) -> Value:
        if alpha != 1:
            y = Traced(e.prepare("mul", y.value, scalar=alpha), y.shape) if isinstance(y, Traced) else y * alpha
        return binary(e, name, x, y)

    return rule


for _target, _name in _UNARY.items():
    imports(_target)(_unary(_name))
for _target, _name in _BINARY.items():
    imports(_target)(_binary(_name))


def binary(e: Emitter, name: str, x: Traced | float, y: Traced | float) -> Value:
    """Operands are promoted to the result's dtype, as torch does."""
    dtype = e.result_dtype()
    if isinstance(x, Traced) and isinstance(y, Traced):
        return e.emit(name, as_dtype(e, x.value, dtype), as_dtype(e, y.value, dtype))
    tensor, scalar, reverse = (x, y, False) if isinstance(x, Traced) else (y, x, True)
    if not isinstance(tensor, Traced) or isinstance(scalar, Traced):
        raise e.refuse("an operand that is neither tensor nor number")
    number = float(scalar) if dtype in FLOATS else scalar
    turned = {"reverse": True} if reverse and name in ("sub", "div") else {}
    return e.emit(name, as_dtype(e, tensor.value, dtype), scalar=number, **turned)


@imports(ATEN.rsub.Scalar)
def _rsub(e: Emitter, x: Traced, y: float) -> Value:
    return binary(e, "sub", y, x)


@imports(ATEN.reciprocal.default)
def _reciprocal(e: Emitter, x: Traced) -> Value:
    return e.emit("div", x.value, scalar=1.0, reverse=True)


@imports(ATEN.pow.Tensor_Scalar)
def _pow(e: Emitter, x: Traced, exponent: float) -> Value:
    return e.emit("pow", x.value, exponent=float(exponent))


@imports(ATEN.square.default)
def _square(e: Emitter, x: Traced) -> Value:
    return e.emit("pow", x.value, exponent=2.0)


@imports(ATEN.gelu.default)
def _gelu(e: Emitter, x: Traced, approximate: str = "none") -> Value:
    return e.emit("gelu", x.value, approximate=approximate)


@imports(ATEN.clamp.default)
def _clamp(e: Emitter, x: Traced, low: float | None = None, high: float | None = None) -> Value:
    value = x.value if low is None else e.emit("maximum", x.value, scalar=low)
    return value if high is None else e.emit("minimum", value, scalar=high)


@imports(ATEN._to_copy.default)
def _to_copy(e: Emitter, x: Traced, dtype: object = None, **_: object) -> Value:
    return _cast(e, x)


@imports(ATEN.type_as.default)
def _cast(e: Emitter, x: Traced, like: object = None) -> Value:
    dtype = e.result_dtype()
    return x.value if x.value.type.dtype == dtype else e.emit("cast", x.value, dtype=dtype)


# -- layout -------------------------------------------------------------------------------------------------------------------------
@imports(ATEN.reshape.default, ATEN.unsqueeze.default, ATEN.squeeze.dim, ATEN.squeeze.dims, ATEN.squeeze.default, ATEN.flatten.using_ints)
def _reshape(e: Emitter, x: Traced, *_: object) -> Value:
    shape = strip(e.result_shape())
    return x.value if x.value.type.shape == shape else e.emit("reshape", x.value, shape=shape)


@imports(ATEN.transpose.int)
def _transpose(e: Emitter, x: Traced, a: int, b: int) -> Value:
    perm = list(range(x.rank))
    perm[a], perm[b] = perm[b], perm[a]
    return _permute(e, x, perm)


@imports(ATEN.t.default)
def _t(e: Emitter, x: Traced) -> Value:
    return _permute(e, x, [1, 0][-x.rank :])


@imports(ATEN.permute.default)
def _permute(e: Emitter, x: Traced, perm: Sequence[int]) -> Value:
    perm = [x.axis(axis) for axis in perm]
    lead = x.rank - x.value.type.rank
    if perm[:lead] == list(range(lead)):  # the stripped axes stay where they are
        local = tuple(axis - lead for axis in perm[lead:])
        return x.value if local == tuple(range(len(local))) else e.emit("transpose", x.value, perm=local)
    wide = [axis for axis in range(x.rank) if x.shape[axis] != 1]
    squeezed = reshaped(e, x.value, tuple(x.shape[axis] for axis in wide))
    local = tuple(wide.index(axis) for axis in perm if axis in wide)
    return squeezed if local == tuple(range(len(local))) else e.emit("transpose", squeezed, perm=local)


@imports(ATEN.expand.default, ATEN.repeat.default)
def _expand(e: Emitter, x: Traced, sizes: Sequence[object]) -> Value:
    shape = e.result_shape()
    padded = (1,) * (len(shape) - x.rank) + x.shape
    if any(old not in (1, new) for old, new in zip(padded, shape)):
        raise e.refuse("a repeat along an axis that is not 1")
    return x.value if strip(shape) == strip(padded) else e.emit("expand", x.value, shape=strip(shape))


@imports(ATEN.repeat_interleave.self_int)
def _repeat_interleave(e: Emitter, x: Traced, repeats: int, dim: int, output_size: object = None) -> Value:
    """[.., n, ..] -> [.., n, 1, ..] -> [.., n, repeats, ..] -> [.., n * repeats, ..]"""
    value = with_rank(e, x, x.rank - x.axis(dim))
    axis, shape = local_axis(x, value, dim), value.type.shape
    apart = e.prepare("reshape", value, shape=(*shape[: axis + 1], 1, *shape[axis + 1 :]))
    copied = e.prepare("expand", apart, shape=(*shape[: axis + 1], repeats, *shape[axis + 1 :]))
    return e.emit("reshape", copied, shape=(*shape[:axis], int(shape[axis]) * repeats, *shape[axis + 1 :]))


def take(e: Emitter, x: Traced, dim: int, bounds: tuple[int, int, int]) -> Value:
    """x[.., start:stop:step, ..]"""
    size = x.shape[dim]
    if not isinstance(size, int):
        raise e.refuse(f"a slice of the symbolic axis {size}")
    start, stop, step = slice(*bounds).indices(size)
    if (start, stop, step) == (0, size, 1):
        return x.value
    value = with_rank(e, x, x.rank - x.axis(dim))
    return e.emit("slice", value, axis=local_axis(x, value, dim), start=start, stop=stop, step=step)


@imports(ATEN.slice.Tensor)
def _slice(e: Emitter, x: Traced, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Value:
    if not isinstance(start, int | None) or not isinstance(end, int | None):
        raise e.refuse("a slice with a symbolic bound")
    return take(e, x, dim, (start or 0, sys.maxsize if end is None else end, step))


@imports(ATEN.select.int)
def _select(e: Emitter, x: Traced, dim: int, index: int) -> Value:
    return take(e, x, dim, (index, index + 1 or sys.maxsize, 1))


@imports(ATEN.split.Tensor)
def _split(e: Emitter, x: Traced, size: int, dim: int = 0) -> Pieces:
    total = x.shape[dim]
    if not isinstance(total, int):
        raise e.refuse(f"a split of the symbolic axis {total}")
    return Pieces(x, dim, tuple((start, min(start + size, total)) for start in range(0, total, size)))


@imports(ATEN.split_with_sizes.default)
def _split_with_sizes(e: Emitter, x: Traced, sizes: Sequence[int], dim: int = 0) -> Pieces:
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return Pieces(x, dim, tuple((end - size, end) for size, end in zip(sizes, ends)))


@imports(operator.getitem)
def _getitem(e: Emitter, pieces: Pieces, index: int) -> Value:
    return take(e, pieces.source, pieces.axis, (*pieces.bounds[index], 1))


@imports(ATEN.cat.default)
def _cat(e: Emitter, parts: Sequence[Traced], dim: int = 0) -> Value:
    rank = max(max(p.value.type.rank for p in parts), parts[0].rank - parts[0].axis(dim))
    values = [with_rank(e, p, rank) for p in parts]
    return e.emit("concat", *values, axis=local_axis(parts[0], values[0], dim))


@imports(ATEN.stack.default)
def _stack(e: Emitter, parts: Sequence[Traced], dim: int = 0) -> Value:
    axis = dim % (parts[0].rank + 1)
    wider = [Traced(p.value, (*p.shape[:axis], 1, *p.shape[axis:])) for p in parts]
    fitted = [Traced(reshaped(e, p.value, strip(p.shape)), p.shape) for p in wider]
    return _cat(e, fitted, axis)


@imports(ATEN.full.default)
def _full(e: Emitter, shape: Sequence[object], value: float, **_: object) -> Value:
    sizes = e.result_shape()
    if not all(isinstance(d, int) for d in sizes):
        raise e.refuse("a constant of symbolic size")
    return e.emit("full", shape=strip(sizes), value=float(value), dtype=e.result_dtype())


@imports(ATEN.arange.default)
def _arange(e: Emitter, *_: object, **__: object) -> Value:
    (size,) = e.result_shape()
    if not isinstance(size, int):
        raise e.refuse("positions counted inside the graph, which are wrong for more than one request")
    return e.emit("iota", size=size, dtype=e.result_dtype())


# -- reductions ---------------------------------------------------------------------------------------------------------------------
def _reduction(name: str) -> Rule:
    def rule(e: Emitter, x: Traced, dims: Sequence[int] | int, keepdim: bool = False) -> Value:
        axes = [dims] if isinstance(dims, int) else list(dims)
        if len(axes) != 1:
            raise e.refuse(f"a reduction of {len(axes)} axes")
        value = with_rank(e, x, x.rank - x.axis(axes[0]))
        return e.emit(name, value, axis=local_axis(x, value, axes[0]) - value.type.rank, keepdim=keepdim)

    return rule


for _target, _name in ((ATEN.mean.dim, "mean"), (ATEN.sum.dim_IntList, "sum"), (ATEN.amax.default, "max")):
    imports(_target)(_reduction(_name))


@imports(ATEN.softmax.int, ATEN._softmax.default)
def _softmax(e: Emitter, x: Traced, dim: int, dtype: object = None) -> Value:
    value = with_rank(e, x, x.rank - x.axis(dim))
    return e.emit("softmax", as_dtype(e, value, e.result_dtype()), axis=local_axis(x, value, dim) - value.type.rank)


@imports(ATEN.layer_norm.default)
def _layer_norm(
    e: Emitter, x: Traced, shape: Sequence[int], weight: Traced | None = None, bias: Traced | None = None, eps: float = 1e-5, *_: object
) -> Value:
    if len(shape) != 1:
        raise e.refuse(f"a layer norm over {len(shape)} axes")
    return e.emit("layer_norm", x.value, weight and weight.value, bias and bias.value, eps=eps)


# -- gathers ------------------------------------------------------------------------------------------------------------------------
@imports(ATEN.embedding.default)
def _embedding(e: Emitter, weight: Traced, ids: Traced, *_: object) -> Value:
    return e.emit("embedding", weight.value, ids.value)


@imports(ATEN.index.Tensor)
def _index(e: Emitter, x: Traced, indices: Sequence[Traced | None]) -> Value:
    """x[:, rows]: one index tensor, on the first axis of the graph's value."""
    given = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    if len(given) != 1 or given[0][1].value.type.rank != 1:
        raise e.refuse("an index other than one list of rows")
    axis, rows = given[0]
    value = with_rank(e, x, x.rank - axis)
    if local_axis(x, value, axis) != 0:
        raise e.refuse(f"an index on axis {axis} of {len(x.shape)}")
    return e.emit("gather_rows", value, rows.value)


@imports(ATEN.index_select.default)
def _index_select(e: Emitter, x: Traced, dim: int, rows: Traced) -> Value:
    return _index(e, x, [None] * x.axis(dim) + [rows])


@imports(ATEN.gather.default)
def _gather(e: Emitter, x: Traced, dim: int, index: Traced, *_: object) -> Value:
    """Rows of a table, where every column asks for the same row: table [1, P, D], index i32[T, D] broadcast from [T, 1]."""
    producer = index.value.producer
    rows = producer.operands[0] if producer is not None and producer.name == "expand" else None
    if rows is None or x.value.type.rank != 2 or local_axis(x, x.value, dim) != 0 or rows.type.shape != (index.shape[-2], 1):
        raise e.refuse("a gather that is not a lookup of rows")
    return e.emit("gather_rows", x.value, reshaped(e, rows, (rows.type.shape[0],)))


# -- products -----------------------------------------------------------------------------------------------------------------------
@imports(ATEN.linear.default)
def _linear(e: Emitter, x: Traced, weight: Traced, bias: Traced | None = None) -> Value:
    return e.emit("linear", x.value, weight.value, bias and bias.value)


@imports(ATEN.addmm.default)
def _addmm(e: Emitter, bias: Traced, x: Traced, weight: Traced, beta: float = 1, alpha: float = 1) -> Value:
    if (beta, alpha) != (1, 1):
        raise e.refuse("factors in a matrix product")
    return e.emit("linear", x.value, _turned(e, weight.value), bias.value)


@imports(ATEN.matmul.default, ATEN.mm.default, ATEN.bmm.default)
def _matmul(e: Emitter, x: Traced, y: Traced) -> Value:
    if y.value.is_const and y.value.type.rank == 2 and not x.value.is_const:
        return e.emit("linear", x.value, _turned(e, y.value))
    if y.rank < 2 or x.rank < 2:
        raise e.refuse("a product with a vector")
    return e.emit("matmul", with_rank(e, x, 2), with_rank(e, y, 2))


def _turned(e: Emitter, weight: Value) -> Value:
    """[K, N] as the [N, K] that linear takes; a transpose of a parameter is undone, not repeated."""
    producer = weight.producer
    if producer is not None and producer.name == "transpose" and producer.operands[0] is not None and producer.attrs["perm"] == (1, 0):
        return producer.operands[0]
    return e.prepare("transpose", weight, perm=(1, 0))


@imports(torch.ops.aten.scaled_dot_product_attention.default)
def _uncaught_attention(e: Emitter, *_: object, **__: object) -> Value:
    raise e.refuse("an attention that was not recognised")


def call_name(node: Node) -> str:
    """`aten.topk`"""
    return str(node.target).removesuffix(".default") if not callable(node.target) or hasattr(node.target, "_schema") else node.target.__name__
