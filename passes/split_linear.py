"""Cuts a product whose columns are interleaved by head into products of its own, by cutting the weight instead of the result.

GPT-NeoX and Falcon store q, k and v of a head next to each other: a slice of each head's columns is strided, a slice of weight rows is free.
"""

from __future__ import annotations

from tilewright.ir.graph import Graph, Op, Value
from tilewright.passes.registry import register_pass
from tilewright.passes.rewriter import Change, Rewriter

NAMES = ("q_proj", "k_proj", "v_proj")


@register_pass("split-linear")
def split_linear(graph: Graph, rw: Rewriter) -> None:
    """slice(reshape(linear(x, W))) -> reshape(linear(x, slice of W's rows)), where all readers of the product are such slices."""
    for op in rw.each("linear"):
        cuts = _cuts(graph, op)
        if isinstance(cuts, str):
            rw.missed(op.result, cuts)
        elif cuts:
            _split(op, cuts, rw)


def _cuts(graph: Graph, op: Op) -> list[Op] | str:
    """Slices of the product by head; a reason where some reader is none; nothing where it is not cut by head at all."""
    readers = list(op.result.users)
    if op.result in graph.outputs or len(readers) != 1 or readers[0].name != "reshape":
        return []
    cut = readers[0].result
    slices = list(cut.users)
    if cut.type.rank < 3 or cut in graph.outputs or not any(s.name == "slice" for s in slices):
        return []
    if op.result.type.rank != 2 or cut.type.shape[0] != op.result.type.shape[0]:
        return f"{op.result!r} becomes {cut!r}: its rows do not stay rows"
    wrong = next((s for s in slices if s.name != "slice"), None)
    if wrong is not None:
        return f"{cut.display} is cut by head, but {wrong.results[0].display} reads it whole"
    strided = next((s for s in slices if int(s.attrs["axis"]) % cut.type.rank == 0 or s.attrs["step"] != 1), None)  # type: ignore[arg-type]
    if strided is not None:
        return f"{strided.result!r} is no block of columns of {cut!r}"
    if not op.inputs[1].is_const or op.inputs[1].type.encoding is not None:
        return f"its weight {op.inputs[1].display} cannot be cut"
    return slices


def _split(op: Op, cuts: list[Op], rw: Rewriter) -> None:
    x, weight, *bias = op.inputs
    view = cuts[0].inputs[0]
    heads = tuple(int(d) for d in view.type.shape[1:])
    with rw.change(op.result, [op, *(p for p in [view.producer] if p), *cuts], reason=f"{len(cuts)} parts, interleaved in the weight") as change:
        for position, cut in enumerate(cuts):
            name = f"{op.result.name}.{NAMES[position] if len(cuts) == 3 else position}"
            part = _rows(change, weight, heads, cut, f"{name}.weight")
            operands = [x, part, *(_rows(change, b, heads, cut, f"{name}.bias") for b in bias)]
            product = change.emit("linear", operands, name=name)
            change.take_over(change.emit("reshape", [product], {"shape": cut.result.type.shape}), cut.result)


def _rows(change: Change, weight: Value, heads: tuple[int, ...], cut: Op, name: str) -> Value:
    """The rows of a weight [N, K] or bias [N] that give the columns of the cut."""
    tail = weight.type.shape[1:]
    by_head = change.emit("reshape", [weight], {"shape": (*heads, *tail)})
    axis = int(cut.attrs["axis"]) % cut.result.type.rank - 1  # type: ignore[arg-type]
    rows = change.emit("slice", [by_head], {**cut.attrs, "axis": axis})
    count = 1
    for d in cut.result.type.shape[1:]:
        count *= int(d)
    result = change.emit("reshape", [rows], {"shape": (count, *tail)}, name=name)
    change.relate(result, "rows", weight)
    return result
