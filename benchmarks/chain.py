"""The products and attention of a whole decode step, one after the other as an engine launches them, in one CUDA graph: what a tile does to its
neighbours counts, which a kernel timed by itself does not show.

`python benchmarks/chain.py --shapes llama-3.2-1b --quantize int8 --program decode_1`; with `--sweep` each kernel takes over, in the order of the
step, the candidate that makes the whole fastest. `--compile-only sm_90` needs no GPU: what it compiles is found in the cache by a later run of the
same Triton.
"""

from __future__ import annotations

import argparse
import itertools
import re
import statistics
import time
from collections import Counter
from dataclasses import replace

import torch
from results_table import describe_machine
from tune import Model, add_model_arguments, plan_models

from tilewright.codegen.candidates import Candidate, compile_candidates, list_candidates
from tilewright.codegen.plan import KernelPlan
from tilewright.codegen.tuning import compare, rounding_of
from tilewright.gpu_timer import LoadedKernels
from tilewright.graph_timing import time_graph
from tilewright.measure import measure_read_limit
from tilewright.operands import Operands, steps_of

REPLAYS, WARM_UPS = 6, 3
FINALISTS, ROUNDS = 4, 3  # candidates that are timed again, in turn with the default
WORTH = 0.001  # share of the step that a candidate must save


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_model_arguments(parser)
    parser.add_argument("--program", nargs="+", default=["decode_1"])
    parser.add_argument("--context", type=int, default=384, help="keys of each sequence")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--only", default="", metavar="PATTERN", help="kernels to sweep, named like 'gate_up T<=1'")
    parser.add_argument("--candidates", type=int, default=0, help="of a kernel (0: all)")
    args = parser.parse_args()
    target, models = plan_models(args)
    for model, program in itertools.product(models, args.program):
        chain = Chain(model, program, args)
        started = time.perf_counter()
        compile_candidates([c for found in chain.candidates.values() for c in found], target, args.jobs)
        count, seconds = sum(map(len, chain.candidates.values())), time.perf_counter() - started
        print(f"{model.name} {program}: {count} candidates, compiled in {seconds:.0f} s", flush=True)
        if not args.compile_only:
            print(describe_machine(), flush=True)
            chain.load(args.context)
            chain.sweep()
            del chain
            torch.cuda.empty_cache()


class Chain:
    """One program's kernels that have tiles."""

    def __init__(self, model: Model, program: str, args: argparse.Namespace) -> None:
        if program not in model.launches:
            raise SystemExit(f"{model.name} has no program {program}; it has {', '.join(model.launches)}")
        plans = {plan.name: plan for plan in model.plans}
        self.limits = model.limits
        self.order = [name for name in model.launches[program] if name in plans]
        self.plans: dict[str, KernelPlan] = {name: plans[name] for name in dict.fromkeys(self.order)}
        swept = [name for name, plan in self.plans.items() if args.sweep and re.search(args.only, f"{plan.label} T<={plan.max_tokens}")]
        self.candidates = {
            name: list_candidates(plan, args.candidates) if name in swept else [Candidate.of(plan, {})] for name, plan in self.plans.items()
        }

    def load(self, context: int) -> None:
        self.counts = Counter(self.order)
        self.operands = {name: self._operands(plan, context) for name, plan in self.plans.items()}
        self.loaded = {name: self._load(name, self.candidates[name][0]) for name in self.plans}
        self.bytes = sum(bytes_read(plan) * self.counts[name] for name, plan in self.plans.items())

    def _operands(self, plan: KernelPlan, context: int) -> Operands:
        step = steps_of(plan, self.limits)[0]
        if plan.template == "attend":
            step = replace(step, contexts=(context,) * len(step.contexts))
        return Operands(plan, step)

    def _load(self, name: str, candidate: Candidate) -> LoadedKernels:
        return LoadedKernels(candidate.emission, candidate.compiled, self.operands[name])

    def time(self) -> float:
        def run(_: int) -> None:
            turns: Counter[str] = Counter()
            for name in self.order:
                self.loaded[name].run(turns[name])
                turns[name] += 1

        return time_graph(run, 1, replays=REPLAYS)

    def sweep(self) -> None:
        limit = measure_read_limit()
        for _ in range(WARM_UPS):
            best = self.time()
        print(f"  default {best:9.1f} us, {self.bytes / limit * 1e6 / best:.1%} of the read limit ({limit / 1e12:.2f} TB/s)", flush=True)
        for name in (name for name in self.plans if len(self.candidates[name]) > 1):
            best = self._improve(name)
        print(f"  swept   {best:9.1f} us, {self.bytes / limit * 1e6 / best:.1%}", flush=True)

    def _improve(self, name: str) -> float:
        """Takes over the candidate with which the step is fastest; its time."""
        plan, (default, *others) = self.plans[name], self.candidates[name]
        right, rough = self.loaded[name].results(), []
        for candidate in (c for c in others if c.compiled):
            self.loaded[name] = self._load(name, candidate)
            problem = compare(self.loaded[name].results(), right, rounding_of(plan))[1]
            if problem:
                print(f"      WRONG {show_move(candidate)} {problem}", flush=True)
            else:
                rough.append((self.time(), len(rough), candidate))
        finalists = [default, *(candidate for _, _, candidate in sorted(rough)[:FINALISTS])]
        times: dict[Candidate, list[float]] = {candidate: [] for candidate in finalists}
        for _ in range(ROUNDS):  # in turn, since clocks fall while the GPU warms
            for candidate in finalists:
                self.loaded[name] = self._load(name, candidate)
                times[candidate].append(self.time())
        ranked = sorted((statistics.median(found), place, c) for place, (c, found) in enumerate(times.items()))
        usual = statistics.median(times[default])
        us, _, winner = ranked[0] if ranked[0][0] < usual * (1 - WORTH) else (usual, 0, default)
        self.loaded[name] = self._load(name, winner)
        print(f"  {plan.label} T<={plan.max_tokens}, {self.counts[name]} launches: {usual:.1f} -> {us:.1f} us")
        for time_, _, candidate in ranked:
            print(f"      {time_:9.1f} {show_move(candidate)}", flush=True)
        return us


def show_move(candidate: Candidate) -> str:
    return " ".join(f"{name}={value}" for name, value in candidate.move.items()) or "the default"


def bytes_read(plan: KernelPlan) -> int:
    """Of weights; keys and values are few at short contexts."""
    return sum(p.type.num_bytes({}) for p in plan.parameters if p.role in ("weight", "scale") and not any(isinstance(d, str) for d in p.type.shape))


if __name__ == "__main__":
    main()
