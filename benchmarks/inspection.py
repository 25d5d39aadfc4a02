"""Holds what inspection shows of an engine against the machine: times that add up, shares of its limits, no cost at run time, a newcomer's task.

`python benchmarks/inspection.py` builds a Llama-3-8B-shaped engine for that; `--engine DIR` takes one that is there. On the CPU, what needs a GPU
says so.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import torch
from engines import add_engine_arguments, build_engine, make_checkpoint, release
from random_checkpoint import write_checkpoint
from results_table import report, show
from scratch import open_scratch
from work import time_on_gpu

import tilewright as tw
from tilewright.graph_timing import time_graph
from tilewright.inspect.perf import RecordedProfile, profile_here, read_profile, save_profile
from tilewright.inspect.report.time_rows import GAP, OVER
from tilewright.measure import measure_latency, random_prompt
from tilewright.runtime.dtypes import TORCH_DTYPES

COLUMNS = ["check", "what", "should be", "is", "holds"]
BATCHES = (1, 16)
CONTEXT = 384
NEAR = 0.10  # of peaks that are measured in another way
MOST_SLOWER = 0.01  # with inspection's files beside the engine
ROUNDS = 4
LAYER, FACTOR = 17, 1.25  # of the newcomer's model: what a pass of its own makes too large
LOUD = f'''
import tilewright as tw

@tw.register_pass("loud-layer")
def loud_layer(graph, rw):
    """A fault on purpose."""
    for op in rw.each("linear"):
        if op.result.name == "model.layers.{LAYER}.mlp.down_proj":
            rw.insert_after(op.result, "mul", {{"scalar": {FACTOR}}})
'''
Row = tuple[str, str, str, bool | None]  # what, should be, is, holds; None where that is for the reader to say, or cannot be measured here


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_engine_arguments(parser, shapes=["llama-3-8b"], quantize=["none"])
    parser.add_argument("--engine", type=Path, help="an engine to measure, rather than building those that are named")
    parser.add_argument("--only", nargs="+", default=["23", "24", "25", "26"], choices=["23", "24", "25", "26"])
    args = parser.parse_args()
    rows: list[list[str]] = []
    with open_scratch(args.scratch, args.shapes[0]) as scratch:
        engine = args.engine or build_shape(scratch, args)
        if args.build_only:
            return
        for check, found in chain(measure_times(engine, args.only), measure_effect(engine, args.only), time_newcomer(scratch, args)):
            what, wanted, got, holds = found
            rows.append(show(COLUMNS, [check, what, wanted, got, "–" if holds is None else "yes" if holds else "NO"]))
    report("Inspection beside the machine", f"Engine {engine.name}.", COLUMNS, rows, write=args.write)
    sys.exit(int(any(row[-1] == "NO" for row in rows)))


def build_shape(scratch: Path, args: argparse.Namespace) -> Path:
    return build_engine(make_checkpoint(args.shapes[0], scratch, args), args.quantize[0], args, max_input_len=512, max_output_len=512)


# -- 23 and 24: times and limits ------------------------------------------------------------------------------------------------
def measure_times(engine: Path, only: list[str]) -> Iterator[tuple[str, Row]]:
    if not {"23", "24"} & set(only):
        return
    llm = tw.LLM(engine, max_cache_tokens=max(BATCHES) * 1024)
    limits, profiles = llm.manifest.limits, []
    context = min(CONTEXT, (limits.max_input_len + limits.max_output_len) // 2)
    for batch in (b for b in BATCHES if b <= limits.max_batch_size):
        with tempfile.TemporaryDirectory() as kept:  # as the report reads it
            profiles.append(read_profile(save_profile(Path(kept), profile_here(llm, batch=batch, context=context), llm.engine.backend.device)))
    dtype = TORCH_DTYPES[llm.manifest.model.dtype]
    del llm
    release()
    if "23" in only:
        yield from (("23", row) for profile in profiles for row in compare_times(profile))
    if "24" in only:
        yield from (("24", row) for row in (*compare_peaks(profiles[0], dtype), *compare_shares(profiles)))


def compare_times(profile: RecordedProfile) -> Iterator[Row]:
    what = f"batch {profile.batch}: launches one by one / together / a step"
    gap = abs(profile.sum_us / profile.step_us - 1)
    shown = f"{profile.sum_us:.0f} / {profile.step_us:.0f} / {profile.wall_us:.0f} µs"
    yield what, "all three shown", shown, min(profile.sum_us, profile.step_us, profile.wall_us) > 0
    flag = "" if gap <= GAP else ", which the Time screen flags"
    yield f"batch {profile.batch}: gap between the first two", f"≤ {GAP:.0%}, or flagged", f"{gap:.1%}{flag}", gap <= GAP or None
    host, named = 1 - profile.step_us / profile.wall_us, "the host" if profile.samples else "sampling and the host"
    yield f"batch {profile.batch}: gap between the last two", f"≤ {GAP:.0%}, or named", f"{host:.1%}: {named}", abs(host) <= GAP or None


def compare_peaks(profile: RecordedProfile, dtype: torch.dtype) -> Iterator[Row]:
    """The limits that profiles use, beside torch's copy and torch's product of another shape."""
    wanted = f"within {NEAR:.0%}"
    if profile.read_limit is None or profile.compute_limit is None:
        yield "copy beside the read limit", wanted, "needs a GPU", None
        yield "large product beside the matrix limit", wanted, "needs a GPU", None
        return
    copied, multiplied = measure_copy(), measure_product(dtype)
    share = copied / profile.read_limit
    shown = f"{copied / 1e12:.2f} of {profile.read_limit / 1e12:.2f} TB/s: {share:.0%}"
    yield "copy beside the read limit", wanted, shown, abs(share - 1) <= NEAR
    share = multiplied / profile.compute_limit
    shown = f"{multiplied / 1e12:.0f} of {profile.compute_limit / 1e12:.0f} Top/s: {share:.0%}"
    yield "large product beside the matrix limit", wanted, shown, abs(share - 1) <= NEAR


def measure_copy() -> float:
    """Bytes a second, read and written. Not in a graph: one that holds a copy makes it in another, slower way."""
    source = torch.ones(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / min(time_on_gpu(lambda: target.copy_(source), 10))


def measure_product(dtype: torch.dtype) -> float:
    """Operations a second, of the shape that Llama-3-8B's MLP has in prefill."""
    rows, columns, depth = 8192, 14336, 4096
    a, b = torch.randn(rows, depth, device="cuda", dtype=dtype), torch.randn(depth, columns, device="cuda", dtype=dtype)
    out = torch.empty(rows, columns, device="cuda", dtype=dtype)
    return 2 * rows * columns * depth / (time_graph(lambda i: torch.matmul(a, b, out=out), 4) * 1e-6)


def compare_shares(profiles: list[RecordedProfile]) -> Iterator[Row]:
    wanted = f"none over {OVER:.0%}, which is flagged"
    for profile in profiles:
        shares: dict[str, tuple[float, float]] = {}
        for launch in profile.launches:
            least, spent = shares.get(launch.kernel, (0.0, 0.0))
            shares[launch.kernel] = (least + (profile.least_us(launch) or 0.0), spent + launch.us)
        what = f"batch {profile.batch}: largest share of the limit"
        if profile.read_limit is None:
            yield what, wanted, "needs a GPU", None
            continue
        kernel, share = max(((name, least / spent) for name, (least, spent) in shares.items() if spent), key=lambda pair: pair[1])
        yield what, wanted, f"{share:.0%}: {kernel}", share <= OVER


# -- 25: no observer effect -----------------------------------------------------------------------------------------------------
def measure_effect(engine: Path, only: list[str]) -> Iterator[tuple[str, Row]]:
    """Both engines are loaded, and measured in turns. The one of level 0 shares all other files."""
    if "25" not in only:
        return
    with without_inspection(engine) as bare:
        cache = 4 * 1024
        llms = [tw.LLM(path, max_cache_tokens=cache) for path in (engine, bare)]
        manifest = llms[0].manifest
        limits = manifest.limits
        count = min(64, limits.max_output_len)
        prompts = [random_prompt(manifest.model.vocab_size, length, seed=length) for length in (1, 7, min(100, limits.max_input_len))]
        for name, params in {
            "greedy": tw.SamplingParams(max_tokens=count, temperature=0.0, logprobs=1, ignore_eos=True),
            "drawn": tw.SamplingParams(max_tokens=count, temperature=0.8, top_p=0.9, seed=5, ignore_eos=True),
        }.items():
            told = [[(o.token_ids, o.logprobs) for o in llm.generate(prompts, params, use_progress=False)] for llm in llms]
            yield "25", (f"{name} tokens, level 1 against level 0", "bit-equal", "equal" if told[0] == told[1] else "differ", told[0] == told[1])
        outputs = (max(1, limits.max_output_len // 32), min(144, limits.max_output_len))
        found: list[list[float]] = [[], []]
        for turn in range(2 * ROUNDS):
            side = (turn + 1) // 2 % 2  # 0, 1, 1, 0, 0, 1: neither is always the one that finds the machine warm
            found[side].append(measure_latency(llms[side], prompt_len=min(128, limits.max_input_len), outputs=outputs, repeat=1).ms_per_token)
        first, second = map(statistics.median, found)
        holds = first / second - 1 <= MOST_SLOWER if torch.cuda.is_available() else None
        shown = f"{first:.3f} / {second:.3f} ms: {first / second - 1:+.2%}"
        yield "25", ("decode of one sequence, level 1 / level 0", f"≤ {MOST_SLOWER:.0%} slower", shown, holds)
        del llms
        release()


@contextmanager
def without_inspection(engine: Path) -> Iterator[Path]:
    """The engine that TILEWRIGHT_INSPECT=0 builds: the same one without its inspect folder."""
    with tempfile.TemporaryDirectory(prefix=f".{engine.name}.", dir=engine.resolve().parent) as folder:
        bare = Path(folder) / "engine"
        shutil.copytree(engine, bare, copy_function=os.link, ignore=shutil.ignore_patterns("inspect"))
        manifest = json.loads((engine / "manifest.json").read_text(encoding="utf-8"))
        manifest["files"] = {name: found for name, found in manifest["files"].items() if not name.startswith("inspect/")}
        (bare / "manifest.json").unlink()  # its bytes are the other engine's
        (bare / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        yield bare


# -- 26: a newcomer's task ------------------------------------------------------------------------------------------------------
def time_newcomer(scratch: Path, args: argparse.Namespace) -> Iterator[tuple[str, Row]]:
    """Which pass made layer 17 wrong, which kernel is that, and which line: each command gets what the one before it printed."""
    if "26" not in args.only:
        return
    model, engine, passes = write_checkpoint("tiny", scratch / "newcomer", layers=32), scratch / "newcomer-engine", scratch / "loud.py"
    passes.write_text(LOUD, encoding="utf-8")
    target = ["--target", args.target] if args.target else []
    limits = ["--max-batch-size", "4", "--max-input-len", "64", "--max-output-len", "64"]
    tilewright("--load", passes, "build", model, engine, "--pipeline", "default, loud-layer", *limits, *target)
    started = time.perf_counter()
    errors = tilewright("check", engine)
    value = first(r"RED .*?%(\S+)", errors)
    guilty = first(rf"\d+ +(\S+) .*%{re.escape(value)} .*x floor", errors)
    history = tilewright("blame", engine, f"%{value}")
    kernel = first(r"kernel +decode\w*: (\S+)", history)
    source = tilewright("kernel", engine, kernel)
    line = first(rf"\n(.*{FACTOR}.*)", source)
    seconds = time.perf_counter() - started
    yield "26", (f"check names layer {LAYER}, and its pass", "loud-layer", f"{guilty} at %{value}", guilty == "loud-layer" and f".{LAYER}." in value)
    yield "26", ("blame names the kernel, kernel the line", f"× {FACTOR}", f"{kernel}: {line.strip()}", bool(kernel and line))
    yield "26", ("commands, and their time", "3", f"3 in {seconds:.0f} s", True)


def tilewright(*words: object) -> str:
    done = subprocess.run([sys.executable, "-m", "tilewright", *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"tilewright {' '.join(map(str, words))}\n{done.stderr}")
    return done.stdout


def first(pattern: str, text: str) -> str:
    """What the pattern's group is where it is found first; empty where it is not."""
    found = re.search(pattern, text)
    return found[1] if found else ""


if __name__ == "__main__":
    main()
