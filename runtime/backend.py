"""How kernels are loaded and launched on one kind of device: the protocol, and the choice for an engine on this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

from tilewright.ir.errors import EngineError
from tilewright.ir.manifest import Kernel, Manifest
from tilewright.runtime.torch_import import wants_interpreter

Argument = torch.Tensor | int


class BoundLaunch(Protocol):
    """A launch with fixed arguments, ready to be repeated. Tensors must outlive it."""

    @property
    def run(self) -> Callable[[int], None]:
        """Takes the stream's handle (0 where there are no streams)."""
        ...

    def resize(self, grid: tuple[int, int, int], sizes: dict[int, int]) -> bool:
        """Changes grid and integer arguments (by index) in place; False where tensors know their size and must be bound anew."""
        ...


class FixedLaunch:
    """A call that cannot be resized."""

    def __init__(self, run: Callable[[int], None]) -> None:
        self.run = run

    def resize(self, grid: tuple[int, int, int], sizes: dict[int, int]) -> bool:
        return False


class LoadedKernel(Protocol):
    def bind(self, grid: tuple[int, int, int], args: list[Argument]) -> BoundLaunch: ...


class Backend(Protocol):
    device: torch.device
    uses_graphs: bool  # launches can be captured in a CUDA graph, steps are padded to buckets and run ahead of the host

    def load(self, kernel: Kernel, directory: Path) -> LoadedKernel: ...


def choose_backend(manifest: Manifest, directory: Path, device: str | torch.device | None) -> Backend:
    """The backend for `manifest.target` here. Raises EngineError where this machine cannot run it."""
    asked = None if device is None else read_device(device)
    if manifest.target == "cpu":
        if asked is not None and asked.type != "cpu":
            raise EngineError(f"engine {directory}", f"made for cpu, asked to run on {asked}", "build it with: --target cuda")
        from tilewright.runtime.torch_backend import TorchBackend

        return TorchBackend()
    if wants_interpreter(asked):
        from tilewright.runtime.interpreter_backend import InterpreterBackend

        return InterpreterBackend()
    if not torch.cuda.is_available():
        remedy = "build it with: --target cpu, or set TRITON_INTERPRET=1 to run its kernels slowly in Triton's interpreter"
        raise EngineError(f"engine {directory}", f"made for {manifest.target}, this machine has no NVIDIA GPU that torch can use", remedy)
    from tilewright.runtime.cuda_backend import CudaBackend

    return CudaBackend(manifest, directory, asked or torch.device("cuda"))


def read_device(device: str | torch.device) -> torch.device:
    try:
        asked = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise EngineError(f"device {device!r}", "is no device", "pass cuda, cuda:1 or cpu") from error
    if asked.type not in ("cpu", "cuda"):
        raise EngineError(f"device {device!r}", "is none that engines run on", "pass cuda, cuda:1 or cpu")
    return asked
