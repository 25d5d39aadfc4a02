"""The rewrites and near misses of a pass, grouped over layers and siblings: what fired how often, and what did not and why."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from tilewright.inspect.layers import Group, Layers, few, group, join_names
from tilewright.inspect.text import Readable, align
from tilewright.ir.events import Event, Miss

NAME = re.compile(r"%([\w./-]+)")


@dataclass(frozen=True)
class EventView(Readable):
    """`events` and `misses` in the order in which they first appear; a group's key is (what it did, where)."""

    events: tuple[Group[Event], ...]
    misses: tuple[Group[Miss], ...]
    layers: Layers = field(default_factory=Layers, repr=False)

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """kind and count, place, what happened."""
        fired = [("event " + g.tag, _anchor(g), _describe_events(g, self.layers)) for g in self.events]
        return fired + [("missed " + g.tag, _anchor(g), _describe_miss(g.items[0], self.layers)) for g in self.misses]

    def __str__(self) -> str:
        return "\n".join(align(self.rows)) or "  nothing fired, nothing nearly fired"


def view_events(events: Iterable[Event], misses: Iterable[Miss], layers: Layers) -> EventView:
    """Equal up to the layer first; then those that did the same at siblings, as to both norms of each layer."""

    def fired(e: Event) -> tuple[Hashable, str]:
        return (e.pass_name, e.rule, e.removed, e.added, _reason(e, layers)), layers.shorten(e.anchor, e.anchor)

    def missed(m: Miss) -> tuple[Hashable, str]:
        return (m.pass_name, m.rule, _reason(m, layers)), layers.shorten(m.anchor, m.anchor)

    by_event = group(events, fired, lambda e: layers.layer(e.anchor))
    by_miss = group(misses, missed, lambda m: layers.layer(m.anchor))
    return EventView(tuple(_join_siblings(by_event)), tuple(_join_siblings(by_miss)), layers)


def _join_siblings(groups: Sequence[Group]) -> list[Group]:
    """Those that did the same in the same layers at other places."""
    found: dict[Hashable, Group] = {}
    for g in groups:
        what, where = g.key  # type: ignore[misc]
        at = (what, tuple(sorted(set(g.layers))))
        known = found.get(at)
        found[at] = replace(g, key=(what, (where,))) if known is None else _join(known, g, where)
    return list(found.values())


def _join(known: Group, more: Group, where: str) -> Group:
    what, places = known.key  # type: ignore[misc]
    return Group((what, (*places, where)), known.items + more.items, known.layers + more.layers)


def _anchor(found: Group) -> str:
    _, places = found.key  # type: ignore[misc]
    return join_names(places)


def _describe_events(found: Group[Event], layers: Layers) -> str:
    """One event stands for those at each place."""
    at = {layers.shorten(event.anchor, event.anchor): event for event in reversed(found.items)}
    first, each = found.items[0], [at[place] for place in found.key[1]]  # type: ignore[index]
    kept = [_short(name, event, layers) for event in each for name in event.keeps]
    made = [_short(name, event, layers) for event in each for name in event.makes]
    into = [_short(event.into, event, layers) for event in each if event.into]
    rule = f"{first.rule}: " if first.rule != first.pass_name else ""
    parts = [f"{rule}{' '.join(reversed(first.removed)) or 'nothing'} -> {' '.join(first.added) or 'nothing'}"]
    parts += [f"now {join_names(into)}"] if into else []
    parts += [f"keeps {few(list(dict.fromkeys(kept)))}"] if kept else []
    parts += [f"makes {few(made)}"] if made else []
    parts += [f'"{_reason(first, layers)}"'] if first.reason else []
    return "   ".join(parts)


def _describe_miss(miss: Miss, layers: Layers) -> str:
    rule = f"{miss.rule}: " if miss.rule != miss.pass_name else ""
    return f'{rule}"{_reason(miss, layers)}"'


def _reason(record: Event | Miss, layers: Layers) -> str:
    """With `%h` for what comes from another layer."""
    own = layers.split(record.anchor)
    text = layers.shorten(record.reason, record.anchor)
    return NAME.sub(lambda m: "%h" if own and layers.split(m[1]) not in (None, own) else m[0], text)


def _short(name: str, event: Event, layers: Layers) -> str:
    return "it" if name == event.anchor else layers.shorten(name, event.anchor)
