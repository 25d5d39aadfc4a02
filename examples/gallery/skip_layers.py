"""An experiment: what is left of a model without some of its layers? Their residual additions add nothing; what they read dies out."""

from dataclasses import dataclass

import tilewright as tw


@tw.register_pass("skip-layers", tolerance=10.0)
@dataclass(frozen=True)
class SkipLayers:
    """x + f(x) -> x in the layers named; the layers that are left are numbered anew."""

    layers: str = ""  # as in 3|5

    def run(self, graph, rw: tw.Rewriter) -> None:
        skipped = {f".{layer}" for layer in self.layers.split("|") if layer}
        for op in rw.each("add"):
            if len(op.inputs) == 2 and any(module.endswith(ending) for module in op.loc.modules for ending in skipped):
                rw.forward(op.result, op.inputs[0], reason="its layer is skipped")
        for op in reversed(graph.ops):
            if not any(value.users or value in graph.outputs for value in op.results):
                rw.erase(op, reason="only a skipped layer read it")
        for number, op in enumerate(graph.find("attention")):
            if op.attrs["layer"] != number:
                rw.replace(op.result, "attention", op.operands, {**op.attrs, "layer": number})
