"""One product for queries, keys and values: it reads the activation once, and its results stay views of one buffer."""

from __future__ import annotations

from itertools import takewhile

from tilewright.ir.graph import Graph, Op, Value
from tilewright.passes.registry import register_pass
from tilewright.passes.rewriter import Rewriter

# What may stand between a projection and attention: each reads its first operand alone, row by row.
BETWEEN = ("reshape", "transpose", "rotary", "rms_norm", "layer_norm", "slice", "mul")


@register_pass("fuse-qkv", per_layer="attention")
def fuse_qkv(graph: Graph, rw: Rewriter) -> None:
    """linear(x, Wq), linear(x, Wk), linear(x, Wv) -> linear(x, concat(Wq, Wk, Wv)) and slices of its columns"""
    for op in rw.each("attention"):
        linears = [_projection(value) for value in op.inputs[:3]]
        if linears[0] is not None and linears[0] is linears[1] is linears[2]:
            continue  # the model has them in one already
        reason = _reason(linears)
        if reason:
            rw.missed(op.result, reason)
        else:
            _fuse([linear for linear in linears if linear is not None], rw)


def _projection(value: Value) -> Op | None:
    op = value.producer
    while op is not None and op.name in BETWEEN:
        op = op.inputs[0].producer
    return op if op is not None and op.name == "linear" else None


def _reason(linears: list[Op | None]) -> str:
    found = [linear for linear in linears if linear is not None]
    if len(found) != 3 or len(set(found)) != 3:
        return "queries, keys and values do not come from three products"
    if len({linear.inputs[0] for linear in found}) != 1:
        return f"the products read {' and '.join(dict.fromkeys(linear.inputs[0].display for linear in found))}"
    if len({len(linear.inputs) for linear in found}) != 1:
        return "some of the products have a bias, others not"
    if any(not operand.is_const for linear in found for operand in linear.inputs[1:]):
        return "a weight is computed by the step"
    if len({(linear.inputs[1].type.dtype, linear.inputs[1].type.encoding) for linear in found}) != 1:
        return f"the weights are {' and '.join(repr(linear.inputs[1]) for linear in found)}"
    return ""


def _fuse(linears: list[Op], rw: Rewriter) -> None:
    x = linears[0].inputs[0]
    first = linears[0].result
    stem = f"{_parent([linear.result.name for linear in linears])}.qkv"
    with rw.change(first, linears, reason="three products of one activation") as change:
        joined = [
            change.emit("concat", [linear.inputs[i] for linear in linears], {"axis": 0}, name=f"{stem}.{word}")
            for i, word in zip(range(1, len(linears[0].inputs)), ("weight", "bias"))
        ]
        fused = change.emit("linear", [x, *joined], name=stem)
        start = 0
        for linear in linears:
            width = int(linear.result.type.shape[-1])
            cut = {"axis": len(linear.result.type.shape) - 1, "start": start, "stop": start + width}
            change.relate(fused, "concat", linear.result)
            change.take_over(change.emit("slice", [fused], cut), linear.result)
            start += width


def _parent(names: list[str]) -> str:
    """The longest common module path."""
    shared = takewhile(lambda words: len(set(words)) == 1, zip(*(name.split(".") for name in names)))
    return ".".join(words[0] for words in shared)
