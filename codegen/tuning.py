"""Measures tiles: for each heavy plan its candidates, one after the other, against the default; wrong ones are said and never chosen.

Knows no device: a Timer runs and times candidates. What it decides depends on the times alone.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Protocol

import torch

from tilewright.codegen.candidates import Candidate, compile_candidates, list_candidates
from tilewright.codegen.choices import Choice, Choices, Device, code_of, key_of
from tilewright.codegen.plan import KernelPlan
from tilewright.codegen.tile_moves import TEMPLATES, Move
from tilewright.ir.errors import EngineError
from tilewright.ir.manifest import Limits

NOISE = 0.02  # share of the default's time that a candidate must save, so that chance alone does not choose
FINALISTS, ROUNDS = 3, 3  # candidates that are timed again, in turn with the default; how often
_COMPILED_TOGETHER = 256  # candidates: enough to keep every core busy, few enough that measuring starts soon
# What rounding explains, by the narrowest dtype that a plan computes in, relative to the norm of a result; of one element, ELEMENT times as much.
ROUNDING = {"bf16": 8e-3, "f16": 1e-3, "f32": 1e-4}
ELEMENT = 8

Outputs = Mapping[str, torch.Tensor]
Progress = Callable[[int, int, str], None]
Compile = Callable[[Sequence[Candidate], str, int, Progress], None]  # as compile_candidates


class Bench(Protocol):
    """Operands of one plan, which serve all its candidates."""

    def run(self, candidate: Candidate) -> Outputs:
        """What one launch writes, by name; what it left unwritten is NaN."""
        ...

    def time(self, candidate: Candidate) -> float:
        """Microseconds of one launch, with operands that are in no cache."""
        ...


class Timer(Protocol):
    device: Device

    def open(self, plan: KernelPlan, limits: Limits) -> Bench:
        """Raises EngineError where the device has no room for the operands."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    seconds: float = 600.0  # after which no other plan is begun
    candidates: int = 64  # of a plan, beside its default

    def __post_init__(self) -> None:
        for name in ("seconds", "candidates"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise EngineError(f"tuning budget: {name}", f"is {value!r}", "pass a number greater than 0")


@dataclass(frozen=True, slots=True)
class Trial:
    tile: Move  # all of it
    move: Move  # fields that differ from the default's
    us: float | None  # None: not timed, and `note` says why
    error: float | None  # of its results against the default's, relative
    note: str = ""


@dataclass(frozen=True, slots=True)
class Measured:
    """A plan's choice and everything that was tried for it, the default first."""

    choice: Choice
    trials: tuple[Trial, ...]

    def print(self) -> str:
        """One line for each trial, as in `tune.jsonl`."""
        lines = [{**asdict(trial), "chosen": trial.move == self.choice.tile} for trial in self.trials]
        return "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines)


@dataclass
class Tuning:
    """What one run of the tuner found, by key of plan."""

    measured: dict[str, Measured] = field(default_factory=dict)
    known: int = 0  # plans that had a choice already
    skipped: dict[str, str] = field(default_factory=dict)  # why a plan keeps its default unmeasured

    def __str__(self) -> str:
        better = [m.choice for m in self.measured.values() if m.choice.tile]
        gains = sorted(1 - c.us / c.default_us for c in better)
        gain = f" by {gains[0]:.0%} to {gains[-1]:.0%}" if gains else ""
        text = f"{len(self.measured)} plans measured, {len(better)} faster than their default{gain}"
        text += f"; {self.known} known" if self.known else ""
        wrong = sum(trial.note.startswith("wrong") for m in self.measured.values() for trial in m.trials)
        text += f"; {wrong} candidates gave wrong results" if wrong else ""
        reasons = list(dict.fromkeys(self.skipped.values()))
        return text + "".join(f"; {sum(r == reason for r in self.skipped.values())} left at their default: {reason}" for reason in reasons)


def tune(
    plans: Sequence[KernelPlan], timer: Timer, limits: Limits, known: Choices, *, budget: Budget | None = None, jobs: int = 0,
    keep: Callable[[Choice], None] = lambda choice: None, progress: Progress = lambda done, total, what: None,
    clock: Callable[[], float] = time.monotonic, compile: Compile = compile_candidates,
) -> Tuning:  # fmt: skip
    """Measures the plans that have tiles and no known choice, in their order. `keep` gets each choice as soon as it is made."""
    budget = budget or Budget()
    deadline = clock() + budget.seconds
    waiting, tuning = _select(plans, known)
    total = len(waiting)
    for group in _in_groups(waiting, budget):
        compile([c for _, candidates in group for c in candidates], timer.device.arch, jobs, progress)
        for plan, candidates in group:
            key = key_of(plan)
            if clock() >= deadline:
                tuning.skipped[key] = "the time for tuning was over"
                continue
            progress(len(tuning.measured) + len(tuning.skipped), total, f"{plan.label} T<={plan.max_tokens}")
            found = _measure(plan, candidates, timer, limits)
            if isinstance(found, str):
                tuning.skipped[key] = found
                continue
            tuning.measured[key] = found
            keep(found.choice)
        if clock() >= deadline:
            break
    done = {*tuning.measured, *tuning.skipped}
    tuning.skipped.update({key_of(plan): "the time for tuning was over" for plan in waiting if key_of(plan) not in done})
    return tuning


def _select(plans: Sequence[KernelPlan], known: Choices) -> tuple[list[KernelPlan], Tuning]:
    """Plans of one key are measured once."""
    heavy = {key_of(plan): plan for plan in reversed(plans) if plan.language == "triton" and plan.template in TEMPLATES}
    waiting = [plan for plan in reversed(heavy.values()) if known.find(plan) is None]
    return waiting, Tuning(known=len(heavy) - len(waiting))


def _in_groups(plans: Sequence[KernelPlan], budget: Budget) -> Iterator[list[tuple[KernelPlan, list[Candidate]]]]:
    group: list[tuple[KernelPlan, list[Candidate]]] = []
    for place, plan in enumerate(plans):
        group.append((plan, list_candidates(plan, budget.candidates)))
        if place + 1 == len(plans) or sum(len(candidates) for _, candidates in group) >= _COMPILED_TOGETHER:
            yield group
            group = []


# -- one plan -------------------------------------------------------------------------------------------------------------------
def _measure(plan: KernelPlan, candidates: list[Candidate], timer: Timer, limits: Limits) -> Measured | str:
    """The choice, or why there is none."""
    default, *others = candidates
    if default.problem:
        return f"the default does not compile: {default.problem}"
    try:
        bench = timer.open(plan, limits)
    except EngineError as error:
        return error.problem
    expected, limit = bench.run(default), rounding_of(plan)
    if (problem := compare(bench.run(default), expected, limit)[1]) or not _is_finite(expected):
        return f"two launches of the default differ: {problem}" if problem else "the default gives numbers that are not finite"
    trials = [Trial(default.tile, {}, bench.time(default), 0.0), *(_try(candidate, bench, expected, limit) for candidate in others)]
    times = _finish(bench, candidates, trials)
    us, default_us, winner = _decide(times)
    trials = [Trial(t.tile, t.move, times.get(i, t.us), t.error, t.note) for i, t in enumerate(trials)]
    move = trials[winner].move
    choice = Choice(key_of(plan), code_of(plan, move), move, round(us, 3), round(default_us, 3))
    return Measured(choice, tuple(_round(trial) for trial in trials))


def _try(candidate: Candidate, bench: Bench, expected: Outputs, limit: float) -> Trial:
    tile, move = candidate.tile, candidate.move
    if candidate.problem:
        return Trial(tile, move, None, None, f"does not compile: {candidate.problem}")
    error = 0.0
    try:
        for _ in range(2):  # the second launch finds scratch as the first has left it
            found, problem = compare(bench.run(candidate), expected, limit)
            if problem:
                return Trial(tile, move, None, found, f"wrong: {problem}")
            error = max(error, found)
        return Trial(tile, move, bench.time(candidate), error)
    except EngineError as refusal:
        return Trial(tile, move, None, None, f"does not run: {refusal.problem}")
    except Exception as crash:  # a device that has faulted runs nothing more in this process
        crash.add_note(f"tune: while {candidate.plan.label} was measured with {move}; what was measured before is kept")
        raise


def _finish(bench: Bench, candidates: list[Candidate], trials: list[Trial]) -> dict[int, float]:
    """Median times of the default and of the fastest others, measured in turn so that all see the same clocks; by place."""
    ranked = sorted((t.us, place) for place, t in enumerate(trials) if place and t.us is not None)
    places = [0, *(place for _, place in ranked[:FINALISTS])]
    times: dict[int, list[float]] = {place: [] for place in places}
    for _ in range(ROUNDS):
        for place in places:
            times[place].append(bench.time(candidates[place]))
    return {place: statistics.median(found) for place, found in times.items()}


def _decide(times: dict[int, float]) -> tuple[float, float, int]:
    """Time of the winner, of the default, and the winner's place: the default's, unless another is faster by more than the noise."""
    place = min(times, key=lambda p: (times[p], p))
    winner = place if times[place] < times[0] * (1 - NOISE) else 0
    return times[winner], times[0], winner


def _round(trial: Trial) -> Trial:
    error = float(f"{trial.error:.2g}") if trial.error is not None and math.isfinite(trial.error) else None
    return Trial(trial.tile, trial.move, None if trial.us is None else round(trial.us, 3), error, trial.note)


# -- what is right --------------------------------------------------------------------------------------------------------------
def rounding_of(plan: KernelPlan) -> float:
    """How far results may lie apart; 0 where plans promise the same bits."""
    if dict(plan.config).get("deterministic"):
        return 0.0
    dtypes = {t.dtype for op in plan.ops for t in op.types} | {p.type.dtype for p in plan.parameters}
    return max(ROUNDING.get(dtype, 0.0) for dtype in dtypes)


def compare(found: Outputs, expected: Outputs, limit: float) -> tuple[float, str]:
    """Relative error, and what is wrong with it (nothing: empty)."""
    worst = 0.0
    for name, right in expected.items():
        error, problem = _compare(found[name], right, limit)
        if problem:
            return error, f"{name} {problem}"
        worst = max(worst, error)
    return worst, ""


def _compare(found: torch.Tensor, right: torch.Tensor, limit: float) -> tuple[float, str]:
    if torch.equal(found, right):
        return 0.0, ""
    a, b = found.float(), right.float()
    away = (a - b).abs()
    size = b.pow(2).mean().sqrt()
    error = float(away.pow(2).mean().sqrt() / size)
    if not error <= limit:
        return error, f"is off by {error:.1e} of the default's norm, rounding explains {limit:.1e}"
    off = int((away > ELEMENT * limit * (size + b.abs())).sum())
    return error, f"has {off} elements of {b.numel()} that no rounding explains" if off else ""


def _is_finite(outputs: Outputs) -> bool:
    return all(bool(torch.isfinite(t.float()).all()) for t in outputs.values())
