"""Arithmetic on sizes that are known while importing: how exporters compute shapes from shapes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from tilewright.frontend.onnx_table import Node, Sizes
from tilewright.ir.types import Dim

BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Div": lambda a, b: int(a / b), "Max": max, "Min": min,
}  # fmt: skip


def fold_sizes(n: Node) -> Sizes | list[Sizes] | None:
    """The node's result, where all its inputs are sizes and the operator is one of shape arithmetic; else None."""
    if n.op_type not in FOLDS or not len(n):
        return None
    inputs = [n.sizes(i) for i in range(len(n)) if n.has(i)]
    if any(s is None for s in inputs):
        return None
    return FOLDS[n.op_type](n, *inputs)


def _binary(n: Node, a: Sizes, b: Sizes | None = None) -> Sizes | None:
    if b is None or (len(a.items) != len(b.items) and 1 not in (len(a.items), len(b.items))):
        return None
    count = max(len(a.items), len(b.items)) if a.items and b.items else 0
    pairs = [(a.items[i % len(a.items)], b.items[i % len(b.items)]) for i in range(count)]
    made = [_one(n.op_type, x, y) for x, y in pairs]
    return None if any(item is None for item in made) else Sizes(tuple(d for d in made if d is not None), max(a.rank, b.rank))


def _one(op: str, x: Dim, y: Dim) -> Dim | None:
    if isinstance(x, int) and isinstance(y, int):
        return None if op == "Div" and y == 0 else BINARY[op](x, y)
    if op == "Mul" and 1 in (x, y):
        return y if x == 1 else x
    if (op == "Div" and y == 1) or (op in ("Add", "Sub") and y == 0):
        return x
    return y if op == "Add" and x == 0 else None


def _neg(n: Node, data: Sizes) -> Sizes | None:
    return None if any(isinstance(i, str) for i in data.items) else Sizes(tuple(-int(i) for i in data.items), data.rank)


def _gather(n: Node, data: Sizes, index: Sizes) -> Sizes | None:
    if any(isinstance(i, str) for i in index.items):
        return None
    return Sizes(tuple(data.items[int(i)] for i in index.items), index.rank)


def _concat(n: Node, *parts: Sizes) -> Sizes:
    return Sizes(tuple(item for part in parts for item in part.items))


def _slice(n: Node, data: Sizes, *bounds: Sizes) -> Sizes | None:
    numbers = [b.items for b in bounds]
    if data.rank != 1 or any(isinstance(i, str) for items in numbers for i in items):
        return None
    start, stop = int(numbers[0][0]), int(numbers[1][0])
    step = int(numbers[3][0]) if len(numbers) > 3 else 1
    return Sizes(data.items[start:stop:step])


def _squeeze(n: Node, data: Sizes, *axes: Sizes) -> Sizes | None:
    return Sizes(data.items, 0) if len(data.items) == 1 else None


def _unsqueeze(n: Node, data: Sizes, *axes: Sizes) -> Sizes | None:
    return Sizes(data.items, 1) if data.rank == 0 else None


def _same(n: Node, data: Sizes) -> Sizes | None:
    if n.op_type == "Cast" and n.dtype(n.attr("to")) not in ("i32", "i64"):
        return None
    return data


FOLDS: dict[str, Callable[..., Sizes | list[Sizes] | None]] = {
    **{name: _binary for name in BINARY},
    "Neg": _neg,
    "Gather": _gather, "Concat": _concat, "Slice": _slice, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze, "Identity": _same, "Cast": _same,
}  # fmt: skip
