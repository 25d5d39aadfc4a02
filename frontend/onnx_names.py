"""IR names for what an ONNX file names, and the graph under them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tilewright.ir.graph import Graph, Value
from tilewright.ir.types import Bounds

MAX_SIZE = 1 << 16  # of a symbol whose bounds the file does not tell


@dataclass(frozen=True, slots=True)
class Names:
    """Names that are free in a graph, and can be read back from its text."""

    graph: Graph

    def value(self, name: str) -> str:
        return self.graph.fresh_name(re.sub(r"[^\w./<>-]", "_", name).strip("/") or "value")

    @staticmethod
    def symbol(name: str) -> str:
        word = re.sub(r"\W", "_", name)
        return word if re.match(r"[A-Za-z_]", word) else f"d{word}"


def read_bounds(told: Mapping[str, str], symbol: str) -> Bounds:
    """Of a size, as our own files tell it."""
    match = re.fullmatch(r"(\d+)\.\.(\d+)", told.get(f"tilewright.dim.{symbol}", ""))
    return Bounds(int(match[1]), int(match[2])) if match else Bounds(1, MAX_SIZE)


def rename(graph: Graph, told: Mapping[Value, str]) -> Graph:
    """A copy whose values have other names."""
    twin = Graph(graph.name, graph.dims)
    names = Names(twin)
    values: dict[Value, Value] = {v: twin.add_input(v.name, v.type) for v in graph.inputs}
    values |= {v: twin.add_param(name, v.type) for name, v in graph.params.items()}
    for op in graph.ops:
        operands = [None if v is None else values[v] for v in op.operands]
        results = [names.value(told.get(v, v.name)) for v in op.results]
        values.update(zip(op.results, twin.emit(op.definition, operands, op.attrs, names=results, loc=op.loc).results))
    twin.outputs = [values[v] for v in graph.outputs]
    return twin


def drop_dead(graph: Graph) -> None:
    for op in reversed(graph.ops):
        if not any(v.users or v in graph.outputs for v in op.results):
            graph.erase(op)
    for name in [name for name, value in graph.params.items() if not value.users and value not in graph.outputs]:
        graph.drop_param(name)
