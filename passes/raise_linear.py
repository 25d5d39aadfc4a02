"""Raises what belongs to a linear layer: a bias added after the product."""

from __future__ import annotations

from tilewright.passes.pattern import Match
from tilewright.passes.registry import rewrite
from tilewright.passes.rewriter import Rewriter


@rewrite("raise-bias", "add(linear(x, weight), bias)")
def raise_bias(m: Match, rw: Rewriter) -> str | None:
    """linear(x, W) + b -> linear(x, W, b)"""
    if not m.bias.is_const or m.bias.type.shape != m.root.type.shape[-1:]:
        return f"{m.bias!r} is no constant of one value for each column"
    rw.replace(m.root, "linear", [m.x, m.weight, m.bias], removed=m.ops)
    return None
