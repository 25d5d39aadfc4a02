"""ATen calls that move elements: views, axes, slices, joins, gathers. Rules of the table; knows no model."""

from __future__ import annotations

import operator
import sys
from collections.abc import Sequence

import torch

from tilewright.frontend.aten_table import Emitter, Pieces, Traced, as_dtype, imports, local_axis, reshaped, strip, with_rank
from tilewright.ir.graph import Value

ATEN = torch.ops.aten


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


@imports(ATEN.chunk.default)
def _chunk(e: Emitter, x: Traced, count: int, dim: int = 0) -> Pieces:
    total = x.shape[dim]
    return _split(e, x, -(-total // count) if isinstance(total, int) else 0, dim)


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
    values = [as_dtype(e, with_rank(e, p, rank), e.result_dtype()) for p in parts]
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
