"""One product for gate and up projection: rows of the two weights alternate, so that the activation finds both halves in one block."""

from __future__ import annotations

from tilewright.ir.graph import Graph, Op, Value
from tilewright.ir.opdef import Attr
from tilewright.passes.registry import register_pass
from tilewright.passes.rewriter import Change, Rewriter


@register_pass("fuse-gate-up")
def fuse_gate_up(graph: Graph, rw: Rewriter) -> None:
    """gated(linear(x, Wg), linear(x, Wu)) -> gated(linear(x, interleave(Wg, Wu))); the halves of one product likewise"""
    for op in rw.each("gated"):
        if len(op.inputs) != 2:
            continue
        gate, up = (v.producer for v in op.inputs)
        if gate is None or up is None:
            continue
        if gate.name == up.name == "linear":
            _fuse_two(op, gate, up, rw)
        elif gate.name == up.name == "slice" and gate.inputs[0] is up.inputs[0]:
            _fuse_halves(op, gate, up, rw)
        else:
            rw.missed(op.result, f"gate and up come from {gate.name} and {up.name}, not from two products or two halves of one")


def _fuse_two(op: Op, gate: Op, up: Op, rw: Rewriter) -> None:
    reason = ""
    if gate.inputs[0] is not up.inputs[0]:
        reason = f"gate reads {gate.inputs[0].display}, up reads {up.inputs[0].display}"
    elif len(gate.inputs) != len(up.inputs):
        reason = "one of the products has a bias, the other not"
    elif any(rw.only_reader(p.result) is not op for p in (gate, up)):
        reason = "gate or up is read elsewhere too"
    elif not all(v.is_const for p in (gate, up) for v in p.inputs[1:]):
        reason = "a weight is computed by the step"
    elif gate.inputs[1].type != up.inputs[1].type:
        reason = f"the weights are {gate.inputs[1]!r} and {up.inputs[1]!r}"
    if reason:
        return rw.missed(op.result, reason)
    name = f"{op.result.name}.gate_up"
    with rw.change(op.result, [op, gate, up], reason="two products of one activation") as change:
        pairs = [
            change.emit("interleave", [gate.inputs[i], up.inputs[i]], name=f"{name}.{word}") for i, word in zip(range(1, len(gate.inputs)), WORDS)
        ]
        _finish(change, op, gate.inputs[0], pairs, name)


def _fuse_halves(op: Op, gate: Op, up: Op, rw: Rewriter) -> None:
    product = gate.inputs[0].producer
    half = int(op.result.type.shape[-1])
    if product is None or product.name != "linear":
        return rw.missed(op.result, f"{gate.inputs[0].display} is no product")
    places = [(s.attrs["start"], s.attrs["stop"]) for s in (gate, up)]
    if sorted(places) != [(0, half), (half, 2 * half)] or set(product.result.users) != {gate, up} or product.result in rw.graph.outputs:
        return rw.missed(op.result, "gate and up are not the two halves of a product that nothing else reads")
    if not all(v.is_const for v in product.inputs[1:]):
        return rw.missed(op.result, "a weight is computed by the step")
    if product.inputs[1].type.encoding is not None:
        return rw.missed(op.result, f"its weight {product.inputs[1]!r} cannot be cut; fuse before it is quantized")
    name = f"{op.result.name}.gate_up"
    with rw.change(op.result, [op, gate, up, product], reason="two halves of one product") as change:
        pairs = [change.emit("interleave", _halves(change, v, places), name=f"{name}.{word}") for v, word in zip(product.inputs[1:], WORDS)]
        _finish(change, op, product.inputs[0], pairs, name)


WORDS = ("weight", "bias")


def _halves(change: Change, weight: Value, places: list[tuple[Attr, Attr]]) -> list[Value]:
    return [change.emit("slice", [weight], {"axis": 0, "start": start, "stop": stop}) for start, stop in places]


def _finish(change: Change, op: Op, x: Value, pairs: list[Value], name: str) -> None:
    product = change.emit("linear", [x, *pairs], name=name)
    for pair in pairs:
        assert pair.producer is not None
        for part in pair.producer.inputs:
            change.relate(pair, "interleave", part)
    change.take_over(change.emit("gated", [product], op.attrs), op.result)
