"""Where a tile of a value lies: every value is seen as [rows, width] (leading axes flattened) and addressed by two index expressions.

Index expressions remember how they were split into heads, so that views need no division at run time. Knows no op.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from tilewright.ir.types import TensorType


@dataclass(frozen=True, slots=True)
class Split:
    """The pair (row, column) addresses a wide value by its narrow rows: narrow row `whole`, `count` narrow rows in a wide one."""

    whole: Index
    count: int


@dataclass(frozen=True, slots=True)
class Index:
    """Text of an integer scalar or tile, with the masks (names of i1 tiles) outside of which it must not be used."""

    text: str
    masks: tuple[str, ...] = ()
    # text = <base> + inner, where base is a multiple of unit and 0 <= inner < unit
    base: str = ""
    inner: Index | None = None
    unit: int = 0
    split: Split | None = None  # set on both indices of a widened pair
    parts: tuple[int, str, str] | None = None  # of a narrow row: count, and the texts of row // count (inside any mask) and row % count

    def with_text(self, text: str) -> Index:
        return Index(text, self.masks)


ZERO = Index("0")


@dataclass(frozen=True, slots=True)
class At:
    row: Index
    column: Index

    def with_column(self, column: Index) -> At:
        return replace(self, column=column)

    def with_row(self, row: Index) -> At:
        return replace(self, row=row)


def width_of(type_: TensorType) -> int | str:
    """Size of the last axis; 1 for a scalar."""
    return type_.shape[-1] if type_.shape else 1


def rows_of(type_: TensorType) -> int:
    """Product of the leading axes that are fixed: 32 for [T, 32, 128], 1 for [T, 4096]."""
    return prod(d for d in type_.shape[:-1] if isinstance(d, int))


def join_masks(*indices: Index) -> tuple[str, ...]:
    return tuple(dict.fromkeys(m for index in indices for m in index.masks))


def widen(at: At, narrow: int, count: int) -> At:
    """From rows of width `narrow` to rows of `count` times that width."""
    if count == 1:
        return at
    split = Split(at.row, count)
    known = at.row.parts if at.row.parts is not None and at.row.parts[0] == count else None
    row = Index(known[1], split=split) if known else Index(f"({at.row.text} // {count})", at.row.masks, split=split)
    base = f"{known[2] if known else f'({at.row.text} % {count})'} * {narrow}"
    return At(row, Index(f"({base} + {at.column.text})", join_masks(at.row, at.column), base, at.column, narrow, split))


def narrow(at: At, width: int, count: int) -> At:
    """From rows of `count` times `width` to rows of `width`."""
    split = at.column.split
    if at.column.inner is not None and at.column.unit == width and split is not None and split == at.row.split and split.count == count:
        return At(split.whole, at.column.inner)
    if at.column.text == "0":
        return At(Index(f"({at.row.text} * {count})", at.row.masks), ZERO)
    row = f"({at.row.text} * {count} + {at.column.text} // {width})"
    return At(Index(row, join_masks(at.row, at.column)), remainder(at.column, width))


def remainder(column: Index, unit: int) -> Index:
    """column % unit."""
    return column.inner if column.inner is not None and column.unit == unit else Index(f"({column.text} % {unit})", column.masks)


def shift_within(column: Index, unit: int, place: str) -> Index:
    """The column whose place in its group of `unit` columns is `place` instead."""
    inner = Index(place, remainder(column, unit).masks)
    if column.inner is not None and column.unit == unit:
        return replace(column, text=f"({column.base} + {place})", inner=inner)
    base = f"({column.text} - {column.text} % {unit})"
    return Index(f"({base} + {place})", column.masks, base, inner, unit)


def reshape_at(old: TensorType, new: TensorType, at: At) -> At:
    """Where the element of `new` at `at` lies in `old`, the same elements in row-major order."""
    from_width, to_width = width_of(new), width_of(old)
    if from_width == to_width:
        return at
    if isinstance(to_width, str) or isinstance(from_width, str):
        return _reshape_symbolic(from_width, to_width, at)
    if to_width % from_width == 0:
        return widen(at, from_width, to_width // from_width)
    if from_width % to_width == 0:
        return narrow(at, to_width, from_width // to_width)
    flat = f"({at.row.text} * {from_width} + {at.column.text})"
    masks = join_masks(at.row, at.column)
    return At(Index(f"({flat} // {to_width})", masks), Index(f"({flat} % {to_width})", masks))


def _reshape_symbolic(from_width: int | str, to_width: int | str, at: At) -> At:
    """[T] is one row of T columns: between it and [T, n] the columns become rows."""
    if isinstance(to_width, str):
        masks = join_masks(at.row, at.column)
        text = at.row.text if from_width == 1 else f"({at.row.text} * {from_width} + {at.column.text})"
        return At(ZERO, Index(text, masks))
    if to_width == 1:
        return At(at.column, ZERO)
    return At(Index(f"({at.column.text} // {to_width})", at.column.masks), Index(f"({at.column.text} % {to_width})", at.column.masks))


def broadcast_at(operand: TensorType, result: TensorType, at: At) -> At:
    """Where the element of `result` at `at` lies in an operand that is broadcast to it."""
    column = ZERO if width_of(operand) == 1 and width_of(result) != 1 else at.column
    lead = result.shape[:-1]
    own = (1,) * (len(lead) - max(0, operand.rank - 1)) + operand.shape[:-1]
    if own == lead:
        return At(at.row, column)
    if prod(1 if d == 1 else 2 for d in own) == 1:
        return At(ZERO, column)
    return At(Index(_broadcast_row(own, lead, at.row.text), at.row.masks), column)


def _broadcast_row(own: tuple[int | str, ...], lead: tuple[int | str, ...], row: str) -> str:
    """Row of the operand's leading axes: each axis of the result's row, taken where the operand has it."""
    terms: list[str] = []
    below, stride = 1, 1
    for mine, whole in zip(reversed(own), reversed(lead)):
        size = whole if isinstance(whole, int) else 0  # a symbol is the outermost axis that varies
        if mine != 1:
            place = f"({row} // {below})" if below > 1 else row
            place = f"{place} % {size}" if size else place
            terms.append(f"({place}) * {stride}" if stride > 1 else f"({place})")
            stride *= mine if isinstance(mine, int) else 1
        below *= size or 1
    return "(" + " + ".join(reversed(terms)) + ")"
