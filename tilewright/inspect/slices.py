"""Parts of a graph as graphs of their own: what is read from outside becomes an input. The graph that they are taken from stays as it is."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from tilewright.inspect.numerics import signature
from tilewright.ir.graph import Graph, Op, Value


def cut_out(before: Graph, after: Graph, name: str) -> Graph:
    """What makes the tensor in `before`, down from the nearest values that both graphs make in the same way."""
    unchanged = {signature(op) for op in before.ops} & {signature(op) for op in after.ops}
    target = before.value(name)
    return extract(before, reach_up(target, {op for op in before.ops if signature(op) in unchanged and not op.is_const}), [target])


def reach_up(target: Value, stops: Collection[Op]) -> list[Op]:
    """The ops that the target is made by, without `stops` and what is above them; the target's own op is among them anyhow."""
    found: dict[Op, None] = {}
    waiting = [target.producer]
    while waiting:
        op = waiting.pop()
        if op is None or op in found or (op in stops and op is not target.producer):
            continue
        found[op] = None
        waiting += [value.producer for value in op.inputs]
    return list(found)


def extract(graph: Graph, ops: Iterable[Op], outputs: Iterable[Value]) -> Graph:
    """A graph of these ops and the constants that they read."""
    wanted = with_constants(graph, ops)
    small = Graph(graph.name, graph.dims)
    made = {value for op in wanted for value in op.results}
    values: dict[Value, Value] = {}
    for value in dict.fromkeys(v for op in wanted for v in op.inputs if v not in made):
        values[value] = small.add_param(value.name, value.type) if value.is_param else small.add_input(value.name, value.type)
    for op in wanted:
        operands = [None if v is None else values[v] for v in op.operands]
        node = small.emit(op.definition, operands, op.attrs, names=[v.name for v in op.results], loc=op.loc, key=op.key)
        values.update(zip(op.results, node.results))
    small.outputs = [values[v] for v in outputs]
    return small


def with_constants(graph: Graph, ops: Iterable[Op]) -> list[Op]:
    """In the graph's order."""
    wanted = set(ops)
    waiting = list(wanted)
    while waiting:
        for value in waiting.pop().inputs:
            if value.is_const and value.producer is not None and value.producer not in wanted:
                wanted.add(value.producer)
                waiting.append(value.producer)
    return [op for op in graph.ops if op in wanted]
