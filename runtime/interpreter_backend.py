"""Runs Triton kernels on the CPU in Triton's interpreter: slow, for proving kernels right where there is no GPU."""

from __future__ import annotations

from pathlib import Path

import torch

from tilewright.ir.manifest import Kernel
from tilewright.runtime import triton_interpreter
from tilewright.runtime.backend import Argument, BoundLaunch, FixedLaunch


class InterpreterBackend:
    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.uses_graphs = False

    def load(self, kernel: Kernel, directory: Path) -> InterpretedKernel:
        source = (directory / kernel.file).read_text(encoding="utf-8")
        return InterpretedKernel(triton_interpreter.load_kernel(source, kernel.name, kernel.entry), kernel)


class InterpretedKernel:
    def __init__(self, loaded: triton_interpreter.TritonKernel, kernel: Kernel) -> None:
        self._loaded, self._kernel = loaded, kernel

    def bind(self, grid: tuple[int, int, int], args: list[Argument]) -> BoundLaunch:
        return FixedLaunch(lambda stream: triton_interpreter.launch(self._loaded, grid, args, self._kernel.constants))
