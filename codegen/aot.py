"""Compiles many kernels for many architectures: in worker processes, and never twice. Knows nothing of plans or engines.

Results lie in a content-addressed cache on disk: the key holds everything that the cubin depends on, so an entry never goes stale.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tilewright.codegen.aot_kernel import SHARED_LIMITS, Compiled, compile_kernel
from tilewright.ir.errors import CodegenError
from tilewright.ir.manifest import Binary, Kernel

__all__ = ["SHARED_LIMITS", "Compiled", "compile_all", "compile_each", "compile_kernel", "default_cache", "strip_comments"]
_FEW = 2  # this many kernels compile sooner in this process than a worker starts

Progress = Callable[[int, int, str], None]  # compiled so far, of how many, what


@dataclasses.dataclass(frozen=True, slots=True)
class _Job:
    kernel: Kernel
    source: str
    arch: str
    modules: tuple[str, ...]
    key: str  # _digest of it


def _digest(kernel: Kernel, source: str, arch: str) -> str:
    """Of all that the cubin depends on; neither the kernel's name nor comments (which name modules) are among it."""
    parts = (
        "2", _triton_version(), arch, strip_comments(source), kernel.entry, kernel.parameters, sorted(kernel.constants.items()),
        kernel.num_warps, kernel.num_stages, kernel.dependent_launch,
    )  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@functools.cache
def _triton_version() -> str:
    return importlib.metadata.version("triton")


@functools.lru_cache(1024)  # a source is compiled for several architectures and asked for again
def strip_comments(source: str) -> str:
    """The code alone, in one layout; text that does not parse, as it is."""
    try:
        return ast.unparse(ast.parse(source))
    except SyntaxError:  # the compiler will say what is wrong
        return source


def default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tilewright" / "kernels"


def compile_all(
    kernels: Sequence[Kernel],
    sources: Mapping[str, str],
    archs: Sequence[str],
    jobs: int = 0,
    progress: Progress | None = None,
    *,
    cache: Path | None = None,
    modules: Mapping[str, tuple[str, ...]] | None = None,
) -> dict[tuple[str, str], Compiled]:
    """Compiles every kernel for every architecture; keys are (kernel name, architecture).

    `sources` and `modules` (HF module paths, for error messages) are by kernel name; `jobs` 0 means one worker per CPU core. Raises the
    CodegenError of the first kernel that does not compile; the others are named in its notes.
    """
    results = compile_each(kernels, sources, archs, jobs, progress, cache=cache, modules=modules)
    errors = list({id(result): result for result in results.values() if isinstance(result, CodegenError)}.values())
    if errors:
        for other in errors[1:]:
            errors[0].add_note(f"also: {other.where}: {other.problem.splitlines()[0]:.200}")
        raise errors[0]
    return {key: result for key, result in results.items() if isinstance(result, Compiled)}


def compile_each(
    kernels: Sequence[Kernel],
    sources: Mapping[str, str],
    archs: Sequence[str],
    jobs: int = 0,
    progress: Progress | None = None,
    *,
    cache: Path | None = None,
    modules: Mapping[str, tuple[str, ...]] | None = None,
) -> dict[tuple[str, str], Compiled | CodegenError]:
    """As compile_all, for kernels that may fail: gives the error of each that does."""
    cache = cache or default_cache()
    wanted = [
        _Job(kernel, source := sources[kernel.name], arch, (modules or {}).get(kernel.name, ()), _digest(kernel, source, arch))
        for kernel in kernels for arch in archs
    ]  # fmt: skip
    missing = {job.key: job for job in wanted if not (cache / job.key).is_dir()}
    done = len(wanted) - len(missing)
    errors: dict[str, CodegenError] = {}
    for job, error in _compile_missing(list(missing.values()), cache, jobs or os.cpu_count() or 1):
        done += 1
        if error:
            errors[job.key] = error
        if progress:
            progress(done, len(wanted), f"{job.kernel.name} for {job.arch}")
    return {
        (job.kernel.name, job.arch): errors[job.key] if job.key in errors else read_entry(cache / job.key, job.kernel.name, job.arch)
        for job in wanted
    }


def _compile_missing(missing: list[_Job], cache: Path, jobs: int) -> Iterable[tuple[_Job, CodegenError | None]]:
    if jobs == 1 or len(missing) <= _FEW:
        for job in missing:
            yield job, _compile_here(job, cache)
        return
    workers = [_Worker(cache) for _ in range(min(jobs, len(missing)))]
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def compile_there(job: _Job) -> CodegenError | None:
        worker = idle.get()
        try:
            return worker.compile(job)
        finally:
            idle.put(worker)

    try:
        with ThreadPoolExecutor(len(workers)) as pool:
            yield from zip(missing, pool.map(compile_there, missing))
    finally:
        for worker in workers:
            worker.stop()


def _compile_here(job: _Job, cache: Path) -> CodegenError | None:
    try:
        write_entry(cache, job.key, compile_kernel(job.kernel, job.source, job.arch, job.modules))
    except CodegenError as error:
        return error
    return None


class _Worker:
    """A process that compiles one kernel after another: a JSON line per job in, a JSON line (null, or the error) out.

    Not multiprocessing: that would run the user's main module again, and a compiler that aborts would take the pool with it.
    """

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.process: subprocess.Popen[str] | None = None

    def compile(self, job: _Job) -> CodegenError | None:
        request = {"cache": str(self.cache), **dataclasses.asdict(job)}
        process = self._start()
        assert process.stdin and process.stdout
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            reply = process.stdout.readline()
        except BrokenPipeError:
            reply = ""
        if not reply:
            code, self.process = process.wait(), None
            return CodegenError(f"kernel {job.kernel.name} for {job.arch}", f"the compiler died (exit code {code})", f"see {job.kernel.file}")
        error = json.loads(reply)
        return CodegenError(*error) if error else None

    def _start(self) -> subprocess.Popen[str]:
        if self.process is None:
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
            environment["PYTHONSAFEPATH"] = "1"  # the package is where it is here, whatever lies in the working directory
            environment.pop("TRITON_INTERPRET", None)  # asks to run kernels in the interpreter; a worker only compiles them
            command = [sys.executable, "-m", "tilewright.codegen.aot_worker"]
            pipe, quiet = subprocess.PIPE, subprocess.DEVNULL  # what MLIR dumps on failure is told shorter by the error
            self.process = subprocess.Popen(command, text=True, env=environment, stdin=pipe, stdout=pipe, stderr=quiet)
        return self.process

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            assert self.process.stdin and self.process.stdout
            self.process.stdin.close()
            self.process.stdout.close()


def write_entry(cache: Path, key: str, compiled: Compiled) -> None:
    """Written aside, then renamed: an entry is whole or absent, and of two writers the first one stays."""
    cache.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".writing-", dir=cache))
    (aside / "kernel.cubin").write_bytes(compiled.cubin)
    (aside / "kernel.ptx").write_text(compiled.ptx, encoding="utf-8")
    (aside / "binary.json").write_text(json.dumps(dataclasses.asdict(compiled.binary)), encoding="utf-8")
    try:
        aside.rename(cache / key)
    except OSError:
        shutil.rmtree(aside)


def read_entry(entry: Path, name: str, arch: str) -> Compiled:
    """The binary's file is named after the kernel that asks, not after the one that was compiled."""
    binary = Binary(**json.loads((entry / "binary.json").read_text(encoding="utf-8")))
    binary = dataclasses.replace(binary, file=f"kernels/{name}.{arch}.cubin")
    return Compiled((entry / "kernel.cubin").read_bytes(), (entry / "kernel.ptx").read_text(encoding="utf-8"), binary)
