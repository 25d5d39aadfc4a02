"""Rising integers as short text and back: `0..31`, `0..30 step 2, 40`. Layers, event numbers and the like are written so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def print_spans(numbers: Iterable[int]) -> str:
    """Keeps the order given; a span has at least three numbers, or two neighbours."""
    values, parts, at = list(numbers), [], 0
    while at < len(values):
        count = _length(values, at)
        step = values[at + 1] - values[at] if count > 1 else 1
        if count < 3 and step != 1:
            count = 1
        last = values[at + count - 1]
        parts.append(str(values[at]) if count == 1 else f"{values[at]}..{last}" + (f" step {step}" if step > 1 else ""))
        at += count
    return ", ".join(parts)


def read_spans(text: str) -> list[int]:
    """What `print_spans` wrote. Raises ValueError."""
    values: list[int] = []
    for part in text.split(", ") if text else ():
        ends, _, step = part.partition(" step ")
        first, _, last = ends.partition("..")
        values += range(int(first), int(last or first) + 1, int(step or 1))
    return values


def _length(values: Sequence[int], at: int) -> int:
    """How many numbers from `at` on rise by the same step."""
    if at + 1 >= len(values) or values[at + 1] <= values[at]:
        return 1
    step, end = values[at + 1] - values[at], at + 1
    while end + 1 < len(values) and values[end + 1] - values[end] == step:
        end += 1
    return end - at + 1
