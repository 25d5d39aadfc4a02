"""Events and misses as JSON lines and back, those that are equal up to the layer on one line:

    {"event": {"anchor": "model.layers.{L}.norm", "rule": …}, "layers": "0..31", "n": "5..67 step 2"}
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tilewright.ir.events import Event, Miss
from tilewright.ir.spans import print_spans, read_spans

LAYER = re.compile(r"((?:[A-Za-z_]\w*\.)+)(\d+)(?=\.|$)")
MARK = "{L}"
Fields = Mapping[str, Any]


def fold_records(kind: str, records: Iterable[tuple[int, str, Fields]]) -> str:
    """Lines of (number, a name in a layer, fields); numbers rise. Fields that are empty are left out."""
    groups: dict[tuple[str, str], tuple[list[int], list[int]]] = {}
    for number, anchor, fields in records:
        text = json.dumps({key: value for key, value in fields.items() if value not in ("", (), [])}, sort_keys=True, ensure_ascii=False)
        place = LAYER.match(anchor)
        stem = place[1] if place and MARK not in text else ""
        if place and stem:
            text = text.replace(f"{stem}{place[2]}.", f"{stem}{MARK}.").replace(f'{stem}{place[2]}"', f'{stem}{MARK}"')
        layers, numbers = groups.setdefault((text, stem), ([], []))
        layers.append(int(place[2]) if place and stem else 0)
        numbers.append(number)
    lines = [
        f'{{"{kind}": {text}' + (f', "layers": "{print_spans(layers)}"' if stem else "") + f', "n": "{print_spans(numbers)}"}}\n'
        for (text, stem), (layers, numbers) in groups.items()
    ]
    return "".join(lines)


def unfold_records(text: str) -> list[tuple[str, int, dict[str, Any]]]:
    """(kind, number, fields) in order of kind, then number. Raises ValueError and KeyError."""
    found: list[tuple[str, int, dict[str, Any]]] = []
    for line in text.splitlines():
        group = json.loads(line)
        (kind,) = group.keys() - {"layers", "n"}
        numbers = read_spans(group["n"])
        layers = read_spans(group["layers"]) if "layers" in group else [None] * len(numbers)
        body = json.dumps(group[kind], ensure_ascii=False)
        for number, layer in zip(numbers, layers, strict=True):
            found.append((kind, number, json.loads(body if layer is None else body.replace(MARK, str(layer)))))
    return sorted(found, key=lambda item: item[:2])


def print_records(events: Sequence[Event], misses: Sequence[Miss]) -> str:
    return fold_records("event", ((e.number, e.anchor, _fields(e)) for e in events)) + fold_records(
        "miss", ((i, m.anchor, _fields(m)) for i, m in enumerate(misses))
    )


def read_records(text: str) -> tuple[list[Event], list[Miss]]:
    """What `print_records` wrote."""
    events: list[Event] = []
    misses: list[Miss] = []
    for kind, number, fields in unfold_records(text):
        plain: dict[str, Any] = {key: as_tuple(value) for key, value in fields.items()}
        if kind == "event":
            plain = {"removed": (), "added": (), **plain}
            events.append(Event(number=number, **plain))
        else:
            misses.append(Miss(**plain))
    return events, misses


def as_tuple(value: Any) -> Any:
    return tuple(map(as_tuple, value)) if isinstance(value, list) else value


def _fields(record: Event | Miss) -> dict[str, Any]:
    return {f.name: getattr(record, f.name) for f in dataclasses.fields(record) if f.name != "number"}
