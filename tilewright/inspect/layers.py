"""Which layer a name belongs to, and names of equal layers as one: `%.mlp.up_proj` for `%model.layers.0.mlp.up_proj` and its sisters."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from tilewright.ir.graph import Graph
from tilewright.ir.spans import print_spans

INDEX = re.compile(r"((?:\w+\.)*?)(\d+)(?=\.|$)")
T = TypeVar("T")
FEW = 4  # names listed before the rest is counted


@dataclass(frozen=True, slots=True)
class Layers:
    """`stems` are module paths of lists of layers, each with its dot: `model.layers.`; numbers elsewhere in names count nothing."""

    stems: tuple[str, ...] = ()

    @staticmethod
    def of(*graphs: Graph) -> Layers:
        """Parameters and locs are named after modules, whose numbers are places in lists; the first one counts, so experts are no layers."""
        paths = dict.fromkeys(name for graph in graphs for name in graph.params)
        paths |= dict.fromkeys(module for graph in graphs for op in graph.ops for module in op.loc.modules)
        return Layers.of_paths(paths)

    @staticmethod
    def of_paths(paths: Iterable[str]) -> Layers:
        return Layers(tuple(dict.fromkeys(match[1] for path in paths if (match := INDEX.match(path)) and match[1])))

    def split(self, name: str) -> tuple[str, int] | None:
        """The stem and the layer of a name without sigil; None for one that belongs to no layer."""
        match = INDEX.match(name)
        return (match[1], int(match[2])) if match and match[1] in self.stems else None

    def layer(self, name: str) -> int | None:
        found = self.split(name)
        return found[1] if found else None

    def shorten(self, text: str, anchor: str) -> str:
        """`text` with what belongs to the layer of `anchor` written as `.x`, and with {L} where there are several stems."""
        found = self.split(anchor)
        if found is None:
            return text
        lead = re.escape(f"{found[0]}{found[1]}")
        short = "." if len(self.stems) == 1 else f"{found[0]}{{L}}."
        text = re.sub(rf"(?<![\w.]){lead}\.(?=\w)", short, text)
        return re.sub(rf"(?<![\w.]){lead}(?![\w.]*\w)", f"{found[0]}{{L}}", text)


@dataclass(frozen=True, slots=True)
class Group(Generic[T]):
    """Things that are equal up to their layer. `layers` is empty for those outside of layers."""

    key: Hashable
    items: tuple[T, ...]
    layers: tuple[int, ...]

    @property
    def tag(self) -> str:
        return f"x{len(self.items)}" + (f" [L={print_spans(sorted(set(self.layers)))}]" if self.layers else "")


def group(items: Iterable[T], key_of: Callable[[T], Hashable], layer_of: Callable[[T], int | None]) -> list[Group[T]]:
    """In order of first appearance; things of layers and things outside of them stay apart."""
    found: dict[Hashable, tuple[Hashable, list[T], list[int]]] = {}
    for item in items:
        key, layer = key_of(item), layer_of(item)
        _, members, layers = found.setdefault((key, layer is None), (key, [], []))
        members.append(item)
        layers += [] if layer is None else [layer]
    return [Group(key, tuple(members), tuple(layers)) for key, members, layers in found.values()]


def join_names(names: Sequence[str]) -> str:
    """`a.q_norm, a.k_norm` -> `a.{q,k}_norm`."""
    names = list(dict.fromkeys(names))
    if len(names) == 1:
        return names[0]
    lead = re.sub(r"[^._]*$", "", _common_start(names))
    tails = [name[len(lead) :] for name in names]
    end = re.sub(r"^[^._]*", "", _common_start([tail[::-1] for tail in tails])[::-1])
    middles = [tail[: len(tail) - len(end)] for tail in tails]
    if not lead and not end:
        return few(names)
    return f"{lead}{{{few(middles, ',')}}}{end}"


def _common_start(names: Sequence[str]) -> str:
    low, high = min(names), max(names)
    return low[: next((i for i, (a, b) in enumerate(zip(low, high)) if a != b), min(len(low), len(high)))]


def few(names: Sequence[str], separator: str = ", ") -> str:
    """The first few, and how many more there are."""
    more = len(names) - FEW
    return separator.join(names[:FEW]) + (f"{separator}… {more} more" if more > 0 else "")
