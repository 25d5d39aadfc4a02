"""Where each activation lives in the arena: values that are alive at the same time never overlap. Knows regions, not their code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tilewright.ir.errors import PassError
from tilewright.ir.graph import Graph, Value
from tilewright.ir.regions import Placement, Region

ALIGNMENT = 256  # bytes


def plan_memory(graph: Graph, regions: Sequence[Region], dims: Mapping[str, int]) -> tuple[tuple[Placement, ...], int]:
    """Placements in execution order and the arena's bytes, for the largest step (`dims`). First fit over what is alive."""
    last_use = _last_uses(graph, regions)
    alive: list[Placement] = []
    placed: list[Placement] = []
    for index, region in enumerate(regions):
        alive = [p for p in alive if last_use[p.value] >= index]
        for value in region.outputs:
            size = value.type.num_bytes(dims)
            if size == 0:
                continue
            placement = Placement(value, _first_gap(alive, _align(size)), size)
            alive.append(placement)
            placed.append(placement)
    check_memory(regions, placed, last_use)
    return tuple(placed), max((p.offset + _align(p.num_bytes) for p in placed), default=0)


def check_memory(regions: Sequence[Region], placements: Sequence[Placement], last_use: Mapping[Value, int]) -> None:
    """Raises PassError where two values that are alive together overlap."""
    made = {value: index for index, region in enumerate(regions) for value in region.outputs}
    for i, a in enumerate(placements):
        for b in placements[i + 1 :]:
            together = made[a.value] <= last_use[b.value] and made[b.value] <= last_use[a.value]
            if together and a.offset < b.offset + b.num_bytes and b.offset < a.offset + a.num_bytes:
                raise PassError("memory plan", f"{a.value.display} and {b.value.display} overlap at byte {max(a.offset, b.offset)}")


def _last_uses(graph: Graph, regions: Sequence[Region]) -> dict[Value, int]:
    """Index of the last region that reads each value; the graph's outputs live to the end."""
    last = {value: index for index, region in enumerate(regions) for value in region.outputs}
    for index, region in enumerate(regions):
        last.update({value: index for value in region.inputs if value in last})
    return last | {value: len(regions) for value in graph.outputs}


def _first_gap(alive: Sequence[Placement], size: int) -> int:
    offset = 0
    for other in sorted(alive, key=lambda p: p.offset):
        if offset + size <= other.offset:
            break
        offset = max(offset, other.offset + _align(other.num_bytes))
    return offset


def _align(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
