"""Passes that are wrong on purpose, and say where: `inject` puts one fault into one layer, `corrupt-nth` spoils one of its rewrites."""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.ir.graph import Graph, Op, Value
from tilewright.passes.registry import register_pass
from tilewright.passes.rewriter import Rewriter

STEM = "model.layers"


def in_layer(graph: Graph, name: str, layer: int) -> Value:
    return graph.value(f"{STEM}.{layer}.{name}")


def again(change, op: Op, operands=None, **attrs) -> Value:
    return change.emit(op.definition, operands or op.operands, {**op.attrs, **attrs})


def with_attrs(op, rw, **attrs):
    rw.replace(op.result, op.definition, op.operands, {**op.attrs, **attrs})


def scale_by_a_percent(op, rw):
    with rw.change(op.result, [op]) as change:
        change.take_over(change.emit("mul", [again(change, op)], {"scalar": 1.01}), op.result)


def wrong_eps(op, rw):
    with_attrs(op, rw, eps=op.attrs["eps"] * 10)


def swapped_halves(op, rw):
    x, cos, sin = op.inputs
    with rw.change(op.result, [op]) as change:
        change.take_over(again(change, op, [x, cos, change.emit("neg", [sin])]), op.result)


def transposed_weight(op, rw):
    x, weight = op.inputs
    with rw.change(op.result, [op]) as change:
        turned = change.emit("transpose", [weight], {"perm": (1, 0)})
        change.take_over(again(change, op, [x, turned]), op.result)


def shifted_position(op, rw):
    x, cos, sin = op.inputs
    with rw.change(op.result, [op]) as change:
        table, positions = cos.producer.inputs
        before = change.emit("maximum", [change.emit("sub", [positions], {"scalar": 1.0})], {"scalar": 0.0})
        change.take_over(again(change, op, [x, change.emit("gather_rows", [table, before]), sin]), op.result)


def dropped_residual(op, rw):
    with rw.change(op.result, [op]) as change:
        change.take_over(change.emit("mul", [op.inputs[1]], {"scalar": 1.0}), op.result)


def window_off_by_one(op, rw):
    with_attrs(op, rw, window=op.attrs["window"] + 1)


def swapped_gate_and_up(op, rw):
    rw.replace(op.result, op.definition, op.operands[::-1], op.attrs)


def wrong_softmax_scale(op, rw):
    with_attrs(op, rw, scale=op.attrs["scale"] * 1.1)


def missing_bias(op, rw):
    rw.replace(op.result, op.definition, op.operands[:2], op.attrs)


def truncated_dtype(op, rw):
    with rw.change(op.result, [op]) as change:
        short = change.emit("cast", [again(change, op)], {"dtype": "bf16"})
        change.take_over(change.emit("cast", [short], {"dtype": op.result.type.dtype}), op.result)


def wrong_head_mapping(op, rw):
    """Each query head reads the keys of the next one's group, and is put back where it was."""
    q, kv = op.inputs
    width = int(q.type.shape[1])
    turn = width // int(op.attrs["heads"])
    with rw.change(op.result, [op]) as change:

        def roll(value: Value, start: int) -> Value:
            parts = [change.emit("slice", [value], {"axis": 1, "start": a, "stop": b}) for a, b in ((start, width), (0, start))]
            return change.emit("concat", parts, {"axis": 1})

        change.take_over(roll(again(change, op, [roll(q, turn), kv]), width - turn), op.result)


# fault -> (model of the zoo, value in the layer that is wrong)
FAULTS = {
    scale_by_a_percent: ("qwen2", "mlp.down_proj"),
    wrong_eps: ("qwen2", "input_layernorm"),
    swapped_halves: ("qwen2", "self_attn.add.rotary"),
    transposed_weight: ("qwen2", "self_attn.o_proj"),
    shifted_position: ("qwen2", "self_attn.add.1.rotary"),
    dropped_residual: ("qwen2", "add"),
    window_off_by_one: ("mistral", "self_attn.attention"),
    swapped_gate_and_up: ("qwen2", "mlp.mul.gate_up.weight"),
    wrong_softmax_scale: ("qwen2", "self_attn.attention"),
    missing_bias: ("qwen2", "self_attn.qkv"),
    truncated_dtype: ("qwen2", "mlp.mul"),
    wrong_head_mapping: ("mistral", "self_attn.attention"),
}


@register_pass("inject")
@dataclass(frozen=True)
class Inject:
    """One of FAULTS in one layer."""

    fault: str = ""
    layer: int = 0

    def run(self, graph: Graph, rw: Rewriter) -> None:
        fault = next(function for function in FAULTS if function.__name__ == self.fault)
        fault(in_layer(graph, FAULTS[fault][1], self.layer).producer, rw)


@register_pass("corrupt-nth")
@dataclass(frozen=True)
class CorruptNth:
    """x + y -> y + x for every residual, but the n-th becomes x + 1.05 y."""

    n: int = 1

    def run(self, graph: Graph, rw: Rewriter) -> None:
        count = 0
        for op in rw.each("add"):
            if len(op.inputs) != 2:
                continue
            count += 1
            x, y = op.inputs
            with rw.change(op.result, [op]) as change:
                other = change.emit("mul", [y], {"scalar": 1.05}) if count == self.n else y
                change.take_over(change.emit("add", [other, x]), op.result)
