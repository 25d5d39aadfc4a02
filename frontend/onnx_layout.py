"""ONNX operators that move elements: shapes, axes, slices, gathers, and constants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from onnx import numpy_helper

from tilewright.frontend.onnx_table import Node, Result, Shape, Sizes, axis_in, cast, claims, expand, fixed, product, reshape, transpose
from tilewright.ir.graph import Value
from tilewright.ir.ops.shapes import broadcast
from tilewright.ir.reference import TORCH_DTYPES
from tilewright.ir.types import Dim

END = 1 << 31  # a bound of this size or more means the end of the axis


# -- constants ------------------------------------------------------------------------------------------------------------------
@claims("Constant")
def _constant(n: Any) -> Result:
    if n.attr("value") is not None:
        return n.tensor(n.attr("value"))
    for name in ("value_int", "value_ints", "value_float", "value_floats"):
        value = n.attr(name)
        if value is not None and name.startswith("value_int"):
            return Sizes(tuple(value) if isinstance(value, list) else (int(value),), int(isinstance(value, list)))
        if value is not None:
            return n.constant(torch.tensor(value, dtype=torch.float32))
    raise n.refuse("holds no tensor of numbers")


@claims("Shape")
def _shape(n: Node) -> Sizes:
    dims = n.value(0).type.shape
    return Sizes(dims[n.attr("start", 0) : n.attr("end", len(dims))])


@claims("Size")
def _size(n: Node) -> Sizes:
    return Sizes((product(n, n.value(0).type.shape),), 0)


@claims("ConstantOfShape", known=(0,))
def _constant_of_shape(n: Node) -> Result:
    shape = tuple(fixed(n, d) for d in n.known(0))
    value = n.attr("value")
    number = numpy_helper.to_array(value).reshape(-1)[0].item() if value is not None else 0.0
    if len(shape) == 1 and value is not None and n.dtype(value.data_type) == "i64":
        return Sizes((int(number),) * shape[0])
    return n.emit("full", shape=shape, value=number, dtype=n.dtype(value.data_type) if value is not None else "f32")


# -- shapes ---------------------------------------------------------------------------------------------------------------------
@claims("Reshape", known=(1,))
def _reshape(n: Node) -> Value:
    x = n.value(0)
    asked = list(n.known(1))
    if not n.attr("allowzero", 0):
        asked = [x.type.shape[i] if d == 0 else d for i, d in enumerate(asked)]
    return reshape(n, x, complete(n, x.type.shape, asked))


def complete(n: Node, old: Shape, asked: Sequence[Dim]) -> Shape:
    """The shape with its -1 worked out; a symbol of the old shape goes where the new one leaves room for it."""
    if -1 not in asked:
        return tuple(asked)
    left = list(old)
    for d in asked:
        if isinstance(d, str):
            if d not in left:
                raise n.refuse(f"reshapes {list(old)} to {list(asked)}")
            left.remove(d)
    size, known = 1, 1
    for d in left:
        size *= d if isinstance(d, int) else 1
    for d in asked:
        known *= d if isinstance(d, int) and d != -1 else 1
    symbols = [d for d in left if isinstance(d, str)]
    if known == 0 or size % known:
        raise n.refuse(f"reshapes {list(old)} to {list(asked)}")
    rest = product(n, [*symbols, size // known])
    return tuple(rest if d == -1 else d for d in asked)


@claims("Flatten")
def _flatten(n: Node) -> Value:
    x = n.value(0)
    axis = n.attr("axis", 1)
    axis = axis + x.type.rank if axis < 0 else axis
    return reshape(n, x, (product(n, x.type.shape[:axis]), product(n, x.type.shape[axis:])))


@claims("Squeeze", known=(1,))
def _squeeze(n: Node) -> Value:
    x = n.value(0)
    given = n.known(1) if n.has(1) else n.attr("axes", [a for a, d in enumerate(x.type.shape) if d == 1])
    axes = {axis_in(n, fixed(n, a), x.type) for a in given}
    if any(x.type.shape[a] != 1 for a in axes):
        raise n.refuse(f"removes axes {sorted(axes)} of {x.type}")
    return reshape(n, x, tuple(d for a, d in enumerate(x.type.shape) if a not in axes))


@claims("Unsqueeze", known=(1,))
def _unsqueeze(n: Node) -> Value:
    x = n.value(0)
    given = n.known(1) if n.has(1) else n.attr("axes", [])
    rank = x.type.rank + len(given)
    axes = {fixed(n, a) % rank for a in given}
    rest = iter(x.type.shape)
    return reshape(n, x, tuple(1 if a in axes else next(rest) for a in range(rank)))


@claims("Transpose")
def _transpose(n: Node) -> Value:
    x = n.value(0)
    return transpose(n, x, n.attr("perm", list(reversed(range(x.type.rank)))))


@claims("Expand", known=(1,))
def _expand(n: Node) -> Value:
    x = n.value(0)
    return expand(n, x, broadcast("Expand", x.type.shape, n.known(1)))


@claims("Tile", known=(1,))
def _tile(n: Node) -> Value:
    x = n.value(0)
    for axis, count in enumerate(n.known(1)):
        if count != 1:
            x = n.emit("concat", *[x] * fixed(n, count), axis=axis)
    return x


# -- pieces ---------------------------------------------------------------------------------------------------------------------
@claims("Concat")
def _concat(n: Node) -> Value:
    parts = [n.value(i) for i in range(len(n))]
    parts = [p for p in parts if 0 not in p.type.shape] or parts[:1]
    return n.emit("concat", *parts, axis=n.attr("axis")) if len(parts) > 1 else parts[0]


@claims("Split", known=(1,))
def _split(n: Node) -> list[Value]:
    x = n.value(0)
    axis = axis_in(n, n.attr("axis", 0), x.type)
    total = fixed(n, x.type.shape[axis])
    sizes = [fixed(n, s) for s in n.known(1)] if n.has(1) else n.attr("split")
    if sizes is None:
        each = -(-total // n.num_outputs)
        sizes = [min(each, total - each * i) for i in range(n.num_outputs)]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [_slice_axis(n, x, axis, slice(start, start + size, 1)) for start, size in zip(starts, sizes)]


def nothing(n: Node, x: Value, axis: int) -> Value:
    """x with no element along the axis."""
    shape = [0 if a == axis else fixed(n, d) for a, d in enumerate(x.type.shape)]
    return n.constant(torch.empty(shape, dtype=TORCH_DTYPES[x.type.dtype]))


@claims("Slice", known=(1, 2, 3, 4))
def _slice(n: Node) -> Value:
    x = n.value(0)
    starts, stops = ([fixed(n, b) for b in n.known(i)] for i in (1, 2))
    axes = [fixed(n, a) for a in n.known(3)] if n.has(3) else range(len(starts))
    steps = [fixed(n, s) for s in n.known(4)] if n.has(4) else [1] * len(starts)
    for start, stop, axis, step in zip(starts, stops, axes, steps):
        x = _slice_axis(n, x, axis_in(n, axis, x.type), slice(start, stop, step))
    return x


def _slice_axis(n: Node, x: Value, axis: int, cut: slice) -> Value:
    size = x.type.shape[axis]
    if isinstance(size, str):
        if (cut.start, cut.step) == (0, 1) and cut.stop >= END:
            return x
        raise n.refuse(f"cuts the axis {size}, whose size is not fixed")
    chosen = range(*cut.indices(size))
    if not chosen:
        return nothing(n, x, axis)
    if chosen.step < 0:  # backwards: rows in that order
        return gather(n, x, n.constant(torch.tensor(list(chosen))), axis)
    if chosen == range(size):
        return x
    return n.emit("slice", x, axis=axis, start=chosen.start, stop=chosen[-1] + 1, step=chosen.step)


# -- gathers --------------------------------------------------------------------------------------------------------------------
@claims("Gather")
def _gather(n: Node) -> Value:
    x, index = n.value(0), n.value(1)
    axis = axis_in(n, n.attr("axis", 0), x.type)
    if n.sizes(1) is not None:  # known, so that negative ones can be counted from the start
        size = fixed(n, x.type.shape[axis])
        rows = torch.tensor([fixed(n, i) % size for i in n.known(1)])
        index = n.constant(rows.reshape(tuple(int(d) for d in index.type.shape)))
    if index.type.rank == 0 and n.sizes(1) is not None:
        row = fixed(n, n.known(1)[0]) % fixed(n, x.type.shape[axis])
        return reshape(n, n.emit("slice", x, axis=axis, start=row, stop=row + 1), (*x.type.shape[:axis], *x.type.shape[axis + 1 :]))
    return gather(n, x, index, axis)


def gather(n: Node, x: Value, index: Value, axis: int) -> Value:
    """x[..., index, ...]: the axis goes to the front, its rows are taken, and it goes back as the axes of the index."""
    rest = [a for a in range(x.type.rank) if a != axis]
    front = transpose(n, x, [axis, *rest])
    flat = reshape(n, index, (product(n, index.type.shape),))
    is_embedding = front.is_const and front.type.rank == 2 and n.told_op != "gather_rows"
    rows = n.emit("embedding", front, flat) if is_embedding else n.emit("gather_rows", front, flat)
    count, kept = index.type.rank, front.type.shape[1:]
    rows = reshape(n, rows, (*index.type.shape, *kept))
    before = [count + i for i in range(axis)]
    return transpose(n, rows, [*before, *range(count), *(count + i for i in range(axis, len(kept)))])


def repeat(n: Node, x: Value, axis: int, count: int) -> Value:
    """Each element along the axis `count` times in turn."""
    if count == 1:
        return x
    shape = x.type.shape
    wide = expand(n, reshape(n, x, (*shape[: axis + 1], 1, *shape[axis + 1 :])), (*shape[: axis + 1], count, *shape[axis + 1 :]))
    return reshape(n, wide, (*shape[:axis], fixed(n, shape[axis]) * count, *shape[axis + 1 :]))


@claims("Trilu", known=(1,))
def _trilu(n: Node) -> Value:
    """Zero above (upper=0) or below the k-th diagonal of the last two axes, whose sizes are fixed."""
    x = n.value(0)
    rows, columns = (fixed(n, d) for d in x.type.shape[-2:])
    k = fixed(n, n.known(1)[0]) if n.has(1) else 0
    ones = torch.ones(rows, columns)
    mask = (ones.triu(k) if n.attr("upper", 1) else ones.tril(k)).bool()
    return n.emit("where", n.constant(mask), x, cast(n, n.constant(torch.tensor(0)), x.type.dtype))
