"""What passes change, printed on stderr while they run: TILEWRIGHT_PRINT."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from fnmatch import fnmatchcase

from tilewright.inspect.pass_diff import PassDiff
from tilewright.ir.fold import fold_text
from tilewright.ir.graph import Graph
from tilewright.passes.manager import PassRow


@dataclass
class PassPrinter:
    pattern: str  # glob of pass names
    is_full: bool  # whole graphs, not what changed
    before: Graph  # as the last pass left it

    num_printed: int = 0

    @staticmethod
    def of(switch: str, graph: Graph) -> PassPrinter:
        name, _, how = switch.partition(":")
        twin = graph.copy()
        twin.sort()
        return PassPrinter("*" if name == "all" else name, how == "full", twin)

    def __call__(self, row: PassRow, graph: Graph) -> None:
        """Called after each pass."""
        name = row.name.partition("{")[0]
        after = graph.copy() if row.events else self.before
        if fnmatchcase(name, self.pattern):
            shown = fold_text(after) if self.is_full else PassDiff.of(f"{row.number:02d} {row.name}", row, self.before, after)
            self.num_printed += 1
            print(f"// after {row.number:02d}-{row.name}\n{shown}", file=sys.stderr)
        self.before = after

    def close(self, pipeline: str) -> None:
        """Called after the last pass: says so where none was printed."""
        if not self.num_printed:
            print(f"TILEWRIGHT_PRINT: no pass of {pipeline} fits {self.pattern!r}", file=sys.stderr)
