"""Things that read as text: on a terminal as they are, in a notebook as a block of it."""

from __future__ import annotations

import html
from collections.abc import Sequence


class Readable:
    """Subclasses define `__str__`."""

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def align(rows: Sequence[Sequence[str]], indent: str = "  ") -> list[str]:
    """Columns two spaces apart; the last one runs free."""
    count = max((len(row) for row in rows), default=0)
    widths = [max((len(row[i]) for row in rows if i + 1 < len(row)), default=0) for i in range(count)]
    return [(indent + "  ".join(cell.ljust(widths[i]) if i + 1 < len(row) else cell for i, cell in enumerate(row))).rstrip() for row in rows]
