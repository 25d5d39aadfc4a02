"""Build seconds and peak host memory of a checkpoint with random weights, and where the time from its load to its first token goes:
`python benchmarks/build_time.py --write`.

Memory is RssAnon over the build's processes: pages of mapped files, which the system drops when it needs them, do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from random_checkpoint import SHAPES, write_checkpoint
from results_table import report, show
from scratch import open_scratch

# Seconds of each part, one after the other, which add up to the total: "import" ends when all is imported, "digests" is what is waited for them
# then, and "kernels" what remains of the engine's loading (modules go to the GPU when they are first bound, which is the cache's part and the
# first token's). Beside them goes what has threads of its own: when hashing ended, counted from the start, and how long CUDA took to start.
FIRST_TOKEN = """
import json, sys, time
from contextlib import contextmanager

started = time.perf_counter()
import tilewright as tw
tw.LLM
from tilewright.runtime import engine_files, llm, torch_import

parts = {}


def timed(owner, name, part):
    function = getattr(owner, name)

    def run(*args, **kwargs):
        begun = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            ended = time.perf_counter()
            parts[part] = parts.get(part, 0.0) + ended - begun
            parts[part + " until"] = ended - started

    setattr(owner, name, run)


importing_torch = llm.importing_torch


@contextmanager
def importing(*args):
    with importing_torch(*args):
        yield
    parts["import"] = time.perf_counter() - started
    from tilewright.runtime import engine, runner

    timed(engine, "choose_backend", "device")
    timed(engine_files.EngineFiles, "check", "digests")
    timed(engine, "load_weights", "weights")
    timed(runner.Runner, "__init__", "cache")


llm.importing_torch = importing
if len(sys.argv) > 2:
    engine_files.count_threads = lambda: int(sys.argv[2])
timed(engine_files, "hash_file", "hashing")
timed(torch_import, "start_device", "CUDA start")
loaded = tw.LLM(sys.argv[1])
parts["kernels"] = time.perf_counter() - started - sum(parts[part] for part in ("import", "device", "digests", "weights", "cache"))
begun = time.perf_counter()
loaded.generate([[1, 2, 3, 4]], tw.SamplingParams(max_tokens=1, temperature=0.0), use_progress=False)
parts["first token"] = time.perf_counter() - begun
parts["total"] = time.perf_counter() - started
print(json.dumps(parts))
"""
PARTS = ("import", "device", "digests", "weights", "kernels", "cache", "first token", "total")
BESIDE = ("hashing until", "CUDA start")  # in threads of their own
BUILD_COLUMNS = ["shape", "weights", "checkpoint GB", "build s", "peak GB (RssAnon)"]
LOAD_COLUMNS = ["shape", "weights", "file cache", *(f"{part} s" for part in PARTS), *(f"({part} s)" for part in BESIDE)]


@dataclass(frozen=True, slots=True)
class Run:
    seconds: float
    peak_bytes: int
    output: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", default=["llama-3-8b"], choices=list(SHAPES))
    parser.add_argument("--quantize", nargs="+", default=["none", "int8"])
    parser.add_argument("--target", default=None)
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--scratch", help="folder that keeps checkpoints and engines")
    parser.add_argument("--hash-threads", help="that many hash files while torch is imported (default: as many as a user's load has)")
    parser.add_argument("--load-only", action="store_true", help="use engines that stand in the scratch folder, and time only their loading")
    parser.add_argument("--write", action="store_true", help="append to RESULTS.md")
    args = parser.parse_args()
    builds: list[list[str]] = []
    loads: list[list[str]] = []
    for shape in args.shapes:
        measure_shape(shape, args, builds, loads)
    if builds:
        report("Build", "One process each.", BUILD_COLUMNS, builds, write=args.write)
    notes = "From the start of Python's imports to the first token, one process each. In brackets: what goes on in threads beside the import."
    report("Load to first token", notes, LOAD_COLUMNS, loads, write=args.write)


def measure_shape(shape: str, args: argparse.Namespace, builds: list[list[str]], loads: list[list[str]]) -> None:
    with open_scratch(args.scratch, shape) as scratch:
        model = write_checkpoint(shape, scratch / "model", layers=args.layers)
        size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
        for quantize in args.quantize:
            engine, name = scratch / f"engine-{quantize}-512", "bf16" if quantize == "none" else quantize
            if not (args.load_only and (engine / "manifest.json").exists()):
                build = watch(build_command(model, engine, quantize, args.target))
                builds.append(show(BUILD_COLUMNS, [shape, name, f"{size / 1e9:.2f}", f"{build.seconds:.1f}", f"{build.peak_bytes / 1e9:.2f}"]))
            for cache in ("cold", "warm"):
                if cache == "cold":
                    drop_from_cache(engine)
                command = [sys.executable, "-c", FIRST_TOKEN, str(engine), *([args.hash_threads] if args.hash_threads else [])]
                parts = json.loads(watch(command).output.splitlines()[-1])
                loads.append(show(LOAD_COLUMNS, [shape, name, cache, *(f"{parts.get(part, 0.0):.2f}" for part in (*PARTS, *BESIDE))]))


def build_command(model: Path, engine: Path, quantize: str, target: str | None) -> list[str]:
    command = [sys.executable, "-m", "tilewright", "build", str(model), str(engine), "--max-input-len", "512", "--max-output-len", "512"]
    command += [] if quantize == "none" else ["--quantize", quantize]
    return [*command, "--target", target] if target else command


def drop_from_cache(directory: Path) -> None:
    """Asks the system to forget the files' contents, so that the next reader waits for the disk. File systems in memory keep them."""
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def watch(command: list[str]) -> Run:
    """Runs the command, sampling the anonymous memory of it and its children."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peaks = [0]
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(0.05):
            peaks[0] = max(peaks[0], sum(map(anonymous_bytes, family(process.pid))))

    thread = threading.Thread(target=sample)
    thread.start()
    output, _ = process.communicate()
    ended.set()
    thread.join()
    if process.returncode:
        sys.exit(f"{' '.join(command[:5])} ... ended with {process.returncode}")
    return Run(time.perf_counter() - started, peaks[0], output)


def family(pid: int) -> list[int]:
    """The process and its descendants."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:  # it has just ended
            continue
        found += [descendant for child in children for descendant in family(int(child))]
    return found


def anonymous_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has just ended
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


if __name__ == "__main__":
    main()
