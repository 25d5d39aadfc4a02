"""What holds for every cut into kernels: checked by hand, and by running the kernels in order on one arena of bytes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from tilewright.ir.graph import Graph, Op, Value
from tilewright.ir.interpreter import evaluate_constant
from tilewright.ir.reference import REFERENCES, TORCH_DTYPES, Batch, needs_batch
from tilewright.ir.regions import Region, Schedule
from tilewright.ir.weights import Weights
from tilewright.passes.grouping import is_view


def check_schedule(graph: Graph, schedule: Schedule) -> None:
    check_membership(graph, schedule)
    check_order(graph, schedule)
    check_arena(graph, schedule)


def check_membership(graph: Graph, schedule: Schedule) -> None:
    """Every op that computes something for the step is in one kernel; norms alone are recomputed, and then in every kernel that reads them."""
    members = [op for op in graph.ops if not op.is_const and not is_view(graph, op)]
    counts = Counter(op for region in schedule.regions for op in region.ops)
    for op in members:
        made = [region for region in schedule.regions if op.result in region.outputs]
        is_shared = op.name in ("rms_norm", "layer_norm") and not made
        assert counts[op] == 1 or (is_shared and counts[op] > 1), f"{op} is in {counts[op]} kernels"
    assert all(op in counts for op in members)
    assert not any(op.is_const for op in counts)
    assert all(region.anchor in region.ops for region in schedule.regions)
    assert len({region.name for region in schedule.regions}) == len(schedule.regions)


def check_order(graph: Graph, schedule: Schedule) -> None:
    """A kernel reads graph inputs, constants and what earlier kernels wrote, never a view: so the cut is convex."""
    known = set(graph.inputs)
    for region in schedule.regions:
        read = {value for op in region.ops for value in op.inputs} - {value for op in region.ops for value in op.results}
        assert read == set(region.inputs), f"{region.name} reads {read ^ set(region.inputs)}"
        late = [value for value in region.inputs if not value.is_const and value not in known]
        assert not late, f"{region.name} reads {late} before it is written"
        known.update(region.outputs)
    assert all(value in known or value.is_const for value in graph.outputs)


def check_arena(graph: Graph, schedule: Schedule) -> None:
    """Placements of values that are alive at the same time do not share a byte, and lie within the arena, aligned."""
    alive = {value: _lifetime(graph, schedule, value) for region in schedule.regions for value in region.outputs}
    assert {p.value for p in schedule.placements} == {value for value in alive if value.type.dtype != "kv"}
    for p in schedule.placements:
        assert p.offset % 256 == 0 and p.offset + p.num_bytes <= schedule.arena_bytes
        for q in schedule.placements:
            if p is not q and set(alive[p.value]) & set(alive[q.value]):
                assert p.offset + p.num_bytes <= q.offset or q.offset + q.num_bytes <= p.offset, f"{p.value} and {q.value} overlap"


def _lifetime(graph: Graph, schedule: Schedule, value: Value) -> range:
    """Indices of the kernels from the one that writes it to the last that reads it, or to the end."""
    first = next(i for i, region in enumerate(schedule.regions) if value in region.outputs)
    readers = [i for i, region in enumerate(schedule.regions) if value in region.inputs]
    return range(first, (len(schedule.regions) if value in graph.outputs else max(readers, default=first)) + 1)


def run_schedule(graph: Graph, schedule: Schedule, inputs: dict[str, Any], weights: Weights, batch: Batch) -> list[torch.Tensor]:
    """The graph's outputs, by kernels that know nothing but their inputs and an arena that starts full of NaN."""
    dims = {"T": batch.starts[-1], "S": len(inputs["rows"])} if "rows" in inputs else {"T": batch.starts[-1]}
    arena = torch.full((schedule.arena_bytes,), 0xFF, dtype=torch.uint8)
    places = {p.value: p.offset for p in schedule.placements}
    pages: dict[Value, Any] = {}

    def read(value: Value) -> Any:
        if value.is_const:
            return evaluate_constant(value, weights)
        if value in pages or value.name in inputs:
            return pages[value] if value in pages else inputs[value.name]
        shape, dtype = [dims[d] if isinstance(d, str) else d for d in value.type.shape], TORCH_DTYPES[value.type.dtype]
        end = places[value] + value.type.num_bytes(dims)
        return arena[places[value] : end].clone().view(dtype).reshape(shape)

    for region in schedule.regions:
        made = _run_region(region, {value: read(value) for value in region.inputs}, batch, dims)
        for value in region.outputs:
            if value.type.dtype == "kv":
                pages[value] = made[value]
            else:
                data = made[value].contiguous().view(torch.uint8).flatten()
                arena[places[value] : places[value] + len(data)] = data
    return [read(value) for value in graph.outputs]


def _run_region(region: Region, values: dict[Value, Any], batch: Batch, dims: dict[str, int]) -> dict[Value, Any]:
    for op in region.ops:
        values[op.result] = _compute(op, values, batch, dims)
    return values


def _compute(op: Op, values: dict[Value, Any], batch: Batch, dims: dict[str, int]) -> Any:
    attrs = {k: tuple(dims.get(d, d) if isinstance(d, str) else d for d in v) if isinstance(v, tuple) else v for k, v in op.attrs.items()}
    leading = [batch] if needs_batch(op.name) else []
    return REFERENCES[op.name](*leading, *(None if v is None else values[v] for v in op.operands), **attrs)
