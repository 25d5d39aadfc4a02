"""Microseconds of the host for a step, by part, with a device that costs nothing: `python benchmarks/host.py --write`. Needs no GPU and no engine.

"schedule" chooses the tokens of the step, "fill" writes its tensors, "complete" takes in the tokens of a step, "outputs" is the rest of
EngineCore.step. "mixed" steps have prompts coming in beside decodes: each sequence that ends makes room for one that begins.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from results_table import report, show

from tilewright.ir.manifest import KVCache, Limits, Manifest, ModelInfo
from tilewright.runtime.engine_core import EngineCore
from tilewright.runtime.runner import SampledOnHost
from tilewright.runtime.sampling_params import SamplingParams
from tilewright.runtime.scheduler import Step
from tilewright.runtime.step import SlotTables, StepDims, StepLayout

PARTS = ("schedule", "fill", "complete", "outputs")
COLUMNS = ["batch", "steps", "sampling", "us a step", *PARTS, "slowest 1 %"]
VOCAB = 128_256
GREEDY = SamplingParams(max_tokens=None, temperature=0.0, ignore_eos=True)
SAMPLED = SamplingParams(max_tokens=None, temperature=0.8, top_k=50, top_p=0.9, seed=1, ignore_eos=True)


class Clock:
    """Seconds by part, of the step that is under way."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            started = time.perf_counter()
            result = function(*args)
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started
            return result

        return run


class HostRunner:
    """Does what a runner does on the host until a step's tensors could be sent; every token is 1."""

    def __init__(self, limits: Limits, num_pages: int) -> None:
        self.num_pages, self._limits = num_pages, limits
        self._tables = SlotTables(limits)
        most = limits.max_batch_size
        self._ragged = StepLayout(StepDims(limits.max_tokens, most, most), limits)
        self._block = np.zeros(self._ragged.num_bytes + StepLayout(StepDims(most, most, most), limits).num_bytes, np.uint8)
        self._decodes: dict[int, dict[str, np.ndarray]] = {}

    def launch(self, step: Step) -> PendingOnes:
        for sequence in step.admitted:
            self._tables.assign(sequence)
        self._tables.update_pages(step)
        if step.is_decode:
            self._tables.fill_decode(step, self._views(step.num_tokens))
        else:
            dims = StepDims(step.num_tokens, max(1, len(step.sampling)), len(step.starts))
            self._tables.fill_ragged(step, self._ragged.host_views(self._block, dims))
        return PendingOnes(len(step.sampling))

    def _views(self, size: int) -> dict[str, np.ndarray]:
        if size not in self._decodes:
            dims = StepDims(size, size, size)
            self._decodes[size] = StepLayout(dims, self._limits).host_views(self._block, dims)
        return self._decodes[size]


class PendingOnes:
    def __init__(self, count: int) -> None:
        self._sampled = SampledOnHost([1] * count)

    def wait(self) -> SampledOnHost:
        return self._sampled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 128, 256])
    parser.add_argument("--steps", type=int, default=400, help="that are counted")
    parser.add_argument("--stream", action="store_true", help="with an output for each token, as servers ask for")
    parser.add_argument("--write", action="store_true", help="append to RESULTS.md")
    args = parser.parse_args()
    kinds = [(kind, batch, params) for kind in ("decode", "mixed") for batch in args.batches for params in (GREEDY, SAMPLED)]
    rows = [show(COLUMNS, measure(kind, batch, params, args)) for kind, batch, params in kinds]
    streamed = "an output for each token" if args.stream else "an output for each request"
    report("Host", f"Median of {args.steps} steps, microseconds; {streamed}.", COLUMNS, rows, write=args.write)


def measure(kind: str, batch: int, params: SamplingParams, args: argparse.Namespace) -> list[str]:
    core, clock = make_core(batch)
    feed = Feed(core, batch, params, mixed=kind == "mixed", stream=args.stream)
    totals: list[float] = []
    parts: dict[str, list[float]] = {part: [] for part in PARTS}
    while len(totals) < args.steps:
        feed.top_up()
        clock.seconds = {}
        started = time.perf_counter()
        core.step()
        seconds = time.perf_counter() - started
        if not feed.is_steady():
            continue
        totals.append(seconds)
        clock.seconds["outputs"] = seconds - sum(clock.seconds.values())
        for part in PARTS:
            parts[part].append(clock.seconds.get(part, 0.0))
    slowest = statistics.quantiles(totals, n=100)[-1]
    sampling = "greedy" if params is GREEDY else "sampled"
    numbers = [statistics.median(totals), *(statistics.median(parts[part]) for part in PARTS), slowest]
    return [str(batch), kind, sampling, *(f"{seconds * 1e6:.1f}" for seconds in numbers)]


def make_core(batch: int) -> tuple[EngineCore, Clock]:
    limits = Limits(batch, 1024, 2048, 8192, 16)
    model = ModelInfo("host", "Host", VOCAB, "bf16", "none", 0, 1 << 20)
    manifest = Manifest(1, "host", "cpu", model, limits, KVCache("bf16", ()), (), (), ())
    runner, clock = HostRunner(limits, batch * limits.max_pages_per_sequence), Clock()
    runner.launch = clock.timed("fill", runner.launch)
    core = EngineCore(manifest, runner, lookahead=1)
    core.scheduler.schedule = clock.timed("schedule", core.scheduler.schedule)
    core.scheduler.complete = clock.timed("complete", core.scheduler.complete)
    return core, clock


class Feed:
    """Keeps the batch full: with requests that last, or, for mixed steps, with ever new ones of 100 to 1,024 tokens in and 32 to 96 out."""

    def __init__(self, core: EngineCore, batch: int, params: SamplingParams, *, mixed: bool, stream: bool) -> None:
        self._core, self._batch, self._params, self._mixed, self._stream = core, batch, params, mixed, stream
        self._dice = random.Random(0)
        self._num_requests = self._num_steady = 0

    def top_up(self) -> None:
        while self._core.num_requests < self._batch + self._mixed * 4:
            count = self._dice.randint(32, 96) if self._mixed else 2048
            params = SamplingParams(max_tokens=count, temperature=self._params.temperature, top_k=self._params.top_k, top_p=self._params.top_p)
            prompt = [1] * self._dice.randint(100, 1024)
            self._core.add_request(f"r{self._num_requests}", prompt, params, stream=self._stream)
            self._num_requests += 1

    def is_steady(self) -> bool:
        """Whether the last step was of the kind asked for: all sequences decode, or the batch has been full for a while."""
        is_full = len(self._core.scheduler.running) == self._batch
        is_decode = not any(sequence.num_uncomputed > 1 for sequence in self._core.scheduler.running)
        self._num_steady += is_full and (self._mixed or is_decode)
        return self._num_steady > 10


if __name__ == "__main__":
    main()
