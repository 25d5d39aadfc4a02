"""How far default tiles are from measured ones, for whole models, without any weights; and the files of measured tiles that are shipped.

`python benchmarks/tune.py --shapes llama-3-8b --quantize none int8`. For each program of an engine: what its products and attention take of a step
with default and with measured tiles, and which kernels gain. `--write FOLDER` adds the choices to a file there (codegen/tuned is what is shipped).
`--compile-only sm_90` needs no GPU: what it compiles is found in the cache by a later run of the same Triton. `--all` prints every trial.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from random_checkpoint import SHAPES, shape_config
from results_table import describe_machine

import tilewright as tw
from tilewright.codegen.candidates import compile_candidates, list_candidates
from tilewright.codegen.choices import Choices, keep, key_of
from tilewright.codegen.lower import list_plans, lower
from tilewright.codegen.plan import KernelPlan
from tilewright.codegen.tile_moves import TEMPLATES
from tilewright.codegen.tuning import Budget, Tuning, tune
from tilewright.compiler import bound_dims
from tilewright.frontend.trace import trace_config
from tilewright.gpu_timer import GpuTimer
from tilewright.ir.manifest import Limits
from tilewright.limits import AskedLimits
from tilewright.passes.regions import build_schedules, default_regimes
from tilewright.targets import choose_target


@dataclass
class Model:
    name: str
    limits: Limits
    plans: list[KernelPlan]  # those with tiles
    launches: dict[str, list[str]]  # names of plans in launch order, by program


def main() -> None:
    args = parse_arguments()
    target, models = plan_models(args)
    if args.compile_only:
        candidates = [c for model in models for plan in model.plans for c in list_candidates(plan, args.candidates)]
        started = time.perf_counter()
        compile_candidates(candidates, target, args.jobs)
        refused = sum(bool(c.problem) for c in candidates)
        print(f"{len(candidates)} candidates compiled in {time.perf_counter() - started:.0f} s, {refused} refused")
        return
    timer = GpuTimer()
    print(describe_machine(), flush=True)
    for model in models:
        measure(model, timer, args)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_model_arguments(parser)
    parser.add_argument("--seconds", type=float, default=540.0, help="for each model; no kernel is begun after that long")
    parser.add_argument("--candidates", type=int, default=64, help="of a kernel")
    parser.add_argument("--write", metavar="FOLDER", help="add the choices to the file of this GPU there")
    parser.add_argument("--all", action="store_true", help="print every trial")
    return parser.parse_args()


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shapes", nargs="+", default=["llama-3-8b"], choices=list(SHAPES))
    parser.add_argument("--quantize", nargs="+", default=["none"], help="none, int8 or another scheme")
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument("--max-batch-size", type=int, default=128)
    parser.add_argument("--max-input-len", type=int, default=1024)
    parser.add_argument("--max-output-len", type=int, default=1024)
    parser.add_argument("--max-tokens", type=int, default=2048)
    parser.add_argument("--compile-only", default="", metavar="ARCH")
    parser.add_argument("--jobs", type=int, default=0)


def plan_models(args: argparse.Namespace) -> tuple[str, list[Model]]:
    """The target, and each shape in each kind of weights."""
    target = args.compile_only or choose_target("cuda")
    return target, [plan_model(shape, quantize, target, args) for shape in args.shapes for quantize in args.quantize]


def plan_model(shape: str, quantize: str, target: str, args: argparse.Namespace) -> Model:
    """Traced from its config alone."""
    config = shape_config(shape)
    _, imported = trace_config(config, torch.bfloat16)
    length = args.max_input_len + args.max_output_len
    optimized = tw.optimize(imported.graph, quantize=None if quantize == "none" else quantize, length=length)
    limits = AskedLimits(
        max_batch_size=args.max_batch_size, max_input_len=args.max_input_len, max_output_len=args.max_output_len, max_tokens=args.max_tokens
    ).choose(config.max_position_embeddings)
    bound_dims(optimized.graph, limits)
    sizes = {"max_tokens": limits.max_tokens, "max_batch_size": limits.max_batch_size}
    schedules = build_schedules(optimized.graph, default_regimes(target, **sizes, deterministic=args.deterministic))
    options = {"target": target, "limits": limits, "deterministic": args.deterministic}
    plans = [plan for plan in list_plans(schedules, **options) if plan.template in TEMPLATES]
    programs = lower(optimized.graph, schedules, **options).programs
    return Model(f"{shape} {quantize}", limits, plans, {p.name: [launch.kernel for launch in p.launches] for p in programs})


def measure(model: Model, timer: GpuTimer, args: argparse.Namespace) -> None:
    file = Path(args.write) / timer.device.file_name if args.write else None
    started = time.perf_counter()
    tuning = tune(
        model.plans, timer, model.limits, Choices(), budget=Budget(seconds=args.seconds, candidates=args.candidates), jobs=args.jobs,
        keep=lambda choice: keep(file, timer.device, [choice]) if file else None,
        progress=lambda done, total, what: None,
    )  # fmt: skip
    print(f"\n{model.name}: {tuning}, in {time.perf_counter() - started:.0f} s")
    print_programs(model, tuning)
    for plan in model.plans:
        found = tuning.measured.get(key_of(plan))
        if found is None:
            continue
        c = found.choice
        tile = " ".join(f"{name}={value}" for name, value in c.tile.items()) or "the default"
        print(f"  {plan.label:12} T<={plan.max_tokens:<5} {c.default_us:9.2f} {c.us:9.2f} us {1 - c.us / c.default_us:6.1%}  {tile}")
        for trial in (t for t in found.trials if args.all or t.note.startswith("wrong")):
            print(f"      {trial.us} {trial.move} {trial.note}")


def print_programs(model: Model, tuning: Tuning) -> None:
    """Heavy kernels of a step, one after the other."""
    choices = {plan.name: tuning.measured[key_of(plan)].choice for plan in model.plans if key_of(plan) in tuning.measured}
    for program, launches in model.launches.items():
        known = [(choices[name], count) for name, count in Counter(launches).items() if name in choices]
        before, after = (sum(time_of(c) * count for c, count in known) / 1e3 for time_of in (lambda c: c.default_us, lambda c: c.us))
        if known:
            print(f"  program {program:12} {before:8.3f} ms, tuned {after:8.3f} ms: the default is {before / after - 1:.1%} slower", flush=True)


if __name__ == "__main__":
    main()
