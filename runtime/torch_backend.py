"""Runs kernels written as plain torch functions on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tilewright.ir.errors import EngineError
from tilewright.ir.manifest import Kernel
from tilewright.runtime.backend import Argument, BoundLaunch, FixedLaunch


class TorchBackend:
    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.uses_graphs = False
        self._files: dict[str, dict[str, Any]] = {}  # namespaces of the executed source files

    def load(self, kernel: Kernel, directory: Path) -> TorchKernel:
        if kernel.language != "torch":
            raise EngineError(f"kernel {kernel.name}", f"is written in {kernel.language}, the cpu target runs torch", "rebuild the engine")
        if kernel.file not in self._files:
            namespace: dict[str, Any] = {"__name__": kernel.name}
            source = (directory / kernel.file).read_text(encoding="utf-8")
            exec(compile(source, str(directory / kernel.file), "exec"), namespace)
            self._files[kernel.file] = namespace
        function = self._files[kernel.file].get(kernel.entry)
        if function is None:
            raise EngineError(f"kernel {kernel.name}", f"{kernel.file} has no function {kernel.entry!r}", "rebuild the engine")
        return TorchKernel(function, kernel.constants)


class TorchKernel:
    def __init__(self, function: Callable[..., None], constants: dict[str, int | float | bool]) -> None:
        self._function, self._constants = function, constants

    def bind(self, grid: tuple[int, int, int], args: list[Argument]) -> BoundLaunch:
        return FixedLaunch(lambda stream: self._function(*args, **self._constants))
