"""Writes an engine directory: weights, kernels and their binaries, files passed in, and last the manifest. Whole or not at all.

Everything goes into a sibling directory that is renamed at the end. The same input gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from tilewright.codegen.aot import compile_all
from tilewright.codegen.lower import Lowered, tile_config
from tilewright.codegen.sample_template import SHORTEST, emit_sampling
from tilewright.codegen.weight_files import plan_shards, write_shard
from tilewright.ir.errors import EngineError
from tilewright.ir.manifest import MANIFEST_FILE, SCHEMA, Kernel, Limits, Manifest, ModelInfo, Sampling
from tilewright.ir.weights import Weights


class Progress(Protocol):
    def __call__(self, stage: str, done: int, total: int, what: str) -> None:
        """stage: weights or kernels; `what` was just finished."""
        ...


def _ignore(stage: str, done: int, total: int, what: str) -> None:
    return None


def pack(
    out: Path, lowered: Lowered, weights: Weights, *, model: ModelInfo, limits: Limits, producer: str, archs: Sequence[str] | None = None,
    files: Mapping[str, bytes | Path] | None = None, progress: Progress = _ignore, jobs: int = 0,
) -> Manifest:  # fmt: skip
    """Writes the engine and returns its manifest.

    archs: architectures to compile for, by default the target alone (none for cpu). files: what else goes in, by relative name: the tokenizer,
    `inspect/…`. An engine that is there already is replaced; anything else is refused with EngineError.
    """
    out = Path(out).absolute()
    check_destination(out)
    archs = ([] if lowered.target == "cpu" else [lowered.target]) if archs is None else list(archs)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        partial.chmod(0o755)
        kernels, sampling = _write_kernels(partial, lowered, archs, progress, jobs)
        _write_files(partial, files or {})
        shards = plan_shards(lowered.constants.values())
        _write_weights(partial, shards, weights, progress)
        manifest = Manifest(
            schema=SCHEMA, producer=producer, target=lowered.target, model=model, limits=limits, cache=lowered.cache, programs=lowered.programs,
            kernels=kernels, weights=tuple(entry for shard in shards for entry in shard.entries), files=hash_files(partial),
            sampling=sampling,
        )  # fmt: skip
        manifest.write(partial)
        _move_into_place(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return manifest


def check_destination(out: Path) -> None:
    """Raises EngineError unless `out` is free, empty or an engine."""
    if out.is_dir():
        if any(out.iterdir()) and not (out / MANIFEST_FILE).is_file():
            raise EngineError(f"engine {out}", f"the directory holds files and no {MANIFEST_FILE}: it is no engine", "choose another directory")
    elif out.exists():
        raise EngineError(f"engine {out}", "is a file", "choose another directory")


def _write_kernels(
    partial: Path, lowered: Lowered, archs: Sequence[str], progress: Progress, jobs: int
) -> tuple[tuple[Kernel, ...], Sampling | None]:
    (partial / "kernels").mkdir()
    sampling, sources = sampling_of(lowered)
    kernels, sources = (*lowered.kernels, *(sampling.kernels if sampling else ())), {**lowered.sources, **sources}
    for kernel in kernels:
        (partial / kernel.file).write_text(sources[kernel.name], encoding="utf-8", newline="\n")
    compiled = compile_all(
        kernels, sources, archs, jobs, lambda done, total, what: progress("kernels", done, total, what), modules=lowered.modules
    )
    for result in compiled.values():
        (partial / result.binary.file).write_bytes(result.cubin)
    finished = tuple(
        dataclasses.replace(kernel, binaries={arch: compiled[kernel.name, arch].binary for arch in sorted(archs)}) for kernel in kernels
    )
    own, of_sampling = finished[: len(lowered.kernels)], finished[len(lowered.kernels) :]
    return own, dataclasses.replace(sampling, kernels=of_sampling) if sampling else None


def sampling_of(lowered: Lowered) -> tuple[Sampling | None, dict[str, str]]:
    """Kernels for rows of the model's logits, and their sources by name; the cpu target, and vocabularies of a few tokens, sample with torch."""
    widths = {buffer.shape[1] for program in lowered.programs for buffer in program.buffers if buffer.name == program.logits}
    if lowered.target == "cpu" or not widths or int(max(widths)) <= SHORTEST:
        return None, {}
    (width,) = widths
    emitted = emit_sampling(int(width), dependent_launch=bool(dict(tile_config(lowered.target))["dependent_launch"]))
    return emitted.sampling, emitted.sources


def _write_files(partial: Path, files: Mapping[str, bytes | Path]) -> None:
    for name in sorted(files):
        target = partial / name
        if Path(name).is_absolute() or ".." in Path(name).parts or target.exists():
            raise EngineError(f"engine file {name!r}", "lies outside the engine, or is one of its own files", "pass another name")
        target.parent.mkdir(parents=True, exist_ok=True)
        data = files[name]
        target.write_bytes(data if isinstance(data, bytes) else data.read_bytes())


def _write_weights(partial: Path, shards: Sequence, weights: Weights, progress: Progress) -> None:
    total = sum(len(shard.values) for shard in shards)
    finished: list[str] = []

    def done(name: str) -> None:
        finished.append(name)
        progress("weights", len(finished), total, name)

    for shard in shards:
        write_shard(partial, shard, weights, done)


def hash_files(directory: Path) -> dict[str, str]:
    """sha256 of every file but the manifest, by relative name, sorted."""
    found = sorted(p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file())
    return {name: _hash(directory / name) for name in found if name != MANIFEST_FILE}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _move_into_place(partial: Path, out: Path) -> None:
    if not out.exists():
        partial.rename(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
    out.rename(old)  # onto an empty directory
    try:
        partial.rename(out)
    except OSError:
        old.rename(out)
        raise
    with suppress(OSError):
        shutil.rmtree(old)
