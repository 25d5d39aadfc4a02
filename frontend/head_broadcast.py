"""Undoes key-value heads that a model repeats for its query heads, so that the cache holds each of them once. Knows shapes and ATen only.

A value whose heads come in groups of equal copies is rebuilt from its broadcast source, through the pointwise ops between (a rotary embedding).
"""

from __future__ import annotations

import torch
from torch.fx import Graph, Node

from tilewright.frontend.normalize import insert_call

ATEN = torch.ops.aten
_POINTWISE = (ATEN.mul.Tensor, ATEN.add.Tensor, ATEN.sub.Tensor, ATEN.neg.default, ATEN._to_copy.default)


def narrow_heads(graph: Graph, before: Node, x: Node) -> Node:
    """x [.., heads, T, d] with each key-value head repeated, as [.., kv_heads, T, d]; x itself where its heads are not provably copies."""
    axis = x.meta["val"].dim() - 3
    narrowed = _narrow(graph, before, x, axis, {})
    return narrowed if narrowed is not None else x


def _narrow(graph: Graph, before: Node, x: Node, axis: int, done: dict[tuple[Node, int], Node | None]) -> Node | None:
    """x with one element of every group of copies along `axis`, or None."""
    if (x, axis) not in done:
        done[x, axis] = _rebuild(graph, before, x, axis, done)
    return done[x, axis]


def _rebuild(graph: Graph, before: Node, x: Node, axis: int, done: dict[tuple[Node, int], Node | None]) -> Node | None:
    if x.op != "call_function" or not x.args:
        return None
    target, shape = x.target, x.meta["val"].shape
    if target in (ATEN.reshape.default, ATEN.flatten.using_ints):
        return _from_merged_expand(graph, before, x, axis)
    if target is ATEN.transpose.int:
        moved = {x.args[1] % len(shape): x.args[2] % len(shape), x.args[2] % len(shape): x.args[1] % len(shape)}  # type: ignore[operator]  # axis numbers
        source = _narrow(graph, before, x.args[0], moved.get(axis, axis), done)  # type: ignore[arg-type]  # a node
        return None if source is None else insert_call(graph, before, target, source, *x.args[1:])
    if target is ATEN.cat.default:
        along = (x.args[1] if len(x.args) > 1 else 0) % len(shape)  # type: ignore[operator]  # an axis number
        parts = [] if along == axis else [_narrow(graph, before, part, axis, done) for part in x.args[0]]  # type: ignore[union-attr]  # a list of nodes
        return insert_call(graph, before, target, parts, along) if parts and all(p is not None for p in parts) else None
    if target is ATEN.slice.Tensor and x.args[1] != axis:
        source = _narrow(graph, before, x.args[0], axis, done)  # type: ignore[arg-type]  # a node
        return None if source is None else insert_call(graph, before, target, source, *x.args[1:])
    return _narrow_pointwise(graph, before, x, axis, done) if target in _POINTWISE else None


def _narrow_pointwise(graph: Graph, before: Node, x: Node, axis: int, done: dict[tuple[Node, int], Node | None]) -> Node | None:
    """Operands that broadcast along the axis stay; the others must be narrowed too, all by the same factor."""
    rank, size = x.meta["val"].dim(), x.meta["val"].shape[axis]
    arguments: list[object] = []
    sizes: set[object] = set()
    for operand in x.args:
        if isinstance(operand, Node):
            mine = axis - rank + operand.meta["val"].dim()
            if mine >= 0 and operand.meta["val"].shape[mine] == size:
                operand = _narrow(graph, before, operand, mine, done)
                if operand is None:
                    return None
                sizes.add(operand.meta["val"].shape[mine])
        arguments.append(operand)
    return None if len(sizes) != 1 else insert_call(graph, before, x.target, *arguments, **x.kwargs)


def _from_merged_expand(graph: Graph, before: Node, x: Node, axis: int) -> Node | None:
    """[.., groups, n, ..] broadcast over n, then merged to [.., groups * n, ..]: the source without its unit axis."""
    source = x.args[0]
    if not isinstance(source, Node) or source.target is not ATEN.expand.default:
        return None
    origin = source.args[0]
    assert isinstance(origin, Node)
    wide, base, merged = list(source.meta["val"].shape), list(origin.meta["val"].shape), list(x.meta["val"].shape)
    if len(wide) != len(merged) + 1 or len(base) != len(wide) or wide[:axis] != merged[:axis] or wide[axis + 2 :] != merged[axis + 1 :]:
        return None
    only_copies = base[axis + 1] == 1 and wide[axis + 1] > 1 and base[: axis + 1] + base[axis + 2 :] == wide[: axis + 1] + wide[axis + 2 :]
    return insert_call(graph, before, ATEN.squeeze.dim, origin, axis + 1) if only_copies else None
