"""Loads an engine directory: checks every hash, puts the weights on the device, loads the kernels. Knows no graph and no request."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from tilewright.ir.errors import EngineError
from tilewright.ir.manifest import Manifest, Weight
from tilewright.runtime.backend import Backend, LoadedKernel, choose_backend
from tilewright.runtime.dtypes import TORCH_DTYPES
from tilewright.runtime.progress import Advance, ignore, track


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
        directory = Path(directory)
        if not directory.is_dir():
            raise EngineError(f"engine {directory}", "no such directory", f"build one with: tilewright build MODEL {directory}")
        manifest = Manifest.read(directory)
        backend = choose_backend(manifest, directory, device)
        with track("checking files", len(manifest.files), shown=use_progress) as advance:
            check_files(manifest, directory, advance, read_contents=verify)
        kernels = {kernel.name: backend.load(kernel, directory) for kernel in manifest.all_kernels}
        with track("loading weights", len(manifest.weights), shown=use_progress) as advance:
            weights = load_weights(manifest, directory, backend.device, advance)
        return Engine(directory, manifest, backend, weights, kernels)


def check_files(manifest: Manifest, directory: Path, advance: Advance = ignore, *, read_contents: bool = True) -> None:
    """Every file that the manifest names is there and has its hash; code and weights come from no other."""
    binaries = [binary.file for kernel in manifest.all_kernels for binary in kernel.binaries.values()]
    for name in [*(kernel.file for kernel in manifest.all_kernels), *binaries, *(weight.file for weight in manifest.weights)]:
        if name not in manifest.files:
            raise EngineError(f"engine {directory}", f"manifest.json has no hash for {name!r}", "copy the directory again, or rebuild the engine")
    for name in manifest.files:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise EngineError(f"engine {directory}", f"{name!r} lies outside it", "rebuild the engine")
        if not (directory / name).is_file():
            raise EngineError(f"engine {directory}", f"file {name!r} is missing", "copy the whole directory, or rebuild the engine")
    if not read_contents:
        return
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
        for (name, expected), found in zip(manifest.files.items(), threads.map(lambda name: hash_file(directory / name), manifest.files)):
            if found != expected:
                problem = f"{name!r} has sha256 {found[:12]}…, the manifest says {expected[:12]}…: it was changed or cut short"
                raise EngineError(f"engine {directory}", problem, "copy the directory again, or rebuild the engine")
            advance(1)


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_weights(manifest: Manifest, directory: Path, device: torch.device, advance: Advance = ignore) -> dict[str, torch.Tensor]:
    """Each tensor goes from its memory-mapped file straight to the device."""
    by_file: dict[str, list[Weight]] = {}
    for weight in manifest.weights:
        by_file.setdefault(weight.file, []).append(weight)
    tensors: dict[str, torch.Tensor] = {}
    for name, weights in by_file.items():
        try:
            with safe_open(directory / name, framework="pt", device=str(device)) as file:
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
