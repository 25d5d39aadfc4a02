"""Raises root-mean-square norms from the ops that models write them with, in each of their rounding orders."""

from __future__ import annotations

from tilewright.ir.graph import Value
from tilewright.passes.pattern import Match
from tilewright.passes.registry import rewrite
from tilewright.passes.rewriter import Rewriter

NORMED = "mul(x, rsqrt(add{scalar=eps}(mean{axis=axis keepdim=true}(pow{exponent=2.0}(x)))))"


@rewrite(
    "raise-rms-norm",
    f"cast?(mul({NORMED}, add{{scalar=offset}}(cast?(weight))))",  # cast(h * (1 + w)): Gemma
    f"mul({NORMED}, add{{scalar=offset}}(cast?(weight)))",
    f"mul(weight, cast({NORMED}))",  # w * cast(h): Llama
    f"cast(mul(cast?(weight), {NORMED}))",  # cast(w * h): gpt-oss, OLMo 2
    f"mul(weight, {NORMED})",
    per_layer="attention",
)
def raise_rms_norm(m: Match, rw: Rewriter) -> str | None:
    """x / sqrt(mean(x²) + eps) * weight -> rms_norm, with the order in which it rounds (Zhang and Sennrich 2019)."""
    x = _before_cast(m.x, m.root)
    if m.axis not in (-1, m.x.type.rank - 1):
        return f"the mean is over axis {m.axis} of {m.x.type}, not the last"
    if not m.weight.is_const or m.weight.type.shape != m.root.type.shape[-1:]:
        return f"{m.weight!r} is no constant scale of the last axis"
    if x.type != m.root.type:
        return f"x is {x.type}, the result {m.root.type}"
    rounds_before = m.ops[0].name == "mul" and "offset" not in m.attrs
    attrs = {"eps": m.eps, "rounding": "before_scale" if rounds_before else "after_scale", "offset": float(m.attrs.get("offset", 0.0))}
    casts = [m.x.producer] if x is not m.x and m.x.producer else []
    rw.replace(m.root, "rms_norm", [x, m.weight], attrs, removed=[*m.ops, *casts])
    return None


def _before_cast(x: Value, result: Value) -> Value:
    """What x was cast from, where the norm gives that type back: the norm casts by itself."""
    op = x.producer
    is_widened = op is not None and op.name == "cast" and x.type.dtype == "f32" and x.type != result.type
    return op.inputs[0] if op is not None and is_widened else x
