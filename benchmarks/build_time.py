"""Build seconds, peak host memory, and load-to-first-token seconds of a checkpoint with random weights: `python benchmarks/build_time.py --write`.

Memory is RssAnon over the build's processes: pages of mapped files, which the system drops when it needs them, do not count.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from random_checkpoint import SHAPES, write_checkpoint
from results_table import report
from scratch import open_scratch

FIRST_TOKEN = """
import sys, time
started = time.perf_counter()
import tilewright as tw
llm, params = tw.LLM(sys.argv[1]), tw.SamplingParams(max_tokens=1, temperature=0.0)
loaded = time.perf_counter()
llm.generate([[1, 2, 3, 4]], params, use_progress=False)
print(loaded - started, time.perf_counter() - started)
"""


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
    parser.add_argument("--write", action="store_true", help="append to RESULTS.md")
    args = parser.parse_args()
    rows = [row for shape in args.shapes for row in measure_shape(shape, args)]
    columns = ["shape", "weights", "checkpoint GB", "build s", "peak GB (RssAnon)", "load s", "load to first token s"]
    report("Build and load", "One process each; load times include importing Python packages.", columns, rows, write=args.write)


def measure_shape(shape: str, args: argparse.Namespace) -> list[list[str]]:
    rows = []
    with open_scratch(args.scratch, shape) as scratch:
        model = write_checkpoint(shape, scratch / "model", layers=args.layers)
        size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
        for quantize in args.quantize:
            engine = scratch / f"engine-{quantize}"
            command = [sys.executable, "-m", "tilewright", "build", str(model), str(engine), "--max-input-len", "512", "--max-output-len", "512"]
            command += [] if quantize == "none" else ["--quantize", quantize]
            command += ["--target", args.target] if args.target else []
            build = watch(command)
            loaded, first_token = watch([sys.executable, "-c", FIRST_TOKEN, str(engine)]).output.split()[-2:]
            weights = "bf16" if quantize == "none" else quantize
            peak = f"{build.peak_bytes / 1e9:.2f}"
            rows.append([shape, weights, f"{size / 1e9:.2f}", f"{build.seconds:.1f}", peak, f"{float(loaded):.1f}", f"{float(first_token):.1f}"])
    return rows


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
