"""Launches an engine's sampling kernels over rows of logits. Knows their names and buffers from the manifest, not what they do."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from tilewright.ir.errors import EngineError
from tilewright.ir.manifest import Sampling, size_grid
from tilewright.runtime.backend import BoundLaunch, LoadedKernel
from tilewright.runtime.dtypes import TORCH_DTYPES

MOST_BOUND = 64  # sets of launches that are kept


class SampleKernels:
    """Holds the scratch of the largest batch; one step samples at a time."""

    def __init__(self, sampling: Sampling, kernels: Mapping[str, LoadedKernel], device: torch.device, max_rows: int) -> None:
        """kernels: by name, loaded on `device`."""
        self._kernels, self.device = kernels, device
        self._programs = {program.kind: program.launches for program in sampling.programs}
        if missing := {"greedy", "draw", "filter"} - self._programs.keys():
            raise EngineError("sampling", f"the engine has no program {sorted(missing)[0]!r}", "rebuild the engine")
        self._own = {
            space.name: torch.zeros([max_rows if d == "S" else int(d) for d in space.shape], dtype=TORCH_DTYPES[space.dtype], device=self.device)
            for space in sampling.spaces
        }
        self._own["tokens"] = torch.zeros(max_rows, dtype=torch.int32, device=self.device)
        self._own["history"] = torch.zeros(8, dtype=torch.int16, device=self.device)  # of batches without penalties: never read
        self._bound: dict[tuple[str | int, ...], list[BoundLaunch]] = {}  # by kind and addresses

    def sample(self, kind: str, tensors: dict[str, torch.Tensor], history: torch.Tensor | None) -> torch.Tensor:
        """tokens: i32[S]. tensors: logits f32[S, vocab], slots i64[S], params f32[S, ...], uniform f64[S], and last_token, which is written.

        history: i16[slots, vocab], needed where a row has penalties, and written.
        """
        stream = torch.cuda.current_stream(self.device).cuda_stream if self.device.type == "cuda" else 0
        for launch in self.bind(kind, tensors, history):
            launch.run(stream)
        tokens = self._own["tokens"][: len(tensors["logits"])]
        return tokens if self.device.type == "cuda" else tokens.clone()  # the host copies from a stream, but reads host memory late

    def bind(self, kind: str, tensors: dict[str, torch.Tensor], history: torch.Tensor | None) -> list[BoundLaunch]:
        """The launches of `sample`: those of an earlier call with tensors at the same addresses, where the device lets them be resized."""
        tensors, num_rows = {**self._own, **tensors, **({} if history is None else {"history": history})}, len(tensors["logits"])
        used = dict.fromkeys(arg.name for launch in self._programs[kind] for arg in launch.args)
        key = (kind, *(tensors[name].data_ptr() for name in used))
        sizes = {"S": num_rows}
        grids = [size_grid(launch.grid, sizes) for launch in self._programs[kind]]
        ready = self._bound.get(key)
        if ready and all(bound.resize(grid, {}) for bound, grid in zip(ready, grids)):
            return ready
        if len(self._bound) >= MOST_BOUND:
            self._bound.clear()
        launches = zip(self._programs[kind], grids)
        made = [self._kernels[launch.kernel].bind(grid, [tensors[arg.name] for arg in launch.args]) for launch, grid in launches]
        self._bound[key] = made
        return made
