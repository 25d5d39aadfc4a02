"""The Timer of this machine's GPU: candidates are launched as an engine launches them, in CUDA graphs, over operands that are in no cache."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Sequence
from math import prod

import torch

from tilewright.codegen.aot import Compiled
from tilewright.codegen.candidates import Candidate
from tilewright.codegen.choices import Device
from tilewright.codegen.emission import Emission
from tilewright.codegen.plan import KernelPlan
from tilewright.codegen.tuning import FINALISTS
from tilewright.graph_timing import time_graph
from tilewright.ir.errors import EngineError
from tilewright.ir.manifest import Limits, size_grid
from tilewright.ir.reference import TORCH_DTYPES
from tilewright.operands import Operands, steps_of
from tilewright.runtime.cuda_driver import Module, PreparedLaunch

_GRAPH_US = 2000.0  # that a graph takes, about: one of many launches hides what its first one costs
_FEWEST, _MOST = 4, 400  # launches in a graph
_REPLAYS = 6


class GpuTimer:
    """Raises EngineError where torch finds no GPU."""

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise EngineError("tune", "this machine has no NVIDIA GPU that torch can use, and tiles are chosen by measuring", "build without it")
        torch.zeros(1, device="cuda")  # makes the context current for the driver's calls
        self.device = this_device()

    def open(self, plan: KernelPlan, limits: Limits) -> GpuBench:
        torch.cuda.empty_cache()
        try:
            return GpuBench([Operands(plan, step) for step in steps_of(plan, limits)])
        except torch.OutOfMemoryError as error:
            raise EngineError(f"kernel {plan.label}", "its operands do not fit beside what is on the GPU", "free some of its memory") from error


def this_device() -> Device:
    major, minor = torch.cuda.get_device_capability()
    return Device(f"sm_{major}{minor}", torch.cuda.get_device_name(), importlib.metadata.version("triton"))


class GpuBench:
    """One plan. The candidates that were run last stay loaded, with their launches prepared; the scratch of others is given back."""

    def __init__(self, operands: Sequence[Operands]) -> None:
        self._operands = operands
        self._loaded: dict[Candidate, list[LoadedKernels]] = {}
        self._counts: list[int] = []

    def run(self, candidate: Candidate) -> dict[str, torch.Tensor]:
        outputs: dict[str, torch.Tensor] = {}
        for place, loaded in enumerate(self._load(candidate)):
            outputs |= {f"{name} of step {place}" if place else name: t for name, t in loaded.results().items()}
        return outputs

    def time(self, candidate: Candidate) -> float:
        """The geometric mean over the plan's steps."""
        loaded = self._load(candidate)
        if not self._counts:  # chosen by the first that is timed, alike for all; every set of operands has its turn
            rough = [time_graph(item.run, _FEWEST, replays=2) for item in loaded]
            self._counts = [max(_FEWEST, len(o.sets), min(_MOST, int(_GRAPH_US / us))) for o, us in zip(self._operands, rough)]
        times = [time_graph(item.run, count, replays=_REPLAYS) for item, count in zip(loaded, self._counts)]
        return math.exp(sum(map(math.log, times)) / len(times))

    def _load(self, candidate: Candidate) -> list[LoadedKernels]:
        loaded = self._loaded.pop(candidate, None)
        if loaded is None:
            loaded = [LoadedKernels(candidate.emission, candidate.compiled, operands) for operands in self._operands]
        while len(self._loaded) > FINALISTS:
            del self._loaded[next(iter(self._loaded))]
        self._loaded[candidate] = loaded  # the newest last
        return loaded


class LoadedKernels:
    """Compiled kernels on the GPU, with a prepared launch of each for each set of operands."""

    def __init__(self, emission: Emission, compiled: Sequence[Compiled], operands: Operands) -> None:
        self.emission, self.compiled, self.operands = emission, compiled, operands
        self._spaces: dict[str, torch.Tensor] = {}
        for space in emission.workspaces:
            shape = [operands.dims[d] if isinstance(d, str) else d for d in space.shape]
            make = torch.zeros if space.zeroed else torch.empty
            self._spaces[space.name] = make(shape, dtype=TORCH_DTYPES[space.dtype], device="cuda")
        self._modules = [Module(c.cubin, c.binary.symbol, c.binary.shared_bytes) for c in compiled]
        self._scratches: list[torch.Tensor] = []
        self._launches = [self._prepare(arguments) for arguments in operands.sets]

    def _prepare(self, arguments: dict[str, torch.Tensor]) -> list[PreparedLaunch]:
        known = {**arguments, **self._spaces}
        prepared = []
        for text, module, compiled in zip(self.emission.kernels, self._modules, self.compiled):
            tensors = [known.get(name) for name in text.parameters]
            values = [self.operands.dims[name] if t is None else t.data_ptr() for name, t in zip(text.parameters, tensors)]
            types = ["i32" if t is None else "*" for t in tensors]
            grid = size_grid(text.grid, self.operands.dims)
            scratch = torch.empty(compiled.binary.global_scratch_bytes * prod(grid), dtype=torch.uint8, device="cuda")
            self._scratches.append(scratch)
            launch = module.prepare(grid, compiled.binary.num_warps, values, types, text.dependent_launch, global_scratch=scratch.data_ptr())
            prepared.append(launch)
        return prepared

    def results(self) -> dict[str, torch.Tensor]:
        """What one launch over the first set of operands writes, by name; what it leaves unwritten of its outputs is NaN."""
        for p in self.operands.plan.outputs:
            self.operands.sets[0][p.name].fill_(float("nan"))
        self.run(0)
        return {name: tensor.clone() for name, tensor in self.operands.written().items()}

    def run(self, index: int) -> None:
        """Launches over a set of operands on torch's current stream."""
        stream = torch.cuda.current_stream().cuda_stream
        for launch in self._launches[index % len(self._launches)]:
            launch.launch(stream)
