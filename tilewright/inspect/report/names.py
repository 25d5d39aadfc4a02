"""Names and lines as the page holds them: names of equal layers once, each distinct line once."""

from __future__ import annotations

from collections.abc import Iterable

from tilewright.inspect.layers import Layers
from tilewright.inspect.run import Run
from tilewright.ir.places import fold_lines
from tilewright.ir.spans import print_spans

LAYER = "{L}"
Names = tuple[tuple[str, str], ...]  # (name with {L} for its layer, layers it is of); layers are empty for those outside of layers


def fold_names(names: Iterable[str], layers: Layers) -> Names:
    found: dict[str, set[int]] = {}
    for name in names:
        template, layer = template_of(name, layers)
        found.setdefault(template, set()).update(() if layer is None else (layer,))
    return tuple((template, print_spans(sorted(where))) for template, where in found.items())


def template_of(name: str, layers: Layers) -> tuple[str, int | None]:
    place = layers.split(name)
    if place is None:
        return name, None
    stem, layer = place
    return f"{stem}{LAYER}{name[len(stem) + len(str(layer)) :]}", layer


def fold_places(run: Run, texts: Texts) -> tuple[tuple[int, Names, tuple[int, ...]], ...]:
    """(pass, values, lines of Python that they come from, as places in the table of lines), in order of passes."""
    found: dict[tuple[int, tuple[str, ...]], list[str]] = {}
    for number, value, lines in run.place_changes:
        found.setdefault((number, lines), []).append(value)
    return tuple((number, fold_names(values, run.layers), tuple(map(texts.place, fold_lines(lines)))) for (number, lines), values in found.items())


def with_parents(path: str) -> list[str]:
    """`a.b.c` -> a, a.b, a.b.c"""
    words = path.split(".")
    return [".".join(words[: end + 1]) for end in range(len(words))]


class Texts:
    """A table of lines; a text is the places of its lines."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}

    @property
    def lines(self) -> tuple[str, ...]:
        return tuple(self._places)

    def place(self, line: str) -> int:
        return self._places.setdefault(line, len(self._places))

    def places(self, text: str) -> tuple[int, ...]:
        return tuple(self.place(line.rstrip()) for line in text.rstrip().splitlines())
