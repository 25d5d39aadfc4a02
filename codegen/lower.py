"""Schedules to launch tables: one plan per distinct region, one kernel per plan, one launch per region and kernel. Compiles nothing.

What it gives (programs, kernels, sources, constants to pack) is a function of the graph and the schedules alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING

from tilewright.codegen.emission import Emission, KernelText, Workspace
from tilewright.codegen.plan import KernelPlan, make_plan
from tilewright.codegen.provenance import header, op_notes
from tilewright.codegen.source import emit
from tilewright.ir.errors import CodegenError
from tilewright.ir.graph import Graph, Value
from tilewright.ir.manifest import Arg, Buffer, Kernel, KVCache, KVLayer, Launch, Limits, Program, Tuned
from tilewright.ir.regions import Region, Schedule
from tilewright.ir.types import ITEM_BYTES

if TYPE_CHECKING:
    from tilewright.codegen.choices import Choice, Choices, Device

_ALIGNMENT = 256
_DEPENDENT_LAUNCH = 90  # first architecture with programmatic dependent launch
_DIMS = ("T", "S", "B")


@dataclass(frozen=True)
class Lowered:
    target: str
    programs: tuple[Program, ...]
    kernels: tuple[Kernel, ...]  # binaries are filled in by packing
    sources: dict[str, str]  # by kernel name
    constants: dict[str, Value]  # weights that launches name; an encoded one stands for its data and `<name>.scale`
    cache: KVCache
    modules: dict[str, tuple[str, ...]]  # HF module paths by kernel name
    choices: dict[str, tuple[Choice, Device]] = field(default_factory=dict)  # by kernel name: what was measured of its tile, and where

    def __str__(self) -> str:
        tuned = {k.name: f", tuned: {k.tuned.us:.2f} us, the default {k.tuned.default_us:.2f}" for k in self.kernels if k.tuned}
        lines = [f"target {self.target}: {len(self.kernels)} kernels, {len(self.constants)} constants"]
        for program in self.programs:
            size = f"T<={program.max_tokens}, arena {program.arena_bytes / 1e6:.3g} MB"
            lines.append(f"program {program.name}: {program.kind}, {size}, {len(program.launches)} launches")
            lines += [f"  {launch.region}: {launch.kernel}{tuned.get(launch.kernel, '')}" for launch in program.launches]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Planned:
    """A region with its plan; `args` bind the plan's parameters in order."""

    region: Region
    plan: KernelPlan
    args: tuple[Arg, ...]

    def take(self, chosen: Mapping[KernelPlan, tuple[KernelPlan, object]]) -> _Planned:
        return replace(self, plan=chosen[self.plan][0]) if self.plan in chosen else self


def lower(
    graph: Graph, schedules: Sequence[Schedule], *, target: str, limits: Limits, deterministic: bool = False, choices: Choices | None = None
) -> Lowered:
    """Raises CodegenError for a region without a kernel. target: cpu, or a GPU architecture such as sm_90.

    deterministic: every kernel adds up in an order that does not depend on the number of tokens. choices: tiles that were measured to be faster
    than the defaults.
    """
    planned = _plan_all(schedules, target, limits, deterministic=deterministic)
    chosen = _choose_tiles(planned, choices) if choices else {}
    planned = [[item.take(chosen) for item in items] for items in planned]
    measured = {plan: found for plan, found in chosen.values()}
    sharing: dict[KernelPlan, list[Region]] = {}
    for item in (item for items in planned for item in items):
        sharing.setdefault(item.plan, []).append(item.region)
    _check_names(sharing)
    emissions = {plan: emit(plan, op_notes(plan, regions)) for plan, regions in sharing.items()}
    kernels: list[Kernel] = []
    sources: dict[str, str] = {}
    modules: dict[str, tuple[str, ...]] = {}
    for plan, emission in emissions.items():
        for position, text in enumerate(emission.kernels):
            kernels.append(replace(make_kernel(plan, emission, position), tuned=_tuned(measured.get(plan))))
            sources[kernels[-1].name] = header(plan, sharing[plan]) + text.source
            modules[kernels[-1].name] = tuple(dict.fromkeys(m for region in sharing[plan] for m in region.modules))
    programs = tuple(_program(graph, schedule, items, emissions, limits) for schedule, items in zip(schedules, planned))
    named = {plan.name: found for plan, found in measured.items()}
    return Lowered(target, programs, tuple(kernels), sources, _constants(graph, programs), cache_of(graph), modules, named)


def list_plans(schedules: Sequence[Schedule], *, target: str, limits: Limits, deterministic: bool = False) -> list[KernelPlan]:
    """The distinct plans that `lower` makes kernels of, in order of first use, with their default tiles."""
    planned = _plan_all(schedules, target, limits, deterministic=deterministic)
    return list(dict.fromkeys(item.plan for items in planned for item in items))


def _plan_all(schedules: Sequence[Schedule], target: str, limits: Limits, *, deterministic: bool) -> list[list[_Planned]]:
    if target != "cpu" and not target.removeprefix("sm_").isdigit():
        raise CodegenError(f"target {target}", "is neither cpu nor an architecture such as sm_90")
    if deterministic and target == "cpu":
        problem = "torch adds up in an order that depends on the number of tokens"
        raise CodegenError("deterministic, target cpu", problem, "build for a GPU, or serve one request at a time")
    config = tile_config(target, deterministic=deterministic)
    return [[_plan(region, schedule, limits, target, config) for region in schedule.regions] for schedule in schedules]


def _choose_tiles(planned: list[list[_Planned]], choices: Choices) -> dict[KernelPlan, tuple[KernelPlan, tuple[Choice, Device]]]:
    """By plan: the plan with its measured tile, and the measurement."""
    plans = dict.fromkeys(item.plan for items in planned for item in items)
    found = {plan: choices.find(plan) for plan in plans}
    return {plan: (plan.with_tile(hit[0].tile), hit) for plan, hit in found.items() if hit}


def kernel_name(plan: KernelPlan, text: KernelText, position: int) -> str:
    """The plan's name; kernels after the first add their entry."""
    return plan.name if position == 0 else f"{plan.name}_{text.entry}"


def cache_of(graph: Graph) -> KVCache:
    """What the graph's stateful ops keep per token. Raises CodegenError when layers are missing or store different dtypes."""
    layers = {int(op.attrs["layer"]): op for op in graph.find("write_kv")}  # type: ignore[arg-type]
    dtypes = list(dict.fromkeys(op.inputs[0].type.dtype for op in layers.values()))
    if sorted(layers) != list(range(len(layers))) or len(dtypes) != 1:
        problem = f"write_kv serves layers {sorted(layers)} in {' and '.join(dtypes) or 'no dtype'}"
        raise CodegenError(f"graph {graph.name}", problem, "every layer needs one write_kv, all of one dtype")
    shapes = [tuple(int(d) for d in layers[i].result.type.shape) for i in sorted(layers)]
    return KVCache(dtypes[0], tuple(KVLayer(*shape) for shape in shapes))


def _plan(region: Region, schedule: Schedule, limits: Limits, target: str, config: tuple[tuple[str, int], ...]) -> _Planned:
    return _Planned(region, *make_plan(region, schedule.regime, limits, target, config))


def tile_config(target: str, *, deterministic: bool = False) -> tuple[tuple[str, int], ...]:
    """What templates need to know of the architecture. From sm_90 on, each kernel waits for the one before it by itself."""
    if target == "cpu":
        return ()
    arch = int(target.removeprefix("sm_"))
    config = (("arch", arch), ("dependent_launch", int(arch >= _DEPENDENT_LAUNCH)))
    return (*config, ("deterministic", 1)) if deterministic else config


def _check_names(plans: dict[KernelPlan, list[Region]]) -> None:
    seen: dict[str, KernelPlan] = {}
    for plan in plans:
        if seen.setdefault(plan.name, plan) != plan:
            raise CodegenError(f"kernel {plan.name}", "two plans have this name", "change the name of one of the regions")


def _tuned(found: tuple[Choice, Device] | None) -> Tuned | None:
    """None, too, where the default was the fastest."""
    if found is None or not found[0].tile:
        return None
    choice, device = found
    return Tuned(device.gpu, dict(choice.tile), choice.us, choice.default_us)


def make_kernel(plan: KernelPlan, emission: Emission, position: int) -> Kernel:
    text = emission.kernels[position]
    name = kernel_name(plan, text, position)
    star = "" if plan.language == "torch" else "*"
    types = {p.name: f"{star}{p.type.dtype}" for p in plan.parameters} | {w.name: f"{star}{w.dtype}" for w in emission.workspaces}
    types |= dict.fromkeys(_DIMS, "i32")
    return Kernel(
        name=name, language=plan.language, file=f"kernels/{name}.py", entry=text.entry,
        parameters=tuple((p, types[p]) for p in text.parameters), constants=dict(sorted(text.constants.items())),
        num_warps=text.num_warps, num_stages=text.num_stages, dependent_launch=text.dependent_launch,
    )  # fmt: skip


# -- programs -------------------------------------------------------------------------------------------------------------------
def _program(graph: Graph, schedule: Schedule, items: list[_Planned], emissions: dict[KernelPlan, Emission], limits: Limits) -> Program:
    regime = schedule.regime
    buffers = [Buffer(p.value.name, p.value.type.dtype, p.value.type.shape, p.offset) for p in schedule.placements]
    scratch, end = _workspaces(schedule, items, emissions, limits)
    launches = [launch for item in items for launch in _launches(item, emissions[item.plan])]
    program = Program(
        name=regime.name, kind=regime.kind, max_tokens=regime.max_tokens, arena_bytes=end, buffers=(*buffers, *scratch),
        launches=tuple(launches), logits=_logits(graph),
    )  # fmt: skip
    _check_buffers(program)
    return program


def _workspaces(schedule: Schedule, items: list[_Planned], emissions: dict[KernelPlan, Emission], limits: Limits) -> tuple[list[Buffer], int]:
    """Scratch at the end of the arena; regions run one after the other, so they all use the same bytes. What is zeroed starts at 0 elsewhere."""
    base = _align(schedule.arena_bytes)
    dims = _largest_step(schedule, limits)
    buffers: list[Buffer] = []
    end = schedule.arena_bytes
    for plan in dict.fromkeys(item.plan for item in items):
        ends = {False: base, True: 0}
        for workspace in emissions[plan].workspaces:
            offset = ends[workspace.zeroed]
            buffers.append(Buffer(_workspace_name(plan, workspace.name), workspace.dtype, workspace.shape, offset, workspace.zeroed))
            ends[workspace.zeroed] = _align(offset + _num_bytes(workspace, dims))
        end = max(end, ends[False]) if ends[False] > base else end  # `base` alone is no scratch
    return buffers, end


def _largest_step(schedule: Schedule, limits: Limits) -> dict[str, int]:
    tokens = schedule.regime.max_tokens
    return {"T": tokens, "S": min(tokens, limits.max_batch_size), "B": min(tokens, limits.max_batch_size)}


def _num_bytes(workspace: Workspace, dims: dict[str, int]) -> int:
    return prod(dims[d] if isinstance(d, str) else d for d in workspace.shape) * ITEM_BYTES[workspace.dtype]


def _align(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


def _workspace_name(plan: KernelPlan, name: str) -> str:
    return f"{plan.name}.{name}"


def _launches(item: _Planned, emission: Emission) -> list[Launch]:
    bound = {p.name: arg for p, arg in zip(item.plan.parameters, item.args)}
    bound |= {w.name: Arg("buffer", _workspace_name(item.plan, w.name)) for w in emission.workspaces}
    bound |= {dim: Arg("dim", dim) for dim in _DIMS}
    return [
        Launch(
            kernel=kernel_name(item.plan, text, i), args=tuple(bound[p] for p in text.parameters), grid=text.grid,
            region=item.region.name, modules=item.region.modules, reason=item.region.reason,
        )
        for i, text in enumerate(emission.kernels)
    ]  # fmt: skip


def _logits(graph: Graph) -> str:
    value = graph.outputs[0]
    while value.producer is not None and value.producer.name == "reshape":
        value = value.producer.inputs[0]
    if value.type.dtype != "f32" or value.type.rank != 2:
        raise CodegenError(f"graph {graph.name}", f"returns {value}", "the first result must be logits f32[S, vocab]; cast it")
    return value.name


def _check_buffers(program: Program) -> None:
    placed = {buffer.name for buffer in program.buffers}
    for launch in program.launches:
        for arg in launch.args:
            if arg.kind == "buffer" and arg.name not in placed:
                raise CodegenError(f"region {launch.region}", f"%{arg.name} has no place in the arena of program {program.name}")
    if program.logits not in placed:
        raise CodegenError(f"program {program.name}", f"the graph returns %{program.logits}, which no region makes")


def _constants(graph: Graph, programs: Sequence[Program]) -> dict[str, Value]:
    """Weights in order of first use, by name; scales come with the tensor that they scale."""
    names = dict.fromkeys(arg.name for p in programs for launch in p.launches for arg in launch.args if arg.kind == "weight")
    values: dict[str, Value] = {}
    for name in names:
        owner = name if graph.has_name(name) else name.removesuffix(".scale")
        values[owner] = graph.value(owner)
    return values
