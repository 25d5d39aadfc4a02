"""Raises activations: GELU written out with tanh, and gated activations `act(gate) * up`."""

from __future__ import annotations

from tilewright.ir.graph import Graph
from tilewright.passes.pattern import Match
from tilewright.passes.registry import register_pass, rewrite
from tilewright.passes.rewriter import Rewriter

ROOT_2_BY_PI = 0.7978845608028654
GATES = {"silu": "silu", "gelu": "gelu", "relu": "relu", "sigmoid": "sigmoid"}


@rewrite(
    "raise-gelu",
    "mul(mul{scalar=0.5}(x), add{scalar=1.0}(tanh(mul{scalar=factor}(add(x, mul{scalar=0.044715}(pow{exponent=3.0}(x)))))))",
)
def raise_gelu(m: Match, rw: Rewriter) -> str | None:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x³))) -> gelu{approximate=tanh} (Hendrycks and Gimpel 2016)."""
    if abs(m.factor - ROOT_2_BY_PI) > 1e-6:
        return f"its factor is {m.factor!r}, not sqrt(2 / pi)"
    rw.replace(m.root, "gelu", [m.x], {"approximate": "tanh"}, removed=m.ops)
    return None


@register_pass("raise-gated")
def raise_gated(graph: Graph, rw: Rewriter) -> None:
    """act(gate) * up -> gated(gate, up) (Shazeer 2020)."""
    for op in rw.each("mul"):
        for position, operand in enumerate(op.inputs[:2]):
            act = operand.producer
            if act is None or act.name not in GATES or len(op.inputs) != 2:
                continue
            up = op.inputs[1 - position]
            if up.type != operand.type:
                rw.missed(op.result, f"it multiplies {operand!r} by {up!r}: a gate and its up projection are of one type")
                continue
            if rw.only_reader(operand) is not op:
                rw.missed(op.result, f"{operand.display} is read elsewhere too")
                continue
            tanh = act.attrs.get("approximate") == "tanh"
            rw.replace(op.result, "gated", [act.inputs[0], up], {"activation": "gelu_tanh" if tanh else GATES[act.name]}, removed=[act])
            break
