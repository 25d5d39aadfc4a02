"""What a build returns: a handle on an engine directory, readable as text. Loads no weights; `LLM` does."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from tilewright.ir.manifest import Manifest
from tilewright.ir.types import ITEM_BYTES

if TYPE_CHECKING:
    from tilewright.inspect.run import Run


@dataclass(frozen=True, slots=True)
class Engine:
    path: Path
    manifest: Manifest

    @staticmethod
    def open(path: str | Path) -> Engine:
        """Reads the manifest alone. Raises EngineError."""
        return Engine(Path(path), Manifest.read(Path(path)))

    @property
    def inspect(self) -> Run:
        """What the build recorded. Raises EngineError where it recorded nothing."""
        from tilewright.inspect.run import load

        return load(self.path)

    def __repr__(self) -> str:
        return f"<engine {self.path} for {self.manifest.target}>"

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        model, limits = self.manifest.model, self.manifest.limits
        weights = ", int8 weights" if any(weight.dtype == "i8" for weight in self.manifest.weights) else ""
        lines = [
            f"engine {self.path}: {model.architecture}, {count(model.num_parameters)} parameters, {model.dtype}{weights}, for {self.manifest.target}",
            f"  limits    {limits.max_batch_size} sequences, {limits.max_input_len} tokens in and {limits.max_output_len} out each, "
            f"{limits.max_tokens} tokens a step, KV pages of {limits.page_size}",
            f"  weights   {count(weight_bytes(self.manifest))}B in {len({w.file for w in self.manifest.weights})} files",
            f"  kernels   {describe_kernels(self.manifest)}",
        ]
        lines += [f"  {p.kind:<9} up to {p.max_tokens} tokens: {len(p.launches)} launches, {count(p.arena_bytes)}B" for p in self.manifest.programs]
        return "\n".join(lines)


def weight_bytes(manifest: Manifest) -> int:
    return sum(prod(w.shape) * ITEM_BYTES[w.dtype] for w in manifest.weights)


def describe_kernels(manifest: Manifest) -> str:
    kernels = manifest.all_kernels
    archs = sorted({arch for kernel in kernels for arch in kernel.binaries})
    spilling = [k.name for k in kernels if any(b.stack_bytes for b in k.binaries.values())]
    compiled = f", compiled for {', '.join(archs)}" if archs else ", plain torch"
    tuned = sum(kernel.tuned is not None for kernel in kernels)
    compiled += f"; {tuned} with measured tiles" if tuned else ""
    samplers = f", {len(kernels) - len(manifest.kernels)} of them to sample" if manifest.sampling else ""
    return f"{len(kernels)}{samplers}{compiled}" + (f"; {len(spilling)} spill registers: {', '.join(spilling)}" if spilling else "")


def count(number: float) -> str:
    """1234567 -> 1.23 M"""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:g} "
