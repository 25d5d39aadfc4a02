"""Sampling inside a CUDA graph: the engine's kernels and torch's, for 128,256 tokens, beside the time that reading the logits once takes.

`python benchmarks/sampling.py`; `--kernels` also times each kernel, `--sweep` tries sizes of parts and warps. Needs no engine: the kernels are
emitted and compiled here, as packing does it. `agree` is the share of rows for which both gave the same token: of flat rows a part may differ,
since torch sums in f32.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable

import numpy as np
import torch

from tilewright.codegen.aot import compile_all
from tilewright.codegen.sample_template import emit_sampling
from tilewright.graph_timing import time_graph
from tilewright.measure import measure_read_limit
from tilewright.runtime.cuda_backend import CudaKernel
from tilewright.runtime.cuda_driver import Module
from tilewright.runtime.sample_kernels import SampleKernels
from tilewright.runtime.sampler import SamplePlan, Sampler, SampleRows, param_row
from tilewright.runtime.sampling_params import SamplingParams

VOCAB = 128256
PENALTIES = {"repetition_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": 0.1}
CASES = {
    "greedy": SamplingParams(temperature=0),
    "temperature": SamplingParams(temperature=0.8),
    "top-k 50": SamplingParams(top_k=50),
    "top-p 0.9": SamplingParams(top_p=0.9),
    "min-p 0.05": SamplingParams(min_p=0.05),
    "top-k 50, top-p 0.9, penalties": SamplingParams(top_k=50, top_p=0.9, **PENALTIES),
    "top-k 1000, top-p 0.9": SamplingParams(top_k=1000, top_p=0.9),
}
PEAKED, FLAT = 4.0, 1.0  # standard deviations of logits: 285 tokens have 0.9 of the mass, or 78,000
REPEAT = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 256])
    parser.add_argument("--kernels", action="store_true", help="time each kernel, too")
    parser.add_argument("--sweep", action="store_true")
    args = parser.parse_args()
    limit = measure_read_limit()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; read limit {limit / 1e12:.2f} TB/s; microseconds in a CUDA graph")
    if args.sweep:
        sweep(args.batches)
        return
    kernels = make_kernels(max(args.batches))
    print(f"{'':40} {'batch':>5} {'torch':>8} {'kernels':>8} {'ratio':>6} {'one read':>8} {'agree':>6}")
    for batch, scale, (name, params) in itertools.product(args.batches, (PEAKED, FLAT), CASES.items()):
        case = Case(batch, params, scale, kernels)
        ours, theirs = time_sample(lambda c=case: c.sample(c.ours)), time_sample(lambda c=case: c.sample(c.theirs))
        read = batch * VOCAB * 4 / limit * 1e6
        label = name + (", flat" if scale == FLAT else "")
        print(f"{label:40} {batch:5} {theirs:8.1f} {ours:8.1f} {theirs / ours:6.1f} {read:8.1f} {case.agreement():6.3f}", flush=True)
        if args.kernels:
            print_kernels(case)


class Case:
    """A batch of equal rows of parameters, over logits of its own, for both samplers."""

    def __init__(self, batch: int, params: SamplingParams, scale: float, kernels: SampleKernels) -> None:
        random = torch.Generator("cuda").manual_seed(batch)
        device = torch.device("cuda")
        self.logits = torch.randn(batch, VOCAB, generator=random, device=device) * scale
        uniform = torch.rand(batch, generator=random, dtype=torch.float64, device=device)
        slots, outputs = torch.arange(batch, device=device), torch.zeros(batch, dtype=torch.int32, device=device)
        self.rows = SampleRows(slots, outputs, torch.tensor([param_row(params)], device=device).repeat(batch, 1), uniform)
        self.plan, self.kernels = SamplePlan.of(params), kernels
        self.ours, self.theirs = Sampler(VOCAB, batch, device, kernels), Sampler(VOCAB, batch, device)
        tokens = np.random.default_rng(batch).integers(VOCAB, size=(batch, 600))
        for sampler, slot in itertools.product((self.ours, self.theirs), range(batch)):
            sampler.assign(slot, params, tokens[slot, :500].tolist(), tokens[slot, 500:].tolist(), frozenset())

    def sample(self, sampler: Sampler) -> torch.Tensor:
        return sampler.sample(self.logits, self.rows, self.plan).tokens

    def agreement(self) -> float:
        """After as many samples of each: histories differ where tokens did."""
        return float((self.sample(self.ours).clone() == self.sample(self.theirs)).float().mean())


def make_kernels(max_rows: int, **options: object) -> SampleKernels:
    major, minor = torch.cuda.get_device_capability()
    arch = f"sm_{major}{minor}"
    emitted = emit_sampling(VOCAB, dependent_launch=major >= 9, **options)  # type: ignore[arg-type]
    compiled = compile_all(emitted.sampling.kernels, emitted.sources, [arch])
    loaded = {}
    for kernel in emitted.sampling.kernels:
        result = compiled[kernel.name, arch]
        module = Module(result.cubin, result.binary.symbol, result.binary.shared_bytes)
        loaded[kernel.name] = CudaKernel(module, kernel, result.binary, torch.device("cuda"))
    return SampleKernels(emitted.sampling, loaded, torch.device("cuda"), max_rows)


def print_kernels(case: Case) -> None:
    """Each kernel repeated alone, after one whole run: what it reads is there."""
    rows, times = case.rows, []
    tensors = {"logits": case.logits, "slots": rows.slots, "params": rows.params, "uniform": rows.uniform, "last_token": case.ours.last_token}
    history = torch.zeros(len(rows.slots), VOCAB, dtype=torch.int16, device="cuda")
    for launch in case.kernels.bind(case.plan.kind, tensors, history):
        case.sample(case.ours)
        times.append(time_sample(lambda bound=launch: bound.run(torch.cuda.current_stream().cuda_stream)))
    print("    " + ", ".join(f"{microseconds:.1f}" for microseconds in times))


def sweep(batches: list[int]) -> None:
    """Parts and warps of the kernels that read parts, then warps of those that end rows."""
    for part, warps, end_warps in itertools.product((1024, 2048), (4, 8), (4, 8)):
        per_part = dict.fromkeys(("sample_scan_greedy", "sample_scan", "sample_collect"), warps)
        kernels = make_kernels(max(batches), part=part, num_warps=per_part | {"sample_settle": end_warps, "sample_choose": end_warps})
        for batch in batches:
            times = []
            for name in ("greedy", "temperature", "top-k 50", "top-p 0.9"):
                for scale in (PEAKED, FLAT):
                    case = Case(batch, CASES[name], scale, kernels)
                    times.append(f"{name} {time_sample(lambda c=case: c.sample(c.ours)):.1f}")
            print(f"part {part}, {warps} warps, {end_warps} to end a row: batch {batch}: {', '.join(times)}", flush=True)


def time_sample(run: Callable[[], object]) -> float:
    """Microseconds of one run, as the median over replays of a graph of REPEAT."""
    return time_graph(lambda _: run(), REPEAT, replays=15, share=1 / 2)


if __name__ == "__main__":
    main()
