"""Weight-only quantization: linear weights become integers with a scale for each output row. Activations stay as they are."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch

from tilewright.ir.errors import PassError
from tilewright.ir.graph import Graph, Op, Value
from tilewright.passes.registry import register_pass
from tilewright.passes.rewriter import Rewriter


@register_pass("quantize", tolerance=0.1)
@dataclass(frozen=True)
class Quantize:
    """@w -> quantize(@w) in every linear, w ≈ data * scale[row]. A fused weight gives the same integers as its parts."""

    dtype: str = "i8"
    head: bool = True  # the product that gives the logits too
    skip: str = ""  # weights to leave alone: names or globs, joined by |

    def run(self, graph: Graph, rw: Rewriter) -> None:
        """Raises PassError for a dtype that is not i8, and for a skip that names no weight."""
        if self.dtype != "i8":
            raise PassError("quantize", f"dtype={self.dtype!r}", "this version quantizes to i8")
        globs = [g for g in self.skip.split("|") if g]
        skipped: set[str] = set()
        quantized: dict[Value, Value] = {}
        for op in rw.each("linear"):
            weight = op.inputs[1]
            if weight.type.encoding is not None:
                continue
            if not weight.is_const:
                rw.missed(op.result, f"its weight {weight.display} is computed by the step")
                continue
            if is_head(graph, op) and not self.head:
                rw.missed(op.result, "head=false")
                continue
            hits = {g for g in globs for name in source_names(weight) if fnmatch(name, g) or f".{g}." in f".{name}."}
            skipped |= hits
            if hits:
                rw.missed(op.result, f"skip={'|'.join(sorted(hits))}")
                continue
            _quantize(op, weight, self.dtype, quantized, rw)
        for glob in [] if rw.log.is_exhausted else set(globs) - skipped:  # past the limit, not every weight was looked at
            raise PassError("quantize", f"skip={glob!r} names no linear weight", "give a part of a module path, as in skip=lm_head")


def is_head(graph: Graph, op: Op) -> bool:
    """The logits come from this product through pointwise ops alone."""
    value = op.result
    while value not in graph.outputs:
        users = list(value.users)
        if len(users) != 1 or not users[0].definition.pointwise:
            return False
        value = users[0].result
    return True


def source_names(weight: Value) -> list[str]:
    """The parameters that a constant is made of."""
    if weight.producer is None:
        return [weight.name]
    return [name for operand in weight.producer.inputs for name in source_names(operand)]


def _quantize(op: Op, weight: Value, dtype: str, done: dict[Value, Value], rw: Rewriter) -> None:
    with rw.change(op.result, [op]) as change:
        if weight not in done:
            done[weight] = change.emit("quantize", [weight], {"dtype": dtype}, name=f"{weight.name}.{dtype}")
            change.relate(done[weight], "quantize", weight)
        change.take_over(change.emit("linear", [op.inputs[0], done[weight], *op.inputs[2:]]), op.result)
