"""Lines of Python that values come from, beside the text form, in which they would change every line: `provenance.jsonl`.

A row is a value and the number of the pass after which these are its lines; values that are equal up to the layer share one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from tilewright.ir.graph import Graph
from tilewright.ir.records import fold_records, unfold_records
from tilewright.ir.spans import print_spans

PLACES_FILE = "provenance.jsonl"
Places = dict[str, tuple[str, ...]]  # by name of a value: `package/path/file.py:line`
_LINE = re.compile(r"(.*):(\d+)")


def places_of(graph: Graph) -> Places:
    return {value.name: op.loc.sources for op in graph.ops for value in op.results if op.loc.sources}


def print_places(number: int, before: Mapping[str, tuple[str, ...]], after: Mapping[str, tuple[str, ...]]) -> str:
    """What pass `number` (0: the import) changed."""
    changed = [(name, lines) for name, lines in after.items() if before.get(name) != lines]
    return fold_records("lines", ((at, name, {"of": name, "pass": number, "at": lines}) for at, (name, lines) in enumerate(changed)))


def read_places(text: str) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """(pass, value, lines) for each that `print_places` wrote. Raises ValueError and KeyError."""
    for line in text.splitlines():
        yield from ((found["pass"], found["of"], tuple(found["at"])) for _, _, found in unfold_records(line))


def put_places(graph: Graph, places: Mapping[str, tuple[str, ...]]) -> None:
    """Gives ops that know no line those of their first result."""
    for op in graph.ops:
        lines = places.get(op.results[0].name)
        if lines and not op.loc.sources:
            op.loc = replace(op.loc, sources=lines)


def fold_lines(lines: Iterable[str]) -> list[str]:
    """`a.py:3, a.py:4, b.py:9` -> `a.py:3..4`, `b.py:9`."""
    numbers: dict[str, set[int]] = {}
    for line in lines:
        found = _LINE.fullmatch(line)
        numbers.setdefault(found[1] if found else line, set()).update((int(found[2]),) if found else ())
    return [f"{file}:{print_spans(sorted(found))}" if found else file for file, found in numbers.items()]
