"""A precision policy per layer: int8 in the middle, the first and last layers and the head as they are."""

from dataclasses import dataclass

import tilewright as tw


@tw.register_pass("quantize-middle-layers", tolerance=0.1)
@dataclass(frozen=True)
class QuantizeMiddleLayers:
    """linear(x, W) -> linear(x, quantize(W)), but in the first and last `keep` layers."""

    keep: int = 1

    def run(self, graph, rw: tw.Rewriter) -> None:
        layer_of = {op: [int(w) for m in op.loc.modules for w in m.split(".") if w.isdigit()] for op in graph.find("linear")}
        count = 1 + max((n for numbers in layer_of.values() for n in numbers), default=0)
        for op in rw.each("linear"):
            if op.inputs[1].type.encoding is not None:
                continue
            if not layer_of[op] or not self.keep <= layer_of[op][0] < count - self.keep:
                rw.missed(op.result, "in no layer" if not layer_of[op] else f"layer {layer_of[op][0]} of {count} stays as it is")
                continue
            with rw.change(op.result, [op]) as change:
                integers = change.emit("quantize", [op.inputs[1]], name=f"{op.inputs[1].name}.i8")
                change.take_over(change.emit("linear", [op.inputs[0], integers, *op.inputs[2:]]), op.result)
