"""Turns the launches of a program into calls with resolved arguments: arena views, weights, step tensors, cache, sizes."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch

from tilewright.ir.errors import EngineError
from tilewright.ir.manifest import Arg, Buffer, Extent, Program, size_grid
from tilewright.runtime.backend import Argument, BoundLaunch
from tilewright.runtime.dtypes import TORCH_DTYPES
from tilewright.runtime.engine import Engine
from tilewright.runtime.step import StepDims


@dataclass(frozen=True, slots=True)
class BoundProgram:
    """A program for steps of `dims`, ready to run again and again."""

    program: Program
    launches: list[BoundLaunch]
    logits: torch.Tensor  # f32[S, vocab], a view of the arena
    step: dict[str, torch.Tensor]  # step tensors, by field
    sizing: Sizing

    def run(self, stream: int) -> None:
        for launch in self.launches:
            launch.run(stream)

    def resize(self, dims: StepDims) -> bool:
        """Makes the launches serve another size; False where they must be bound anew. `logits` and `step` stay as they were."""
        sizes = dims.as_dict()
        grids = [size_grid(grid, sizes) for grid in self.sizing.grids]
        ints = [{index: sizes[name] for index, name in places} for places in self.sizing.ints]
        return all([launch.resize(grids[grid], ints[places]) for launch, (grid, places) in zip(self.launches, self.sizing.launches)])


@dataclass(frozen=True, slots=True)
class Sizing:
    """What of a program's launches depends on the size of a step. They share few grids and few places of integers: each is computed once a step."""

    grids: list[tuple[Extent, Extent, Extent]]
    ints: list[tuple[tuple[int, str], ...]]  # index of an argument, and which dim it is
    launches: list[tuple[int, int]]  # of each launch, which of the grids and of the ints

    @staticmethod
    def of(program: Program) -> Sizing:
        grids: dict[tuple[Extent, Extent, Extent], int] = {}
        ints: dict[tuple[tuple[int, str], ...], int] = {}
        launches = []
        for launch in program.launches:
            places = tuple((index, arg.name) for index, arg in enumerate(launch.args) if arg.kind == "dim")
            launches.append((grids.setdefault(launch.grid, len(grids)), ints.setdefault(places, len(ints))))
        return Sizing(list(grids), list(ints), launches)


class ProgramBinder:
    """Holds the one arena, and what is zeroed, that all programs share: only one step runs at a time."""

    def __init__(self, engine: Engine, kv: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self._engine, self._kv = engine, kv
        size = max(program.arena_bytes for program in engine.manifest.programs)
        self._arena = torch.empty(size, dtype=torch.uint8, device=engine.backend.device)
        self._pages = engine.manifest.limits.max_pages_per_sequence
        self._zeroed = torch.zeros(self._count_zeroed_bytes(), dtype=torch.uint8, device=engine.backend.device)
        self._sizings = {program.name: Sizing.of(program) for program in engine.manifest.programs}

    def rebind(self, bound: BoundProgram, dims: StepDims, step: dict[str, torch.Tensor]) -> BoundProgram:
        """The same program for another size, its launches reused where that is possible."""
        if not bound.resize(dims):
            return self.bind(bound.program, dims, step)
        program = bound.program
        logits = next(buffer for buffer in program.buffers if buffer.name == program.logits)
        return BoundProgram(program, bound.launches, self._view_buffer(program, logits, dims), step, bound.sizing)

    def bind(self, program: Program, dims: StepDims, step: dict[str, torch.Tensor]) -> BoundProgram:
        """Buffers are narrowed to dims; `step` holds the step tensors at that size."""
        buffers = self.view_buffers(program, dims)
        sizes = dims.as_dict()
        launches = []
        for launch in program.launches:
            args = [self._resolve(arg, buffers, step, sizes) for arg in launch.args]
            launches.append(self._engine.kernels[launch.kernel].bind(size_grid(launch.grid, sizes), args))
        return BoundProgram(program, launches, buffers[program.logits], step, self._sizings[program.name])

    def view_buffers(self, program: Program, dims: StepDims) -> dict[str, torch.Tensor]:
        """Where a program bound to dims reads and writes its activations. Their bytes are shared by those that are not alive together."""
        return {buffer.name: self._view_buffer(program, buffer, dims) for buffer in program.buffers}

    def _count_zeroed_bytes(self) -> int:
        most = self._engine.manifest.limits.max_batch_size
        ends = [0]
        for program in self._engine.manifest.programs:
            dims = StepDims(program.max_tokens, min(program.max_tokens, most), min(program.max_tokens, most))
            ends += [self._end_of(buffer, dims) for buffer in program.buffers if buffer.zeroed]
        return max(ends)

    def _end_of(self, buffer: Buffer, dims: StepDims) -> int:
        return buffer.offset + prod(dims.of(d, self._pages) for d in buffer.shape) * TORCH_DTYPES[buffer.dtype].itemsize

    def _view_buffer(self, program: Program, buffer: Buffer, dims: StepDims) -> torch.Tensor:
        dtype = TORCH_DTYPES[buffer.dtype]
        shape = tuple(dims.of(d, self._pages) for d in buffer.shape)
        memory, end = self._zeroed if buffer.zeroed else self._arena, self._end_of(buffer, dims)
        if end > len(memory):
            problem = f"buffer {buffer.name} ends at byte {end}, its memory has {len(memory)}"
            raise EngineError(f"program {program.name}", problem, "rebuild the engine")
        return memory[buffer.offset : end].view(dtype).view(shape)

    def _resolve(self, arg: Arg, buffers: dict[str, torch.Tensor], step: dict[str, torch.Tensor], sizes: dict[str, int]) -> Argument:
        if arg.kind == "buffer":
            return buffers[arg.name]
        if arg.kind == "weight":
            return self._engine.weights[arg.name]
        if arg.kind == "step":
            return step[arg.name]
        if arg.kind == "dim":
            return sizes[arg.name]
        return self._kv[int(arg.name)][0 if arg.kind == "k_cache" else 1]
