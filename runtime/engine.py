"""Loads an engine directory: checks every hash, puts the weights on the device, loads the kernels. Knows no graph and no request."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from tilewright.ir.errors import EngineError
from tilewright.ir.manifest import Manifest, Weight
from tilewright.runtime.backend import Backend, LoadedKernel, choose_backend
from tilewright.runtime.dtypes import TORCH_DTYPES
from tilewright.runtime.engine_files import EngineFiles
from tilewright.runtime.progress import Advance, ignore, track
from tilewright.runtime.weight_stream import WeightStream


@dataclass(frozen=True, slots=True)
class Engine:
    directory: Path
    manifest: Manifest
    backend: Backend
    weights: dict[str, torch.Tensor]  # by name, on the device
    kernels: dict[str, LoadedKernel]  # by name

    @staticmethod
    def load(
        directory: str | Path, device: str | torch.device | None = None, *, verify: bool = True, use_progress: bool = False
    ) -> Engine:
        """Raises EngineError for a directory that is incomplete or changed, or a target that this machine cannot run."""
        with EngineFiles(directory, verify=verify) as files:
            return Engine.from_files(files, device, use_progress=use_progress)

    @staticmethod
    def from_files(files: EngineFiles, device: str | torch.device | None = None, *, use_progress: bool = False) -> Engine:
        """Kernels are checked before they are loaded, as some run code then; weights on their way or after it. Raises EngineError."""
        directory, manifest = files.directory, files.manifest
        backend = choose_backend(manifest, directory, device)
        others = [name for name in manifest.files if name not in set(files.weights)]
        with track("checking files", len(others), shown=use_progress) as advance:
            files.check(others, advance)
        kernels = {kernel.name: backend.load(kernel, directory) for kernel in manifest.all_kernels}
        try:
            with track("loading weights", len(manifest.weights), shown=use_progress) as advance:
                weights = load_weights(files, backend.device, advance)
        except EngineError:
            files.check(manifest.files)  # if a file was changed, that says more than what its reader made of it
            raise
        files.check(manifest.files)
        return Engine(directory, manifest, backend, weights, kernels)


def load_weights(files: EngineFiles, device: torch.device, advance: Advance = ignore) -> dict[str, torch.Tensor]:
    """Those of files that are hashed elsewhere are not checked here."""
    if device.type != "cuda":
        return map_weights(files.manifest, files.directory, advance)
    weights = WeightStream(files.directory, device, files.leave(files.weights)).load(files.manifest.weights, advance)
    torch.cuda.synchronize(device)  # tensors that were moved
    return weights


def map_weights(manifest: Manifest, directory: Path, advance: Advance = ignore) -> dict[str, torch.Tensor]:
    """Tensors of the CPU are their memory-mapped files."""
    by_file: dict[str, list[Weight]] = {}
    for weight in manifest.weights:
        by_file.setdefault(weight.file, []).append(weight)
    tensors: dict[str, torch.Tensor] = {}
    for name, weights in by_file.items():
        try:
            with safe_open(directory / name, framework="pt") as file:
                for weight in weights:
                    tensors[weight.name] = _read_weight(file, weight, directory)
                    advance(1)
        except (SafetensorError, OSError) as error:
            raise EngineError(f"engine {directory}", f"{name} is not a whole safetensors file ({error})", "rebuild the engine") from error
    return tensors


def _read_weight(file: safe_open, weight: Weight, directory: Path) -> torch.Tensor:
    tensor = file.get_tensor(weight.name)
    if tuple(tensor.shape) != weight.shape or tensor.dtype is not TORCH_DTYPES.get(weight.dtype):
        found = f"{weight.name} is {tensor.dtype}{list(tensor.shape)} in {weight.file}"
        raise EngineError(f"engine {directory}", f"{found}, the manifest says {weight.dtype}{list(weight.shape)}", "rebuild the engine")
    return tensor
