"""Things that read as text: on a terminal as they are, in a notebook as a block of it."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text


class Readable:
    """Subclasses define `__str__`."""

    def __rich__(self) -> Text:
        from tilewright.show import colour_text

        return colour_text(str(self))

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def nearest(name: str, known: Iterable[str], otherwise: str) -> str:
    """`did you mean 'x'?`: first what has all the words of the name, then what is spelt like it."""
    words, names = name.split("."), list(dict.fromkeys(known))
    near = sorted((n for n in names if set(words) <= set(n.split("."))), key=len)[:1] or get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else otherwise


def align(rows: Sequence[Sequence[str]], indent: str = "  ") -> list[str]:
    """Columns two spaces apart; the last one runs free."""
    count = max((len(row) for row in rows), default=0)
    widths = [max((len(row[i]) for row in rows if i + 1 < len(row)), default=0) for i in range(count)]
    return [(indent + "  ".join(cell.ljust(widths[i]) if i + 1 < len(row) else cell for i, cell in enumerate(row))).rstrip() for row in rows]
