"""Checks that a graph is what it claims: types, names, order, use lists, level. Reports the op among its neighbours."""

from __future__ import annotations

from collections.abc import Collection

from tilewright.ir.errors import GraphError
from tilewright.ir.graph import Graph, Op
from tilewright.ir.opdef import Level
from tilewright.ir.printer import print_op

ALL_LEVELS: tuple[Level, ...] = ("core", "semantic", "paged")


def verify(graph: Graph, *, levels: Collection[Level] = ALL_LEVELS) -> None:
    """Raises GraphError at the first op that does not hold, shown in a window of its neighbours with its module path and last rule."""
    seen = set(graph.inputs) | set(graph.params.values())
    ops = graph.ops
    for place, op in enumerate(ops):
        problem = _problem(graph, op, seen, levels)
        if problem:
            raise GraphError(f"verify {graph.name}", problem, _window(ops, place))
        seen.update(op.results)
    for value in graph.outputs:
        if value not in seen:
            raise GraphError(f"verify {graph.name}", f"returns {value.display}, which nothing defines")
    if not graph.outputs:
        raise GraphError(f"verify {graph.name}", "returns nothing")


def _problem(graph: Graph, op: Op, seen: Collection[object], levels: Collection[Level]) -> str:
    if op.definition.level not in levels:
        return f"{op.name} is a {op.definition.level} op; this stage has {', '.join(levels)}"
    for value in op.inputs:
        if value not in seen:
            return f"{value.display} is used before it is defined"
        if op not in value.users:
            return f"{value.display} does not list {op.name} among its users"
    try:
        types = op.definition.result_types(tuple(v.type if v is not None else None for v in op.operands), op.attrs)
    except GraphError as error:
        return str(error)
    for value, type_ in zip(op.results, types):
        if value.type != type_:
            return f"{value.display} is declared {value.type}, {op.name} gives {type_}"
        if graph.value(value.name) is not value:
            return f"two values are named {value.display}"
        if value.producer is not op:
            return f"{value.display} does not know its producer {op.name}"
        if any(user not in graph for user in value.users):
            return f"{value.display} lists a user that is not in the graph"
        if value.is_const != (all(v.is_const for v in op.inputs) and type_.is_static):
            return f"{value.display} is {'a' if value.is_const else 'no'} constant, its operands say otherwise"
    return ""


def _window(ops: list[Op], place: int, reach: int = 3) -> str:
    lines = [f"{'-->' if i == place else '   '} {print_op(ops[i])}" for i in range(max(0, place - reach), min(len(ops), place + reach + 1))]
    sources = ", ".join(ops[place].loc.sources)
    return "\n" + "\n".join(lines) + (f"\n    from {sources}" if sources else "")
