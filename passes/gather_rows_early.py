"""Computes logits only for the rows asked for: the gather moves before what works row by row."""

from __future__ import annotations

from tilewright.ir.graph import Graph
from tilewright.passes.registry import register_pass
from tilewright.passes.rewriter import Rewriter

BY_ROW = ("rms_norm", "layer_norm", "cast")


@register_pass("gather-rows-early")
def gather_rows_early(graph: Graph, rw: Rewriter) -> None:
    """gather_rows(norm(x, w), rows) -> norm(gather_rows(x, rows), w)"""
    for op in rw.each("gather_rows"):
        source = op.inputs[0].producer
        while source is not None and not op.inputs[0].is_const and source.name in BY_ROW and not rw.log.is_exhausted:
            if rw.only_reader(source.result) is not op:
                rw.missed(op.result, f"{source.result.display} is read elsewhere too")
                break
            with rw.change(op.result, [op, source], reason=f"a row of {source.name} needs that row alone") as change:
                rows = change.emit("gather_rows", [source.inputs[0], op.inputs[1]], name=f"{source.inputs[0].name}.rows")
                change.take_over(change.emit(source.definition, [rows, *source.operands[1:]], source.attrs), op.result)
            assert rows.producer is not None
            op = rows.producer
            source = op.inputs[0].producer
