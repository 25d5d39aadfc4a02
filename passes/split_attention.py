"""Splits attention at the paged cache: one op writes this step's keys and values, one reads those of the whole request."""

from __future__ import annotations

from tilewright.ir.graph import Graph
from tilewright.passes.registry import register_pass
from tilewright.passes.rewriter import Rewriter


@register_pass("split-attention", levels=("core", "semantic", "paged"), per_layer="attention")
def split_attention(graph: Graph, rw: Rewriter) -> None:
    """attention(q, k, v) -> attend(q, write_kv(k, v))"""
    for op in rw.each("attention"):
        q, k, v, *slopes = op.inputs
        attrs = dict(op.attrs)
        kv_heads = attrs.pop("kv_heads")
        with rw.change(op.result, [op]) as change:
            kv = change.emit("write_kv", [k, v], {"kv_heads": kv_heads, "layer": attrs["layer"]}, name=f"{op.result.name}.kv")
            change.take_over(change.emit("attend", [q, kv, *slopes], attrs), op.result)
