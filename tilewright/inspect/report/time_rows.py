"""Profiles as the page shows them: kernels with what the machine's limits leave them, steps beside their parts, what should make one wonder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tilewright.inspect.perf import RecordedLaunch, RecordedProfile, read_profiles
from tilewright.inspect.report.names import Names, fold_names, template_of, with_parents
from tilewright.inspect.run import Run

GAP = 0.05  # between launches one by one and together, above which the page says so
OVER = 1.05  # shares of the limit above it are no measuring error


@dataclass(frozen=True, slots=True)
class TimeRow:
    """All launches of a kernel in one step."""

    kernel: str
    count: int
    us: float
    num_bytes: int
    operations: int
    least_us: float | None  # what the limits of the machine leave; None where they were not measured
    modules: Names


@dataclass(frozen=True, slots=True)
class TimedStep:
    title: str
    made: dict[str, str]  # device, date, versions
    sum_us: float
    step_us: float
    wall_us: float
    samples: bool  # whether launches that sample are among them
    read_limit: float | None
    compute_limit: float | None
    notes: tuple[str, ...]  # those that begin with ! are warnings
    kernels: tuple[TimeRow, ...]  # the slowest first
    modules: dict[str, float]  # microseconds of the launches that compute a module or what is inside it, equal layers together
    launches: tuple[tuple[str, str, float], ...]  # kernel, region, microseconds, in order


def collect_profiles(run: Run) -> tuple[TimedStep, ...]:
    return tuple(_step(run, profile) for profile in read_profiles(run))


def _step(run: Run, profile: RecordedProfile) -> TimedStep:
    groups: dict[str, list[RecordedLaunch]] = {}
    for launch in profile.launches:
        groups.setdefault(launch.kernel, []).append(launch)
    kernels = sorted((_row(run, profile, name, group) for name, group in groups.items()), key=lambda row: -row.us)
    sequences = "a prompt" if profile.tokens > 1 else "1 sequence" if profile.batch == 1 else f"{profile.batch} sequences"
    sampled = f", {profile.sampling} sampling" if profile.samples or profile.sampling != "greedy" else ""
    made = {"Device": profile.device, "Measured": f"{profile.date} UTC", "Versions": ", ".join(f"{k} {v}" for k, v in profile.versions.items())}
    return TimedStep(
        f"{profile.program}: {sequences} of {profile.context} tokens{sampled}", made, profile.sum_us, profile.step_us, profile.wall_us,
        profile.samples, profile.read_limit, profile.compute_limit, tuple(_notes(profile, kernels)), tuple(kernels), _by_module(run, profile),
        tuple((launch.kernel, launch.region, launch.us) for launch in profile.launches),
    )  # fmt: skip


def _row(run: Run, profile: RecordedProfile, name: str, group: list[RecordedLaunch]) -> TimeRow:
    least = [profile.least_us(launch) for launch in group]
    modules = fold_names(dict.fromkeys(m for launch in group for m in launch.modules), run.layers)
    return TimeRow(
        name, len(group), sum(launch.us for launch in group), sum(launch.num_bytes for launch in group),
        sum(launch.operations for launch in group), None if None in least else sum(filter(None, least)), modules,
    )  # fmt: skip


def _notes(profile: RecordedProfile, kernels: Iterable[TimeRow]) -> Iterable[str]:
    gap = profile.sum_us / profile.step_us - 1 if profile.step_us else 0.0
    said = f"The launches one by one add up to {abs(gap):.1%} {'more' if gap >= 0 else 'less'} than all of them together"
    yield f"! {said}: something that no launch is charged with takes time, or launches overlap." if abs(gap) > GAP else f"{said}."
    host, rest = profile.wall_us - profile.step_us, "the host" if profile.samples else "sampling and the host"
    if host >= 0:
        yield f"A step as the runtime runs it takes {host:.1f} µs more than they do ({host / profile.wall_us:.0%} of it): {rest}."
    elif profile.wall_us:
        yield "! A step as the runtime runs it took less than its launches together: the machine was busy with something else."
    if profile.read_limit is None:
        yield "The limits of this machine were not measured, so there is no roof: that is done on a GPU."
    else:
        best = sum(row.least_us or 0.0 for row in kernels)
        yield f"At the machine's limits the launches would take {best:.1f} µs: {best / profile.step_us:.0%} of what they take together."
    for row in kernels:
        if row.least_us is not None and row.least_us > OVER * row.us:
            share = f"{row.least_us / row.us:.0%}" if row.us else "more than all"
            yield f"! {row.kernel} is at {share} of the limit, which cannot be: it reads less than is counted, or from a cache."


def _by_module(run: Run, profile: RecordedProfile) -> dict[str, float]:
    found: dict[str, float] = {}
    for launch in profile.launches:
        for template in dict.fromkeys(template_of(parent, run.layers)[0] for module in launch.modules for parent in with_parents(module)):
            found[template] = found.get(template, 0.0) + launch.us
    return found
