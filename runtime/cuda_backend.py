"""Runs compiled kernels on an NVIDIA GPU through the driver: no Triton and no compiler at run time."""

from __future__ import annotations

import os
from math import prod
from pathlib import Path

import torch

from tilewright.ir.errors import EngineError
from tilewright.ir.manifest import Binary, Kernel, Manifest
from tilewright.runtime.backend import Argument, BoundLaunch
from tilewright.runtime.cuda_driver import Module, PreparedLaunch


class CudaBackend:
    """Raises EngineError for an engine without kernels for this device."""

    def __init__(self, manifest: Manifest, directory: Path, device: torch.device) -> None:
        if not torch.cuda.is_available():
            raise EngineError(f"engine {directory}", f"asked to run on {device}, torch finds no NVIDIA GPU here", "build it with: --target cpu")
        self.device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        self.uses_graphs = "cudagraph" not in os.environ.get("TILEWRIGHT_NO", "").split(",")
        torch.cuda.set_device(self.device)
        torch.cuda.init()
        torch.zeros(1, device=self.device)  # makes the context current for the driver's calls
        self._architecture = choose_architecture(manifest, directory, torch.cuda.get_device_capability(self.device))

    def load(self, kernel: Kernel, directory: Path) -> CudaKernel:
        binary = kernel.binaries.get(self._architecture)
        if kernel.language != "triton" or binary is None:
            raise EngineError(f"kernel {kernel.name}", f"has no binary for {self._architecture}", "rebuild the engine")
        module = Module((directory / binary.file).read_bytes(), binary.symbol, binary.shared_bytes)
        return CudaKernel(module, kernel, binary, self.device)


def choose_architecture(manifest: Manifest, directory: Path, capability: tuple[int, int]) -> str:
    """The newest architecture that every kernel has a binary for and that runs here: same major number, minor at most ours."""
    major, minor = capability
    here = f"sm_{major}{minor}"
    common = set.intersection(*(set(kernel.binaries) for kernel in manifest.all_kernels)) if manifest.all_kernels else {here}
    for candidate in range(minor, -1, -1):
        if f"sm_{major}{candidate}" in common:
            return f"sm_{major}{candidate}"
    made = ", ".join(sorted(common)) or manifest.target
    raise EngineError(f"engine {directory}", f"made for {made}, this device is {here}", f"run tilewright build --target {here}")


class CudaKernel:
    def __init__(self, module: Module, kernel: Kernel, binary: Binary, device: torch.device) -> None:
        self._module, self._binary = module, binary
        self._types = [type_name for _, type_name in kernel.parameters]
        self._dependent_launch = kernel.dependent_launch
        self._scratch = torch.empty(0, dtype=torch.uint8, device=device)

    def bind(self, grid: tuple[int, int, int], args: list[Argument]) -> BoundLaunch:
        values = [arg.data_ptr() if isinstance(arg, torch.Tensor) else arg for arg in args]
        scratch = self._scratch_for(grid)
        prepared = self._module.prepare(
            grid, self._binary.num_warps, values, self._types, self._dependent_launch, global_scratch=scratch.data_ptr()
        )
        return CudaLaunch(prepared, scratch, self._binary.global_scratch_bytes)

    def _scratch_for(self, grid: tuple[int, int, int]) -> torch.Tensor:
        """All launches of a kernel share it: they run one after the other. Launches that were bound with a smaller one keep that."""
        needed = self._binary.global_scratch_bytes * prod(grid)
        if len(self._scratch) < needed:
            self._scratch = torch.empty(needed, dtype=torch.uint8, device=self._scratch.device)
        return self._scratch


class CudaLaunch:
    """scratch: bytes that each program has of its own, `per_program` of them."""

    def __init__(self, prepared: PreparedLaunch, scratch: torch.Tensor, per_program: int) -> None:
        self._prepared, self._scratch, self._per_program = prepared, scratch, per_program
        self.run = prepared.launch

    def resize(self, grid: tuple[int, int, int], sizes: dict[int, int]) -> bool:
        if self._per_program * prod(grid) > len(self._scratch):
            return False
        self._prepared.resize(grid, sizes)
        return True
