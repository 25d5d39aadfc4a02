"""Times an engine: decode latency as a slope, throughput of many requests, and the machine's read limit to hold them against.

Knows the manifest and `LLM`; nothing of models beside it.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from tilewright.ir.manifest import Kernel, Launch, Manifest, Program
from tilewright.ir.types import ITEM_BYTES
from tilewright.runtime import LLM, SamplingParams

READ_BYTES = 4 << 30  # read by one measurement of the limit; far more than any cache holds
READ_BLOCK = 8192  # elements of one load of that measurement


@dataclass(frozen=True, slots=True)
class Latency:
    """Decode of one sequence: the slope between two output lengths, so that prefill and start-up drop out."""

    ms_per_token: float  # median of the repetitions
    spread_ms: float  # largest less smallest
    bytes_per_token: int  # weights that a decode step reads


@dataclass(frozen=True, slots=True)
class Throughput:
    num_requests: int
    num_prompt_tokens: int
    num_output_tokens: int
    seconds: float

    @property
    def output_tokens_per_second(self) -> float:
        return self.num_output_tokens / self.seconds


def measure_latency(llm: LLM, *, prompt_len: int, outputs: tuple[int, int], repeat: int) -> Latency:
    """outputs: the two output lengths, in tokens. Each is run once before the clock runs."""
    prompt = random_prompt(llm.manifest.model.vocab_size, prompt_len, seed=0)
    short, long = outputs

    def seconds(num_tokens: int) -> float:
        started = time.perf_counter()
        (result,) = llm.generate([prompt], SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True), use_progress=False)
        assert len(result.token_ids) == num_tokens
        return time.perf_counter() - started

    for num_tokens in outputs:
        seconds(num_tokens)
    slopes = [(seconds(long) - seconds(short)) / (long - short) * 1e3 for _ in range(repeat)]
    return Latency(statistics.median(slopes), max(slopes) - min(slopes), bytes_per_token(llm.manifest))


@dataclass(frozen=True, slots=True)
class Requests:
    """Prompts, and how many tokens each is to give."""

    prompts: list[list[int]]
    output_lens: list[int]

    @staticmethod
    def draw(vocab: int, count: int, prompt_lens: tuple[int, int], output_lens: tuple[int, int], seed: int = 0) -> Requests:
        """Random tokens; lengths uniform over inclusive ranges."""
        dice = random.Random(seed)
        prompts = [random_prompt(vocab, dice.randint(*prompt_lens), seed=i) for i in range(count)]
        return Requests(prompts, [dice.randint(*output_lens) for _ in prompts])


def measure_throughput(llm: LLM, requests: Requests, *, use_progress: bool = True) -> Throughput:
    """All requests handed over at once, greedy. Graphs are captured and kernels loaded before the clock runs."""
    params = [SamplingParams(max_tokens=count, temperature=0.0, ignore_eos=True) for count in requests.output_lens]
    llm.warm_up()
    llm.generate(requests.prompts[:1], params[:1], use_progress=False)
    started = time.perf_counter()
    results = llm.generate(requests.prompts, params, use_progress=use_progress)
    seconds = time.perf_counter() - started
    return Throughput(len(results), sum(map(len, requests.prompts)), sum(len(r.token_ids) for r in results), seconds)


def random_prompt(vocab: int, length: int, *, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(vocab) for _ in range(length)]


def bytes_per_token(manifest: Manifest) -> int:
    """Bytes of weights that a decode step of one sequence reads; of tables that are gathered from, nothing."""
    program = min((p for p in manifest.programs if p.kind == "decode"), key=lambda p: p.max_tokens, default=manifest.programs[0])
    read = weights_read_whole(manifest, program)
    return sum(prod(w.shape) * ITEM_BYTES[w.dtype] for w in manifest.weights if w.name in read)


def weights_read_whole(manifest: Manifest, program: Program) -> set[str]:
    """Names of weights of which a step reads all."""
    shapes = {w.name: w.shape for w in manifest.weights}
    kernels = {kernel.name: kernel for kernel in manifest.kernels}
    return {name for launch in program.launches for name in launch_reads_whole(manifest, launch, kernels[launch.kernel], shapes)}


def launch_reads_whole(manifest: Manifest, launch: Launch, kernel: Kernel, shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    """Names of weights of which a launch reads all; of a table that is gathered from (by token id, or by position) it reads a row for each token."""
    looks_up = any(arg.kind == "step" and arg.name == "ids" for arg in launch.args)
    read: set[str] = set()
    for arg, (parameter, _) in zip(launch.args, kernel.parameters):
        if arg.kind != "weight":
            continue
        shape = shapes[arg.name]
        is_embedding = looks_up and len(shape) == 2 and shape[0] >= manifest.model.vocab_size
        if not is_embedding and not parameter.startswith("table"):  # what plans call what `gather_rows` reads
            read.add(arg.name)
    return read


def measure_read_limit(num_bytes: int = READ_BYTES, repeat: int = 5) -> float:
    """Bytes a second that this GPU reads at most, by a kernel that only reads: the best of `repeat` passes over `num_bytes`."""
    from tilewright.read_limit_kernel import read_only

    free = torch.cuda.mem_get_info()[0] // 2
    data = torch.ones(min(num_bytes, free) // 4 // READ_BLOCK * READ_BLOCK, dtype=torch.int32, device="cuda")
    blocks = data.numel() // READ_BLOCK
    out = torch.empty(blocks, dtype=torch.int32, device="cuda")
    kernel: Any = read_only
    kernel[(blocks,)](data, out, BLOCK=READ_BLOCK, num_warps=8)
    times = []
    for _ in range(repeat):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        kernel[(blocks,)](data, out, BLOCK=READ_BLOCK, num_warps=8)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return data.numel() * 4 / min(times)


def measure_compute_limit(dtype: torch.dtype, size: int = 8192, repeat: int = 5) -> float:
    """Operations a second of this GPU's matrix products, as torch runs a large one: the best of `repeat`."""
    a, b = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
    out = torch.matmul(a, b)
    times = []
    for _ in range(repeat):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        torch.matmul(a, b, out=out)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return 2 * size**3 / min(times)
