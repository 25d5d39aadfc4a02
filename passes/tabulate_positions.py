"""Turns what depends on positions alone (cos and sin of rotary embeddings, whatever their scaling) into constant tables read by position."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from tilewright.ir.errors import PassError
from tilewright.ir.graph import Graph, Op, Value
from tilewright.ir.opdef import Attr
from tilewright.passes.registry import register_pass
from tilewright.passes.rewriter import Change, Rewriter

GATHERS = ("gather_rows", "embedding")
REDUCTIONS = ("mean", "sum", "max", "softmax")
BY_TOKEN = ("transpose", "expand", "concat", "slice", "linear")  # beside pointwise ops: they leave each token's part to itself


@register_pass("tabulate-positions")
@dataclass(frozen=True)
class TabulatePositions:
    """f(positions) -> gather_rows(@table, positions), table = f(0 .. length - 1)."""

    length: int = 0  # positions in a table: the longest sequence that will be served; 0: as many as the graph's T may have

    def run(self, graph: Graph, rw: Rewriter) -> None:
        """Raises PassError for a length below 0, and where the graph has no input %positions with one position for each token."""
        positions = _find_positions(graph)
        if self.length < 0:
            raise PassError("tabulate-positions", f"length={self.length} is below 0", "give the positions of the longest sequence")
        length = self.length or graph.dims["T"].high
        refused: set[Value] = set()
        while not rw.log.is_exhausted:
            graph.sort()
            alone = _depends_on(graph, positions)  # found anew: a table may stand where another begins
            value = next((v for v in alone if v not in refused and _is_frontier(graph, v, alone)), None)
            if value is None:
                return
            cone = _cone(value, alone)
            reason = _why_not(value, cone)
            if reason:
                refused.add(value)
                rw.missed(value, reason)
            else:
                _tabulate(value, positions, length, cone, rw)


def _find_positions(graph: Graph) -> Value:
    positions = next((v for v in graph.inputs if v.name == "positions"), None)
    if positions is None:
        raise PassError("tabulate-positions", "the graph has no input %positions", "it has " + ", ".join(v.display for v in graph.inputs))
    if positions.type.shape != ("T",):
        raise PassError("tabulate-positions", f"the input is {positions!r}", f"it must be {positions.type.with_shape('T')}: one for each token")
    return positions


def _depends_on(graph: Graph, positions: Value) -> dict[Value, None]:
    """Values that depend on positions and constants only, in order."""
    found: dict[Value, None] = {positions: None}
    for op in graph.ops:
        if not op.is_const and all(v.is_const or v in found for v in op.inputs):
            found.update(dict.fromkeys(op.results))
    return found


def _is_frontier(graph: Graph, value: Value, alone: dict[Value, None]) -> bool:
    """Read by something that depends on more, and not read from a table already."""
    base = value
    while base.producer is not None and base.producer.name == "reshape":
        base = base.producer.inputs[0]
    if base.producer is None or _is_gather(base.producer):
        return False
    return value in graph.outputs or any(user.results[0] not in alone for user in value.users)


def _is_gather(op: Op) -> bool:
    return op.name in GATHERS and op.inputs[0].is_const


def _why_not(value: Value, cone: list[Op]) -> str:
    """Why a table by position cannot stand for the value; empty if it can."""
    symbols = {d for op in cone for v in op.results for d in v.type.shape if isinstance(d, str)} - {"T"}
    if symbols:
        return f"its shape depends on {', '.join(sorted(symbols))} too"
    mixing = next((op.result for op in cone if _mixes_tokens(op)), None)
    if mixing is not None:
        return f"a token's part of {mixing!r} may depend on other tokens"
    return "" if value.type.shape[0] == "T" else f"it is {value.type}, without a row for each token"


def _mixes_tokens(op: Op) -> bool:
    """Whether what belongs to one token may depend on the position of another. True of every op that is not known here."""
    x = op.inputs[0].type.shape
    shape = op.result.type.shape
    if shape.count("T") != 1:
        return True
    if op.name in REDUCTIONS:
        return x[int(op.attrs["axis"])] == "T"  # type: ignore[arg-type]
    if op.name == "reshape":
        return prod(map(int, x[: x.index("T")])) != prod(map(int, shape[: shape.index("T")]))
    if op.name == "matmul":
        return x[-1] == "T"
    return not (op.definition.pointwise or op.name in BY_TOKEN or _is_gather(op))


def _tabulate(value: Value, positions: Value, length: int, cone: list[Op], rw: Rewriter) -> None:
    with rw.change(value, cone, reason=f"depends on positions alone: {length} rows, computed once") as change:
        copies: dict[Value, Value] = {positions: change.emit("iota", [], {"size": length, "dtype": positions.type.dtype}, name=f"{value.name}.iota")}
        for op in cone:
            copies[op.result] = _copy(change, op, copies, length)
        change.relate(copies[value], "table", value)
        change.take_over(change.emit("gather_rows", [copies[value], positions]), value)


def _cone(value: Value, alone: dict[Value, None]) -> list[Op]:
    needed, waiting = {value}, [value]
    while waiting:
        op = waiting.pop().producer
        for operand in op.inputs if op is not None else []:
            if operand in alone and operand not in needed:
                needed.add(operand)
                waiting.append(operand)
    return [v.producer for v in alone if v in needed and v.producer is not None]


def _copy(change: Change, op: Op, copies: dict[Value, Value], length: int) -> Value:
    def static(attr: Attr) -> Attr:
        return tuple(length if d == "T" else d for d in attr) if isinstance(attr, tuple) else attr  # type: ignore[return-value]

    operands = [copies.get(v, v) if v is not None else None for v in op.operands]
    return change.emit(op.definition, operands, {k: static(a) for k, a in op.attrs.items()}, name=f"{op.result.name}.table", loc=op.loc)
