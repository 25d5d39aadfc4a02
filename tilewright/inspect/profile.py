"""Where the time of a step goes, of decoding or of a prompt: each launch with its region and modules, the bytes that it must move, and its share
of the machine's limit. Launches that sample are among them, where the engine has kernels for that.

On a GPU the launches are replayed in a CUDA graph, as the runtime does it, and read back from CUPTI; on the CPU each is timed by itself.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from typing import Any

import torch

from tilewright.codegen.provenance import fold_paths, join_siblings
from tilewright.inspect.layers import Layers
from tilewright.ir.errors import EngineError
from tilewright.ir.manifest import SAMPLING, Buffer, Kernel, KVLayer, Launch, Limits, Manifest, Program
from tilewright.ir.types import ITEM_BYTES
from tilewright.measure import launch_reads_whole, random_prompt
from tilewright.runtime import LLM, SamplingParams
from tilewright.runtime.backend import BoundLaunch
from tilewright.runtime.program_binder import BoundProgram
from tilewright.runtime.sampler import SamplePlan
from tilewright.runtime.step import StepDims, sample_rows

SAMPLING_PARAMS = {
    "greedy": SamplingParams(temperature=0.0), "draw": SamplingParams(temperature=1.0), "filter": SamplingParams(temperature=1.0, top_p=0.9),
}  # fmt: skip
REPEAT = 20  # steps measured; the median counts
SETTLE = 3  # steps before them


@dataclass(frozen=True, slots=True)
class LaunchTime:
    launch: Launch
    us: float  # until it had ended, from when the launch before it had: what it adds to the step
    num_bytes: int  # that it must read and write at least, each once
    operations: int  # of its product or attention; 0 where it has neither
    samples: bool = False


@dataclass(frozen=True, slots=True)
class Profile:
    program: str
    batch: int
    context: int  # keys of each sequence, those of the step among them
    times: tuple[LaunchTime, ...]
    step_us: float  # of the launches together: on a GPU, one replay of their graph
    wall_us: float  # of a whole step as the runtime runs it: with the host, and with sampling where that is no launches
    limit: float | None  # bytes a second that the machine reads at most; None where it is not known
    compute_limit: float | None = None  # operations a second of its matrix products in the engine's dtype
    sampling: str = "greedy"  # how the step's tokens are chosen: a key of SAMPLING_PARAMS
    tokens: int = 1  # of each sequence in this step: those of a whole prompt, or one

    @property
    def sum_us(self) -> float:
        return sum(t.us for t in self.times)

    @property
    def name(self) -> str:
        """What ran."""
        if self.tokens > 1:
            return f"a prompt of {self.tokens} tokens"
        return f"{self.batch} sequences of {self.context} tokens"

    def least_us(self, time: LaunchTime) -> float | None:
        """What the machine's limits leave a launch at least; None where they are not known."""
        return least_us(time.num_bytes, time.operations, self.limit, self.compute_limit)

    @property
    def sampling_us(self) -> float | None:
        """Of the launches that sample; None where torch samples, which is timed with the host."""
        times = [t.us for t in self.times if t.samples]
        return sum(times) if times else None


def least_us(num_bytes: int, operations: int, read_limit: float | None, compute_limit: float | None) -> float | None:
    """Microseconds that a machine takes at least, by what it reads and computes in a second; None where that is not known."""
    if read_limit is None:
        return None
    return max(num_bytes / read_limit, operations / compute_limit if compute_limit else 0.0) * 1e6


def profile_decode(
    llm: LLM, *, batch: int, context: int, limit: float | None = None, compute_limit: float | None = None, sampling: str = "greedy"
) -> Profile:
    """Profiles the program that decodes `batch` sequences which have `context` tokens each, and the sampling of their tokens.

    Raises EngineError where that does not fit.
    """
    params = _params_of(sampling)
    limits = llm.manifest.limits
    if not 1 <= batch <= limits.max_batch_size:
        raise EngineError("profile", f"batch is {batch}, this engine has max_batch_size={limits.max_batch_size}", "pass a smaller batch")
    with _decoding(llm, batch, *_lengths(limits, batch, context), params) as wall:
        bound = llm.runner.bound_decode(batch)
        keys = int(bound.step["context_len"][:batch].float().mean())
        times, step = _time_launches(llm, bound, _Shape(batch, 1, keys), sampling)
    return Profile(bound.program.name, batch, keys, times, step, wall, limit, compute_limit, sampling)


def profile_prompt(
    llm: LLM, *, tokens: int, limit: float | None = None, compute_limit: float | None = None, sampling: str = "greedy"
) -> Profile:
    """Profiles the step that runs a whole prompt of so many tokens, and the sampling of its first. Raises EngineError where that does not fit."""
    params, limits = replace(_params_of(sampling), max_tokens=1, ignore_eos=True), llm.manifest.limits
    most = min(limits.max_input_len, limits.max_tokens, llm.manifest.model.max_positions - 1)
    if not 2 <= tokens <= most:
        raise EngineError("profile", f"prompt is {tokens}, this engine runs 2 to {most} tokens of a prompt in one step", "pass one in between")
    prompt, walls = random_prompt(llm.manifest.model.vocab_size, tokens, seed=0), []
    for _ in range(SETTLE + 3):
        started = time.perf_counter()
        llm.generate([prompt], params, use_progress=False)
        walls.append((time.perf_counter() - started) * 1e6)
    bound = llm.runner.bound_ragged(tokens)
    times, step = _time_launches(llm, bound, _Shape(1, tokens, tokens), sampling)
    return Profile(bound.program.name, 1, tokens, times, step, statistics.median(walls[SETTLE:]), limit, compute_limit, sampling, tokens)


def _params_of(sampling: str) -> SamplingParams:
    if sampling not in SAMPLING_PARAMS:
        raise EngineError("profile", f"sampling is {sampling!r}", f"pass {', '.join(SAMPLING_PARAMS)}")
    return SAMPLING_PARAMS[sampling]


@dataclass(frozen=True, slots=True)
class _Shape:
    batch: int
    tokens: int  # of each sequence in the step
    context: int  # keys of each sequence, those of the step among them

    @property
    def pairs(self) -> int:
        """Of a query and a key that it sees, in all sequences."""
        return self.batch * self.tokens * (2 * self.context - self.tokens + 1) // 2


def _time_launches(llm: LLM, bound: BoundProgram, shape: _Shape, sampling: str) -> tuple[tuple[LaunchTime, ...], float]:
    """Each launch of a bound step and of what samples after it; and microseconds of all together."""
    samplers = llm.runner.sampler.bind(bound.logits, sample_rows(bound.step), SamplePlan.of(SAMPLING_PARAMS[sampling]))
    launches = [*bound.launches, *samplers]
    added, step = _time_on_gpu(launches) if llm.engine.backend.device.type == "cuda" else _time_on_cpu(launches)
    times = [LaunchTime(launch, us, *_work(llm.manifest, bound.program, launch, shape)) for launch, us in zip(bound.program.launches, added)]
    lists = llm.manifest.launch_lists
    for launch, us in zip(lists[f"{SAMPLING}-{sampling}"] if samplers else (), added[len(times) :], strict=True):
        times.append(LaunchTime(replace(launch, modules=(SAMPLING,)), us, _sampled_bytes(llm.manifest, launch, shape.batch), 0, samples=True))
    return tuple(times), step


def _lengths(limits: Limits, batch: int, context: int) -> tuple[int, int]:
    """Tokens of each prompt and of its output, so that all sequences decode together when they have about `context` tokens."""
    longest = limits.max_input_len + limits.max_output_len
    if not 2 <= context < longest:
        raise EngineError("profile", f"context is {context}, this engine has room for 2 to {longest - 1}", "pass one in between")
    for together in (SETTLE + REPEAT, SETTLE):  # fewer steps where the engine has no room for as many as give a steady median
        staggered = batch * context // limits.max_tokens + together  # steps from the first prompt's end to the last one's, and then all
        prompt = min(max(1, context - staggered), limits.max_input_len)
        output = max(context - prompt, staggered) + 2
        if output <= limits.max_output_len:
            break
    else:
        remedy = "pass a smaller batch or context, or build with a larger max_tokens or max_output_len"
        raise EngineError("profile", f"{batch} sequences of {context} tokens decode together after {output} tokens each", remedy)
    return prompt, output


@contextmanager
def _decoding(llm: LLM, batch: int, prompt_len: int, num_tokens: int, params: SamplingParams) -> Iterator[float]:
    """Within it, the last step that the runtime ran is a decode step of the batch; gives the median microseconds of the last such steps."""
    params = replace(params, max_tokens=num_tokens, ignore_eos=True)
    ids = [llm.add_request(random_prompt(llm.manifest.model.vocab_size, prompt_len, seed=i), params) for i in range(batch)]
    stamps: list[float] = []
    outputs = llm.step()
    while not any(output.finished for output in outputs) and max((len(output.token_ids) for output in outputs), default=0) < num_tokens - 2:
        if len(outputs) == batch:
            stamps.append(time.perf_counter())
        outputs = llm.step()
    gaps = [b - a for a, b in pairwise(stamps)]
    try:
        yield statistics.median(gaps[-REPEAT:]) * 1e6 if gaps else 0.0
    finally:
        for request_id in ids:
            llm.abort(request_id)
        while llm.core.has_work:
            llm.step()


# -- timing ---------------------------------------------------------------------------------------------------------------------
def _time_on_cpu(launches: Sequence[BoundLaunch]) -> tuple[list[float], float]:
    runs: list[list[float]] = []
    for _ in range(SETTLE + REPEAT):
        stamps = [time.perf_counter()]
        for launch in launches:
            launch.run(0)
            stamps.append(time.perf_counter())
        runs.append([(b - a) * 1e6 for a, b in pairwise(stamps)])
    kept = runs[SETTLE:]
    return [statistics.median(column) for column in zip(*kept)], statistics.median(map(sum, kept))


def _time_on_gpu(launches: Sequence[BoundLaunch]) -> tuple[list[float], float]:
    """One graph of the step's launches, replayed under torch's profiler; and, without it, between two events."""
    stream = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()

    def run() -> None:
        for launch in launches:
            launch.run(stream.cuda_stream)

    with torch.cuda.stream(stream):
        run()
        stream.synchronize()
        graph.capture_begin()
        run()
        graph.capture_end()
        replay_us = _time_replays(graph, stream)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            for _ in range(SETTLE + REPEAT):
                graph.replay()
            stream.synchronize()
    spans = [(e.time_range.start, e.time_range.end) for e in profiler.events() or () if e.device_type.name == "CUDA"]
    return attribute_time(spans, len(launches)), replay_us


def _time_replays(graph: torch.cuda.CUDAGraph, stream: Any) -> float:
    times = []
    for _ in range(SETTLE + REPEAT):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record(stream)
        graph.replay()
        stop.record(stream)
        stop.synchronize()
        times.append(start.elapsed_time(stop) * 1e3)
    return statistics.median(times[SETTLE:])


def attribute_time(spans: Sequence[tuple[float, float]], num_launches: int) -> list[float]:
    """Median microseconds that each launch adds to a step. spans: start and end of each kernel, of whole steps one after the other.

    A launch that starts early and waits overlaps with the one before it, so that what it adds runs from one end to the next.
    """
    ordered = sorted(spans)
    if not ordered or len(ordered) % num_launches:
        problem = f"recorded {len(ordered)} kernels, steps have {num_launches} launches"
        raise EngineError("profile", problem, "another program uses this GPU, or the recording was cut: run it again")
    steps = [ordered[i : i + num_launches] for i in range(0, len(ordered), num_launches)][SETTLE:] or [ordered[-num_launches:]]
    return [statistics.median(step[i][1] - (step[i - 1][1] if i else step[0][0]) for step in steps) for i in range(num_launches)]


# -- what a launch must do ------------------------------------------------------------------------------------------------------
def _work(manifest: Manifest, program: Program, launch: Launch, shape: _Shape) -> tuple[int, int]:
    """Bytes and operations of a launch."""
    kernel = next(k for k in manifest.kernels if k.name == launch.kernel)
    weights = {w.name: w for w in manifest.weights}
    whole = launch_reads_whole(manifest, launch, kernel, {name: w.shape for name, w in weights.items()})
    buffers = {b.name: b for b in program.buffers}
    tokens = shape.batch * shape.tokens
    dims, pages = StepDims(tokens, shape.batch, shape.batch), manifest.limits.max_pages_per_sequence
    num_bytes = operations = 0
    for arg in launch.args:
        if arg.kind == "buffer" and not arg.name.startswith(f"{launch.kernel}."):  # scratch of its own is no work that it must do
            buffer = buffers[arg.name]
            num_bytes += prod(dims.of(d, pages) for d in buffer.shape) * ITEM_BYTES[buffer.dtype]
        elif arg.kind == "weight":
            weight = weights[arg.name]
            count = prod(weight.shape)
            num_bytes += (count if arg.name in whole else count // weight.shape[0] * tokens) * ITEM_BYTES[weight.dtype]
            rows = shape.batch if any(buffers[a.name].shape[0] == "S" for a in launch.args if a.kind == "buffer") else tokens
            operations += 2 * count * rows if arg.name in whole and len(weight.shape) == 2 else 0
        elif arg.kind in ("k_cache", "v_cache"):
            layer = manifest.cache.layers[int(arg.name)]
            width = layer.num_heads * (layer.head_dim if arg.kind == "k_cache" else layer.value_dim)
            reads = any(other.name == "context_len" for other in launch.args)
            num_bytes += shape.batch * (shape.context if reads else shape.tokens) * width * ITEM_BYTES[manifest.cache.dtype]
            operations += 2 * shape.pairs * width * _heads_of_group(kernel, launch, layer, buffers) if reads else 0
    return num_bytes, operations


def _heads_of_group(kernel: Kernel, launch: Launch, layer: KVLayer, buffers: Mapping[str, Buffer]) -> int:
    """Query heads for each key-value head: what attention gives is as wide as the values of all of them."""
    widths = [buffers[arg.name].shape[-1] for (name, _), arg in zip(kernel.parameters, launch.args) if name == "out" and arg.kind == "buffer"]
    width = next((w for w in widths if isinstance(w, int)), 0)
    return max(1, width // (layer.num_heads * layer.value_dim))


def _sampled_bytes(manifest: Manifest, launch: Launch, batch: int) -> int:
    """Logits, for a launch that spreads over the parts of each row; another one reads a few words of each part, or what an earlier one has found."""
    spreads = launch.grid[0].dim is None
    return batch * manifest.model.vocab_size * ITEM_BYTES["f32"] if spreads else 0


# -- text -----------------------------------------------------------------------------------------------------------------------
def print_profile(profile: Profile, *, layer: int | None = None) -> str:
    """Kernels by the time that they add to a step, equal ones together; or the launches of one layer in order."""
    head = f"program {profile.program}: {profile.name}"
    shown = f", read limit {profile.limit / 1e12:.2f} TB/s" if profile.limit else ""
    shown += f", matrix limit {profile.compute_limit / 1e12:.0f} TFLOP/s" if profile.compute_limit else ""
    gap, sampling = profile.wall_us - profile.step_us, profile.sampling_us
    whole = "a step with the host" if sampling is not None else "a step with sampling and host"
    lines = [
        f"{head}{shown}",
        f"  launches one by one {profile.sum_us:.1f} us, together {profile.step_us:.1f} us, {whole} {profile.wall_us:.1f} us "
        f"({gap / profile.wall_us:.0%} of it outside of the launches)" if profile.wall_us else "",
        *([f"  {profile.sampling} sampling is {sampling:.1f} us of the launches"] if sampling is not None else []),
        "",
        f"  {'us':>8} {'count':>5} {'each':>7} {'MB':>8} {'of limit':>8} {'wasted us':>9}  kernel",
    ]
    rows = _by_kernel(profile.times) if layer is None else _of_layer(profile.times, layer)
    return "\n".join([*lines, *(_print_row(row, profile) for row in rows)]) + "\n"


def _by_kernel(times: Sequence[LaunchTime]) -> list[list[LaunchTime]]:
    groups: dict[str, list[LaunchTime]] = {}
    for item in times:
        groups.setdefault(item.launch.kernel, []).append(item)
    return sorted(groups.values(), key=lambda group: -sum(t.us for t in group))


def _of_layer(times: Sequence[LaunchTime], layer: int) -> list[list[LaunchTime]]:
    layers = Layers.of_paths(module for t in times for module in t.launch.modules)
    return [[t] for t in times if layer in map(layers.layer, t.launch.modules)]


def _print_row(group: list[LaunchTime], profile: Profile) -> str:
    total, size = sum(t.us for t in group), sum(t.num_bytes for t in group)
    least = sum(profile.least_us(t) or 0.0 for t in group)
    share = f"{least / total:8.0%} {total - least:9.1f}" if profile.limit and total else f"{'-':>8} {'-':>9}"
    modules = list(dict.fromkeys(module for t in group for module in t.launch.modules))
    where = ", ".join(join_siblings(fold_paths(modules)))
    return f"  {total:8.1f} {len(group):5d} {total / len(group):7.2f} {size / len(group) / 1e6:8.2f} {share}  {group[0].launch.kernel}   {where}"


def to_trace(profile: Profile) -> dict[str, Any]:
    """The step as a trace that Perfetto and chrome://tracing open: one track, a slice for each launch."""
    events, now = [], 0.0
    for item in profile.times:
        args = {"region": item.launch.region, "modules": list(item.launch.modules), "bytes": item.num_bytes, "operations": item.operations}
        events.append({"name": item.launch.kernel, "ph": "X", "ts": now, "dur": item.us, "pid": 0, "tid": 0, "args": args})
        now += item.us
    return {"traceEvents": events, "displayTimeUnit": "ns"}


