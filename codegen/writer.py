"""Lines of source text: indentation, names used once, and remembered results that end with the block they were made in. Knows no op."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager


class Writer:
    """Collects the body of one function."""

    def __init__(self, taken: Iterable[str] = (), indent: int = 1) -> None:
        self.lines: list[str] = []
        self._indent = indent
        self._taken = {"tl", "triton", "torch", *taken}
        self._known: list[dict[Hashable, str]] = [{}]

    def line(self, text: str = "", comment: str = "") -> None:
        self.lines.append(f"{'    ' * self._indent}{text}{'  # ' + comment if comment else ''}" if text or comment else "")

    def comment_last(self, comment: str) -> None:
        """A comment for the line just written, unless it has one."""
        if comment and self.lines and "  # " not in self.lines[-1]:
            self.lines[-1] += f"  # {comment}"

    def fresh(self, hint: str) -> str:
        """`hint`, or the first of `hint_2`, `hint_3`, … that is free."""
        name, count = hint, 2
        while name in self._taken:
            name, count = f"{hint}_{count}", count + 1
        self._taken.add(name)
        return name

    def let(self, hint: str, expression: str, comment: str = "") -> str:
        """Assigns the expression to a new name; the same expression in the same or an outer block gives the same name."""
        known = self.recall(expression)
        if known is not None:
            return known
        name = self.fresh(hint)
        self.line(f"{name} = {expression}", comment)
        return self.remember(expression, name)

    def remember(self, key: Hashable, name: str) -> str:
        self._known[-1][key] = name
        return name

    def recall(self, key: Hashable) -> str | None:
        return next((scope[key] for scope in reversed(self._known) if key in scope), None)

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """`head` and an indented body; what the body computes is forgotten after it."""
        self.line(head)
        with self.scope():
            self._indent += 1
            yield
            self._indent -= 1

    @contextmanager
    def scope(self) -> Iterator[None]:
        self._known.append({})
        yield
        self._known.pop()

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"
