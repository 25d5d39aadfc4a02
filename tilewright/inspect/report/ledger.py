"""Graphs as rows of folded text, each marked with what a step did to the tensors it stands for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tilewright.inspect.diff import GraphDiff, diff
from tilewright.inspect.report.names import Texts
from tilewright.ir.fold import OPEN, fold_text
from tilewright.ir.graph import Graph

PLACE = re.compile(r"\{L([+-]\d+)?\}")
SAME, READS = "=", ">"  # beside the signs of a diff: as before; as before but for the name of what it reads


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A graph, and how its rows differ from those of the one before it."""

    number: int  # of the pass after which it stands
    rows: tuple[int, ...]  # places in the table of lines
    signs: str  # of each row: = + ~ >
    before: str = ""  # of each row of the snapshot before: = - ~ >
    merged: tuple[int, ...] = ()  # both: i is row i of this one, -1 - i is row i of the one before, which is gone
    partly: dict[int, int] = field(default_factory=dict)  # how many of a row's layers a sign is about, where not all


@dataclass(frozen=True, slots=True)
class Row:
    text: str
    names: tuple[str, ...]  # of all layers, without sigils
    part: tuple[str, ...]  # finds the same row elsewhere, where it has no names

    @staticmethod
    def all_of(graph: Graph) -> list[Row]:
        lines = fold_text(graph).splitlines()[1:]
        while lines and lines[-1].strip() in ("", "}"):
            lines.pop()
        return list(_rows(lines))


def _rows(lines: Iterable[str]) -> Iterable[Row]:
    head: re.Match[str] | None = None
    counts: dict[str, int] = {}
    for line in lines:
        text = line.strip()
        opened = OPEN.match(line)
        head = opened or head
        word = f"repeat {opened[4]}" if opened else re.split(r"[ (]", text, maxsplit=1)[0]
        names = () if opened else tuple(_names(text, head))
        counts[word] = counts.get(word, 0) + (not names)
        yield Row(line, names, () if names else (word, str(counts[word])))
        head = None if text == "}" else head


def _names(text: str, head: re.Match[str] | None) -> Iterable[str]:
    if text.startswith("param "):
        defined = [text.split(" ", 2)[1]]
    elif text[:1] in "%@" and " = " in text:
        defined = text.partition(" = ")[0].split(", ")
    else:
        return ("return",) if text.startswith("return ") else ()
    if head is None:
        return [name[1:] for name in defined]
    start, stop, step, stem = int(head[1]), int(head[2]), int(head[3] or 1), head[4]
    full = [f"{stem}.{{L}}{name[1:]}" if name[1:].startswith(".") else name[1:] for name in defined]
    return [PLACE.sub(lambda m, at=layer: str(at + int(m[1] or 0)), name) for layer in range(start, stop + 1, step) for name in full]


def snapshot(number: int, graph: Graph, texts: Texts, before: tuple[Graph, list[Row]] | None) -> tuple[Snapshot, list[Row]]:
    """With its rows, which the next one is compared with."""
    rows = Row.all_of(graph)
    places = tuple(texts.place(row.text) for row in rows)
    if before is None:
        return Snapshot(number, places, SAME * len(rows), merged=tuple(range(len(rows)))), rows
    marks = _marks(diff(before[0], graph))
    partly: dict[int, int] = {}
    signs = "".join(_sign(row, marks, "+", partly, at) for at, row in enumerate(rows))
    gone = "".join(_sign(row, marks, "-", {}, at) for at, row in enumerate(before[1]))
    return Snapshot(number, places, signs, gone, tuple(_merge(before[1], gone, rows)), partly), rows


def _marks(found: GraphDiff) -> dict[str, str]:
    marks: dict[str, str] = {}
    for change in (change for group in found for change in group.items):
        marks[change.name] = change.sign
        marks |= {reader.lstrip("%@"): READS for reader, _ in change.readers}
    return marks


def _sign(row: Row, marks: Mapping[str, str], whole: str, partly: dict[int, int], at: int) -> str:
    """`whole` (+ or -) where all tensors of a row came or went, ~ where some did."""
    found = [marks[name] for name in row.names if name in marks]
    if not found:
        return SAME
    if len(found) < len(row.names):
        partly[at] = len(found)
    kinds = dict.fromkeys(found)
    if len(kinds) > 1:
        return "~"
    (kind,) = kinds
    return kind if kind in ("~", READS) or (kind == whole and len(found) == len(row.names)) else "~"


def _merge(before: Sequence[Row], gone: str, after: Sequence[Row]) -> list[int]:
    """Rows that are gone stand behind the row that they followed."""
    place = {key: at for at, row in enumerate(after) for key in (row.names or (row.part,))}
    behind: dict[int, list[int]] = {}
    anchor = -1
    for at, row in enumerate(before):
        if gone[at] == "-":
            behind.setdefault(anchor, []).append(-1 - at)
        else:
            anchor = next((place[key] for key in (row.names or (row.part,)) if key in place), anchor)
    merged = behind.get(-1, [])
    for at in range(len(after)):
        merged += [at, *behind.get(at, [])]
    return merged
