"""An engine's own kernels, one region at a time on saved reference boundaries: nothing is added to what was compiled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from tilewright.inspect.engine_steps import Chunk, EngineSteps, fit
from tilewright.inspect.metrics import count_not_finite, relative_error
from tilewright.inspect.numerics import plain, smallest_floor
from tilewright.inspect.references import References
from tilewright.ir.graph import Graph, Value
from tilewright.ir.interpreter import evaluate_constant
from tilewright.ir.manifest import Program
from tilewright.ir.regions import Regime, Region, Schedule
from tilewright.passes.regions import build_schedules
from tilewright.runtime.program_binder import BoundProgram
from tilewright.runtime.step import StepDims

RED_RATIO, RED_RATIO_NARROW = 10.0, 3.0  # kernels sum in another order than the interpreter: up to 4 were seen in f32, 1.1 in 16 bits
NARROW_FLOOR = 1e-4  # what 16 bits lose at least


@dataclass(frozen=True, slots=True)
class LaunchRow:
    """What a region's kernels make of the reference's inputs, against the region's ops in wide floats on the same inputs."""

    program: str
    region: str
    kernels: tuple[str, ...]
    modules: tuple[str, ...]
    value: str  # the output with the largest error
    step: str  # prefill, continue or decode
    isolated: float
    floor: float  # of the region's ops in the engine's dtypes, on the reference interpreter
    not_finite: int
    max_ratio: float = RED_RATIO  # to the floor; above it is red

    @property
    def ratio(self) -> float:
        return self.isolated / self.floor

    @property
    def severity(self) -> float:
        """Above 1 is red. What quantization costs is in both sides."""
        return self.ratio / self.max_ratio if isfinite(self.ratio) and not self.not_finite else float("inf")


@dataclass(frozen=True, slots=True)
class _Boundary:
    """A region's values on the whole sample, on inputs rounded as the engine has them."""

    inputs: dict[Value, Any]
    narrow: dict[Value, Any]
    wide: dict[Value, Any]


class LaunchProbe:
    def __init__(self, steps: EngineSteps, graph: Graph, references: References) -> None:
        self.steps, self.graph, self.references = steps, graph, references
        regimes = [Regime(program.name, program.kind, program.max_tokens) for program in steps.engine.manifest.programs]
        self.schedules: dict[str, Schedule] = {schedule.regime.name: schedule for schedule in build_schedules(graph, regimes)}

    def rows(self) -> list[LaunchRow]:
        """One row a region, kernel and kind of step, whichever program launches it first."""
        seen: set[tuple[Any, ...]] = set()
        found: list[LaunchRow] = []
        for program in self.steps.engine.manifest.programs:
            for step, chunks in self._steps_of(program):
                for region in self.schedules[program.name].regions:
                    key = (region.name, self.kernels_of(program, region), step)
                    if key in seen or (step == "continue" and not _touches_cache(region)):
                        continue
                    seen.add(key)
                    found.append(self.check(program, region, step, chunks))
        return found

    def check_named(self, program: str, region: str, step: str) -> LaunchRow:
        found = next(p for p in self.steps.engine.manifest.programs if p.name == program)
        launched = next(r for r in self.schedules[program].regions if r.name == region)
        return self.check(found, launched, step, dict(self._steps_of(found))[step])

    def check(self, program: Program, region: Region, step: str, chunks: list[Chunk]) -> LaunchRow:
        rows = list(range(sum(c.stop - c.start for c in chunks)))[-self.steps.limits.max_batch_size :]
        bound = self.steps.bind(program, chunks, rows)
        boundary = self._boundary(region)
        found = self._run(program, region, bound, boundary, chunks, rows)
        taken = self.steps.rows_of(chunks)
        errors = [_compare(value, found[value], *(self._take(value, side[value], taken, rows) for side in (boundary.narrow, boundary.wide)))
                  for value in found]  # fmt: skip
        worst, (isolated, floor, bad) = max(zip(found, errors), key=lambda pair: pair[1][0] / pair[1][1] if isfinite(pair[1][0]) else float("inf"))
        limit = RED_RATIO if floor < NARROW_FLOOR else RED_RATIO_NARROW
        kernels = self.kernels_of(program, region)
        return LaunchRow(program.name, region.name, kernels, region.modules, worst.display, step, isolated, floor, bad, limit)

    def kernels_of(self, program: Program, region: Region) -> tuple[str, ...]:
        return tuple(launch.kernel for launch in program.launches if launch.region == region.name)

    def _steps_of(self, program: Program) -> Iterator[tuple[str, list[Chunk]]]:
        lengths = [len(prompt) for prompt in self.steps.sample.prompts]
        if program.kind == "decode":
            most = min(program.max_tokens, self.steps.limits.max_batch_size)
            yield "decode", [Chunk(index, length - 1, length) for index, length in enumerate(lengths)][:most]
            return
        yield "prefill", fit([Chunk(i, 0, n) for i, n in enumerate(lengths)], program.max_tokens, self.steps.limits.max_batch_size)
        yield "continue", fit([Chunk(i, n // 2, n) for i, n in enumerate(lengths)], program.max_tokens, self.steps.limits.max_batch_size)

    # -- one region ---------------------------------------------------------------------------------------------------------------
    def _boundary(self, region: Region) -> _Boundary:
        inputs = {value: self._input(value) for value in region.inputs}
        return _Boundary(inputs, self._evaluate(region, inputs, wide=False), self._evaluate(region, inputs, wide=True))

    def _input(self, value: Value) -> Any:
        return evaluate_constant(value, self.references.weights) if value.is_const else self.references.narrow(value)

    def _evaluate(self, region: Region, inputs: dict[Value, Any], *, wide: bool) -> dict[Value, Any]:
        widen = self.references.widen if wide else lambda value: value
        values = {value: widen(tensor) for value, tensor in inputs.items()}
        for op in region.ops:
            operands = [None if v is None else values[v] for v in op.operands]
            values.update(zip(op.results, self.references.run(op, operands, wide=wide)))
        return values

    def _run(
        self, program: Program, region: Region, bound: BoundProgram, boundary: _Boundary, chunks: list[Chunk], rows: list[int]
    ) -> dict[Value, Any]:
        """Outputs of the region's launches at the step's tokens."""
        dims = StepDims(sum(c.stop - c.start for c in chunks), len(rows), len(chunks))
        buffers, taken = self.steps.binder.view_buffers(program, dims), self.steps.rows_of(chunks)
        self.steps.clear_cache()
        for value, tensor in boundary.inputs.items():
            if isinstance(tensor, tuple):
                self.steps.write_cache(layer_of(value), *tensor)
            elif value.name in buffers:
                buffers[value.name].copy_(self._take(value, tensor, taken, rows))
        for value in region.outputs:
            if value.type.dtype == "kv" and any(op.name == "attend" and value in op.inputs for op in region.ops):
                self.steps.write_cache(layer_of(value), *boundary.narrow[value])  # it reads what earlier steps wrote, and writes the step's own
                self.steps.erase_cache(layer_of(value), chunks)
        for launch, call in zip(program.launches, bound.launches):
            if launch.region == region.name:
                call.run(self.steps.stream())
        return {
            value: self.steps.read_cache(layer_of(value), chunks) if value.type.dtype == "kv" else buffers[value.name].cpu().clone()
            for value in region.outputs
        }

    def _take(self, value: Value, tensor: Any, taken: list[int], rows: list[int]) -> Any:
        """The part of a whole sample's tensor that belongs to the step's tokens (T) and rows (S)."""
        if isinstance(tensor, tuple):
            return tuple(part[taken] for part in tensor)
        for axis, dim in enumerate(value.type.shape):
            if dim in ("T", "S"):
                chosen = taken if dim == "T" else [taken[row] for row in rows]
                tensor = tensor.index_select(axis, torch.tensor(chosen))
        return tensor


def layer_of(value: Value) -> int:
    assert value.producer is not None, "state is made by an op"
    return int(value.producer.attrs["layer"])  # type: ignore[arg-type]


def _touches_cache(region: Region) -> bool:
    return any(value.type.dtype == "kv" for value in (*region.inputs, *region.outputs))


def _compare(value: Value, found: Any, narrow: Any, wide: Any) -> tuple[float, float, int]:
    """isolated, floor, elements that are not finite but should be"""
    expected, got = plain(wide), plain(found)
    floor = max(relative_error(plain(narrow), expected), smallest_floor_of(value, found))
    return relative_error(got, expected), floor, max(0, count_not_finite(got) - count_not_finite(expected))


def smallest_floor_of(value: Value, found: Any) -> float:
    tensor: Tensor = found[0] if isinstance(found, tuple) else found
    return torch.finfo(tensor.dtype).eps / 4 if tensor.is_floating_point() else smallest_floor(value)
