"""An analysis: it changes nothing, and remarks what each product must read and compute; `tilewright why RUN count-cost` prints it."""

from dataclasses import dataclass

import tilewright as tw


@tw.register_pass("count-cost")
@dataclass(frozen=True)
class CountCost:
    """A remark for each product: bytes and operations at a number of tokens."""

    tokens: int = 1

    def run(self, graph, rw: tw.Rewriter) -> None:
        dims = dict.fromkeys(graph.dims, self.tokens)
        for op in rw.each("linear", "attention"):
            types = tuple(v.type if v is not None else None for v in op.operands)
            cost = op.definition.cost(types, tuple(v.type for v in op.results), dims, op.attrs)
            rw.missed(op.result, f"{cost.bytes:,} bytes, {cost.operations:,} operations at {self.tokens} tokens")
