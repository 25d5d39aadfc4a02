"""What is behind a kernel, and what became of a module: values, modules, rules and passes, regions, events."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from tilewright.inspect.blame import Tensor, print_event, stages
from tilewright.inspect.kernels import KernelView
from tilewright.inspect.layers import few, group
from tilewright.inspect.manifest import RegionRecord
from tilewright.inspect.run import PassRecord, Run
from tilewright.inspect.text import Readable, align
from tilewright.ir.events import Event
from tilewright.ir.graph import Graph, Op
from tilewright.ir.manifest import SAMPLING, Kernel
from tilewright.ir.places import fold_lines


def find_kernels(run: Run, name: str) -> dict[str, Kernel]:
    """Those of that name, with or without their hash."""
    kernels = run.engine.manifest.all_kernels if run.engine else ()
    return {k.name: k for k in kernels if name in (k.name, k.name.rpartition("_")[0])}


def module_paths(run: Run) -> dict[str, None]:
    """Every module path of the import: of ops and parameters, and their parents."""
    graph = run.graph(0)
    found: dict[str, None] = {}
    for path in (*(m for op in graph.ops for m in op.loc.modules), *map(owner, graph.params)):
        words = path.split(".")
        found |= dict.fromkeys(".".join(words[: end + 1]) for end in range(len(words)))
    return found


def owner(parameter: str) -> str:
    """The module of a parameter: model.norm.weight -> model.norm."""
    return parameter.rpartition(".")[0]


def is_inside(path: str, module: str) -> bool:
    return path == module or path.startswith(f"{module}.")


def fold_names(run: Run, names: Iterable[str]) -> list[str]:
    """`%.mlp.up_proj x32 [L=0..31]`: names, with or without sigils, that are equal up to the layer."""
    groups = group(names, lambda name: run.layers.shorten(name, name.lstrip("%@")), lambda name: run.layers.layer(name.lstrip("%@")))
    return [str(g.key) + (f" {g.tag}" if g.layers else "") for g in groups]


def print_rules(run: Run, ops: Iterable[Op]) -> str:
    """Rules that made the ops, each with the passes that ran it."""
    rules = dict.fromkeys(rule for op in ops for rule in op.loc.rules)
    ran = {rule: dict.fromkeys(p.stem for p in run.passes if any(e.rule == rule for e in p.events)) for rule in rules}
    return "; ".join(f"{rule} ({few(list(ran[rule]))})" for rule in rules) or "none: as imported"


@dataclass(frozen=True)
class KernelOrigin(Readable):
    run: Run
    kernel: Kernel

    @property
    def launches(self) -> list[tuple[str, str]]:
        """(program, region) of each launch."""
        return [(program, launch.region) for program, launches in self.view.launches.items() for launch in launches]

    @property
    def view(self) -> KernelView:
        assert self.run.engine is not None
        return KernelView(self.run.engine, self.kernel)

    @cached_property
    def regions(self) -> list[RegionRecord]:
        wanted = set(self.launches)
        return [region for region in self.run.regions if (region.program, region.name) in wanted]

    @property
    def values(self) -> list[str]:
        return list(dict.fromkeys(name for region in self.regions for name in region.values))

    @property
    def modules(self) -> list[str]:
        return list(dict.fromkeys(module for region in self.regions for module in region.modules))

    def __str__(self) -> str:
        run = self.run
        values = [value for name in self.values if (value := run.final.find_value(name)) is not None]
        made = [value.producer for value in values if value.producer is not None]
        programs = {program: [region for p, region in self.launches if p == program] for program, _ in self.launches}
        rows = [("launches", f"{program} x{len(names)}: {few(fold_names(run, names))}") for program, names in programs.items()]
        if self.view.samples:
            rows += [("modules", SAMPLING), ("does", self.view.docstring)]
            return "\n".join([f"kernel {self.kernel.name}   {self.kernel.file}", *align(rows)])
        rows += [("modules", text) for text in fold_names(run, self.modules)]
        rows += [("source", text) for text in fold_lines(line for op in made for line in op.loc.sources)]
        rows += [("values", text) for text in fold_names(run, (v.display for v in values))]
        rows += [("rules", print_rules(run, made))]
        rows += [("cut", reason) for reason in dict.fromkeys(region.reason for region in self.regions if region.reason)]
        return "\n".join([f"kernel {self.kernel.name}   {self.kernel.file}", *align(rows)])


@dataclass(frozen=True)
class ModuleFate(Readable):
    """`tensor` is the one of the same name, where there is one: a module's result is named after it."""

    run: Run
    module: str
    tensor: Tensor | None = None

    @cached_property
    def ops(self) -> list[Op]:
        """Of the final graph."""
        return ops_of(self.run.final, self.module)

    @cached_property
    def kernels(self) -> dict[str, list[str]]:
        """Programs that launch each kernel for this module; regions where there is no engine."""
        found: dict[str, list[str]] = {}
        inside = {(r.program, r.name) for r in self.run.regions if any(is_inside(m, self.module) for m in r.modules)}
        for p in self.run.engine.manifest.programs if self.run.engine else ():
            for launch in p.launches:
                if (p.name, launch.region) in inside or any(is_inside(m, self.module) for m in launch.modules):
                    found.setdefault(launch.kernel, []).append(p.name)
        return found

    @property
    def events(self) -> list[tuple[PassRecord, Event]]:
        return [(p, e) for p in self.run.passes for e in p.events if any(is_inside(m, self.module) for m in e.modules)]

    @property
    def folded_by(self) -> tuple[PassRecord, list[Event]] | None:
        """The pass after which no op of the module is left, and its events there; None where some are left."""
        if self.ops:
            return None
        last = max((record.number if record else 0 for record, graph in stages(self.run) if ops_of(graph, self.module)), default=0)
        following = next((p for p in self.run.passes if p.number > last and p.status == "changed"), None)
        return (following, [e for p, e in self.events if p is following]) if following else None

    def __str__(self) -> str:
        run = self.run
        programs = [(name, ", ".join(f"{p} x{used.count(p)}" for p in dict.fromkeys(used))) for name, used in self.kernels.items()]
        rows = [("kernel", f"{name}   {uses}") for name, uses in programs]
        rows += [("source", text) for text in fold_lines(line for op in ops_of(run.graph(0), self.module) for line in op.loc.sources)]
        rows += [("values", text) for text in fold_names(run, (v.display for op in self.ops for v in op.results))]
        rows += [("events", f"{record.title.partition('{')[0]}: {count}") for record, count in _count(self.events)]
        if self.folded_by is not None:
            record, events = self.folded_by
            rows.append(("folded", f"by pass {record.title}: no op of it is left"))
            rows += [("", print_event(event)) for event in events[:4]]
        text = "\n".join([f"module {self.module}", *align(rows)])
        return f"{self.tensor}\n{text}" if self.tensor else text


def ops_of(graph: Graph, module: str) -> list[Op]:
    return [op for op in graph.ops if any(is_inside(m, module) for m in op.loc.modules)]


def _count(events: list[tuple[PassRecord, Event]]) -> list[tuple[PassRecord, str]]:
    """Rules and how often each fired, by pass."""
    found: dict[int, dict[str, int]] = {}
    records = {p.number: p for p, _ in events}
    for p, e in events:
        rules = found.setdefault(p.number, {})
        rules[e.rule] = rules.get(e.rule, 0) + 1
    return [(records[number], ", ".join(f"{rule} x{count}" for rule, count in rules.items())) for number, rules in found.items()]


# -- coverage -------------------------------------------------------------------------------------------------------------------
def uncovered_modules(run: Run) -> list[str]:
    """Modules with parameters of their own that are in no kernel and that no pass is known to have folded away."""
    owners = dict.fromkeys(owner(name) for name in run.graph(0).params)
    fates = [ModuleFate(run, module) for module in owners]
    return [fate.module for fate in fates if not fate.kernels and not (fate.folded_by and fate.folded_by[1])]


def homeless_ops(run: Run) -> list[Op]:
    """Ops of the final graph that name no module."""
    return [op for op in run.final.ops if not op.loc.modules]
