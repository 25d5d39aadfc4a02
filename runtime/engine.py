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
from tilewright.runtime.weight_stream import WeightStream, check_hash, read_ahead


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
        check_names(manifest, directory)
        weight_files = dict.fromkeys(weight.file for weight in manifest.weights)
        if manifest.target != "cpu":
            read_ahead(directory, weight_files)  # while CUDA starts
        backend = choose_backend(manifest, directory, device)
        streams = backend.device.type == "cuda"  # weights are hashed on their way there
        skipped = set(weight_files) if streams else set()
        hashed = [name for name in manifest.files if verify and name not in skipped]
        with track("checking files", len(hashed), shown=use_progress) as advance:
            check_contents(manifest, directory, hashed, advance)
        kernels = {kernel.name: backend.load(kernel, directory) for kernel in manifest.all_kernels}
        with track("loading weights", len(manifest.weights), shown=use_progress) as advance:
            if streams:
                weights = WeightStream(directory, backend.device, manifest.files if verify else None).load(manifest.weights, advance)
                torch.cuda.synchronize(backend.device)  # tensors that were moved
            else:
                weights = map_weights(manifest, directory, advance)
        return Engine(directory, manifest, backend, weights, kernels)


def check_names(manifest: Manifest, directory: Path) -> None:
    """Every file that the manifest names is there, inside the directory, and has a hash; code and weights come from no other."""
    binaries = [binary.file for kernel in manifest.all_kernels for binary in kernel.binaries.values()]
    for name in [*(kernel.file for kernel in manifest.all_kernels), *binaries, *(weight.file for weight in manifest.weights)]:
        if name not in manifest.files:
            raise EngineError(f"engine {directory}", f"manifest.json has no hash for {name!r}", "copy the directory again, or rebuild the engine")
    for name in manifest.files:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise EngineError(f"engine {directory}", f"{name!r} lies outside it", "rebuild the engine")
        if not (directory / name).is_file():
            raise EngineError(f"engine {directory}", f"file {name!r} is missing", "copy the whole directory, or rebuild the engine")


def check_contents(manifest: Manifest, directory: Path, names: list[str], advance: Advance = ignore) -> None:
    """These files have the hashes that the manifest gives them."""
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
        for name, found in zip(names, threads.map(lambda name: hash_file(directory / name), names)):
            check_hash(directory, name, manifest.files[name], found)
            advance(1)


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
