"""Smaller versions of a graph to try: fewer ops, smaller sizes. Decides nothing; what does not fit together raises GraphError or is None."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from tilewright.inspect.slices import extract, reach_up
from tilewright.ir.graph import Graph, Op, Value
from tilewright.ir.opdef import Attr
from tilewright.ir.types import TensorType

SIZE_ATTRS = ("shape", "start", "stop", "head_dim", "size", "length")  # attributes that count elements


def without(graph: Graph, name: str, left_out: Collection[Op]) -> Graph:
    """What makes the tensor, without these ops and what only they read: their results become inputs."""
    target = graph.value(name)
    return extract(graph, reach_up(target, left_out), [target])


def chunks_of(ops: list[Op]) -> Iterator[list[Op]]:
    """Halves, quarters, … single ops, the first ones first."""
    size = max(1, len(ops) // 2)
    while True:
        yield from (ops[start : start + size] for start in range(0, len(ops), size))
        if size == 1:
            return
        size = max(1, size // 2)


def sizes_of(graph: Graph) -> list[int]:
    """Static sizes above 1, largest first."""
    types = [value.type for value in (*graph.inputs, *graph.params.values())]
    return sorted({dim for type_ in types for dim in type_.shape if isinstance(dim, int) and dim > 1}, reverse=True)


def resize_one(old: int, new: int) -> Callable[[int], int]:
    return lambda size: new if size == old else size


def halve(size: int) -> int:
    """Sizes of at least 4 that are even; what else there is stays."""
    return size // 2 if size >= 4 and size % 2 == 0 else size


def resize(graph: Graph, change: Callable[[int], int]) -> Graph:
    """The same ops on other sizes. Raises GraphError where they do not fit."""

    def resized(type_: TensorType) -> TensorType:
        return TensorType(type_.dtype, tuple(change(d) if isinstance(d, int) else d for d in type_.shape), type_.encoding)

    small = Graph(graph.name, graph.dims)
    values: dict[Value, Value] = {v: small.add_input(v.name, resized(v.type)) for v in graph.inputs}
    values |= {v: small.add_param(name, resized(v.type)) for name, v in graph.params.items()}
    for op in graph.ops:
        attrs = {key: _resize_attr(attr, change) if key in SIZE_ATTRS else attr for key, attr in op.attrs.items()}
        operands = [None if v is None else values[v] for v in op.operands]
        node = small.emit(op.definition, operands, attrs, names=[v.name for v in op.results], loc=op.loc, key=op.key)
        values.update(zip(op.results, node.results))
    small.outputs = [values[v] for v in graph.outputs]
    return small


def _resize_attr(attr: Attr, change: Callable[[int], int]) -> Attr:
    if isinstance(attr, tuple):
        return tuple(change(item) if isinstance(item, int) else item for item in attr)
    return change(attr) if isinstance(attr, int) and not isinstance(attr, bool) else attr


def num_elements(graph: Graph, num_tokens: int) -> int:
    """Of inputs and parameters, T and S taken as num_tokens."""
    dims = dict.fromkeys(graph.dims, num_tokens)
    return sum(value.type.num_elements(dims) for value in (*graph.inputs, *graph.params.values()))
