"""A writer that moves what does not change in a loop before it. Knows no op."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from tilewright.codegen.writer import Writer


class HoistingWriter(Writer):
    @contextmanager
    def hoisting(self, varying: str) -> Iterator[None]:
        """Of the lines written inside, only those stay that do not depend on the name `varying`; the rest is forgotten.

        Writing a loop's body once in here, with `varying` for its index, leaves what can be computed before the loop.
        """
        start = len(self.lines)
        yield
        lost = {varying}
        kept: list[str] = []
        for line in self.lines[start:]:
            if lost.isdisjoint(re.findall(r"[A-Za-z_]\w*", line)):
                kept.append(line)
            elif " = " in line:
                lost.add(line.split(" = ")[0].strip())
        self.lines[start:] = kept
        self._taken -= lost
        for scope in self._known:
            for key in [key for key, text in scope.items() if not lost.isdisjoint(re.findall(r"[A-Za-z_]\w*", text))]:
                del scope[key]
