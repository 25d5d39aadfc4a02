"""Where a tensor comes from and what became of it, over all passes and both ways: ops, events, modules, kernels. Kernels and modules likewise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from tilewright.inspect.diff import Made, describe
from tilewright.inspect.run import PassRecord, Run
from tilewright.inspect.text import Readable, align, nearest
from tilewright.ir.errors import EngineError
from tilewright.ir.events import Event
from tilewright.ir.graph import Graph, Value
from tilewright.ir.places import fold_lines

LISTED = "tilewright show {} prints them"
DEPTH = 8  # relations followed from a tensor


@dataclass(frozen=True, slots=True)
class Stage:
    """What happened to a tensor at one stage."""

    title: str  # `00 import`, `05 raise-rms-norm`
    made: Made | None  # how it is made from then on; None: it is gone, or was only touched
    is_gone: bool
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class Relation:
    """How another tensor hangs together with this one."""

    name: str
    how: str


@dataclass(frozen=True, eq=False)
class Tensor(Readable):
    """A tensor of a run by name, at whatever stages it is there."""

    run: Run
    name: str

    @property
    def value(self) -> Value | None:
        """In the final graph."""
        return self.run.final.find_value(self.name)

    @property
    def last(self) -> Value:
        """Where it was seen last."""
        found = [value for _, graph in stages(self.run) if (value := graph.find_value(self.name)) is not None]
        assert found, f"{self.name} is in no graph"
        return found[-1]

    @property
    def modules(self) -> tuple[str, ...]:
        producer = self.last.producer
        return producer.loc.modules if producer else (self.name.rpartition(".")[0],) if self.last.is_const else ()

    @property
    def sources(self) -> tuple[str, ...]:
        """`package/path/file.py:line`s of the modules' code."""
        producer = self.last.producer
        return producer.loc.sources if producer else ()

    @property
    def kernels(self) -> list[str]:
        """`decode: <kernel>` for each program that computes it. A constant is computed when weights are packed."""
        return [text for place in self.run.regions if self.name in place.values for text in _kernels(self.run, place.program, place.name)]

    @cached_property
    def history(self) -> History:
        return History(self, tuple(_history(self.run, self.name)))

    def __repr__(self) -> str:
        return f"<{self.last!r} of {self.run.path}>"

    def __str__(self) -> str:
        return str(self.history)


@dataclass(frozen=True)
class History(Readable):
    tensor: Tensor
    stages: tuple[Stage, ...]

    @property
    def before(self) -> list[Relation]:
        """What it was made of by rewrites, nearest first."""
        return _follow(self.tensor, _origins)

    @property
    def after(self) -> list[Relation]:
        """What took its place, or was made of it, nearest first."""
        return _follow(self.tensor, _successors)

    def __str__(self) -> str:
        tensor = self.tensor
        head = f"{tensor.last!r}" + (f"   from {', '.join(tensor.modules)}" if tensor.modules else "")
        rows = [(stage.title, text) for stage in self.stages for text in _print_stage(stage, tensor.name)]
        rows += [("source", text) for text in fold_lines(tensor.sources)]
        rows += [("before", f"%{r.name}: {r.how}") for r in self.before] + [("after", f"%{r.name}: {r.how}") for r in self.after]
        rows += [("kernel", text) for text in tensor.kernels]
        if tensor.value is not None and tensor.value.is_const and not tensor.kernels:
            rows.append(("kernel", "none: it is computed once, when weights are packed" if tensor.value.producer else "none: it is a weight"))
        return "\n".join([head, *align(rows)])


# -- finding --------------------------------------------------------------------------------------------------------------------
def blame(run: Run, name: str) -> Readable:
    """A kernel, a module and what is inside it, or a tensor; a module and its result may share a name, and are told together.

    A kernel may be named without its hash, where nothing else has that name. Raises EngineError for a name that is none.
    """
    from tilewright.inspect.blame_places import KernelOrigin, ModuleFate, find_kernels, module_paths

    kernels = find_kernels(run, name)
    if name in kernels:
        return KernelOrigin(run, kernels[name])
    bare, paths = name.lstrip("%@"), module_paths(run)
    has_tensor = any(graph.find_value(bare) for _, graph in stages(run))
    if bare in paths and not name.startswith(("%", "@")):
        return ModuleFate(run, bare, Tensor(run, bare) if has_tensor else None)
    if has_tensor:
        return Tensor(run, bare)
    if kernels:
        if len(kernels) > 1:
            raise EngineError(f"run {run.path}", f"{name!r} begins the names of {len(kernels)} kernels", ", ".join(kernels))
        return KernelOrigin(run, *kernels.values())
    known = {v.name for _, graph in stages(run) for v in graph.values()} | set(paths)
    raise EngineError(f"run {run.path}", f"no tensor, kernel or module {name!r}", nearest(bare, sorted(known), LISTED.format(run.path)))


def find_tensor(run: Run, name: str) -> Tensor:
    bare = name.lstrip("%@")
    known = {v.name for _, graph in stages(run) for v in graph.values()}
    if bare not in known:
        raise EngineError(f"run {run.path}", f"no tensor {name!r}", nearest(bare, sorted(known), LISTED.format(run.path)))
    return Tensor(run, bare)


def stages(run: Run) -> Iterator[tuple[PassRecord | None, Graph]]:
    """The import, then each pass that changed something."""
    yield None, run.graph(0)
    yield from ((record, record.after) for record in run.passes if record.status == "changed")


# -- history --------------------------------------------------------------------------------------------------------------------
def _history(run: Run, name: str) -> Iterator[Stage]:
    known: Made | None = None
    for record in (None, *run.passes):
        if record is not None and record.status == "failed":
            continue
        value = run.graph(record.number if record else 0).find_value(name)
        made = describe(value) if value is not None else None
        events = tuple(e for e in record.events if touches(e, name)) if record else ()
        if made != known or events:
            title = record.title.partition("{")[0] if record else "00 import"
            yield Stage(title, made if made != known else None, made is None and known is not None, events)
        known = made


def touches(event: Event, name: str) -> bool:
    related = (word for new, _, old in event.related for word in (new, old))
    return name in (event.anchor, event.into, *event.keeps, *event.makes, *event.erases, *related)


def _print_stage(stage: Stage, name: str) -> list[str]:
    if stage.made is not None:
        lines = [f"{stage.made.name} = {stage.made.text}" if stage.made.operands else stage.made.text]
    else:
        lines = ["is gone"] if stage.is_gone else ["is still made so"]
    return lines + [f"  {print_event(event, name)}" for event in stage.events]


def print_event(event: Event, name: str = "") -> str:
    at = "here" if event.anchor == name else f"at %{event.anchor}"
    reason = f'   "{event.reason}"' if event.reason else ""
    ops = f"{' '.join(reversed(event.removed)) or 'nothing'} -> {' '.join(event.added) or 'nothing'}"
    return f"event {event.number} {event.rule} {at}: {ops}{reason}"


# -- relations ------------------------------------------------------------------------------------------------------------------
def _follow(tensor: Tensor, step: Callable[[list[Event], str], Iterator[Relation]]) -> list[Relation]:
    events = [event for record in tensor.run.passes for event in record.events]
    found: dict[str, Relation] = {}
    names = [tensor.name]
    for _ in range(DEPTH):
        more = [relation for name in names for relation in step(events, name) if relation.name not in (tensor.name, *found)]
        found |= {relation.name: relation for relation in reversed(more)}
        names = list(dict.fromkeys(relation.name for relation in more))
    return list(found.values())


def _origins(events: list[Event], name: str) -> Iterator[Relation]:
    for event in events:
        if name in event.makes:
            declared = [Relation(old, f"{function} of it, event {event.number} {event.rule}") for new, function, old in event.related if new == name]
            came_from = () if name == event.anchor else (Relation(event.anchor, f"rewritten by event {event.number} {event.rule}"),)
            yield from declared or came_from
        elif name == event.into and name != event.anchor:
            yield Relation(event.anchor, f"read as this one since event {event.number} {event.rule}")


def _successors(events: list[Event], name: str) -> Iterator[Relation]:
    for event in events:
        yield from (Relation(new, f"{function} of it, event {event.number} {event.rule}") for new, function, old in event.related if old == name)
        if name in event.erases:
            places = (event.into,) if event.into else event.keeps or event.makes
            yield from (Relation(place, f"in its place, event {event.number} {event.rule}") for place in places)


def _kernels(run: Run, program: str, region: str) -> list[str]:
    """The launches of a region; its name alone where there is no engine."""
    programs = run.engine.manifest.programs if run.engine else ()
    found = [f"{program}: {launch.kernel}" for p in programs if p.name == program for launch in p.launches if launch.region == region]
    return found or [f"{program}: region {region}"]
