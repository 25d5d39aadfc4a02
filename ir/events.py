"""Records of change: each rewrite is one numbered event, each near miss one remark. Dumps, diffs and limits read these, never the code."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Event:
    """One rewrite. `number` counts over the whole pipeline, so that a limit can stop at any of them."""

    number: int
    pass_name: str
    rule: str
    anchor: str  # name of the value at which the rule matched
    removed: tuple[str, ...]  # op names that are gone
    added: tuple[str, ...]  # op names that came
    keeps: tuple[str, ...] = ()  # values that keep their name
    related: tuple[tuple[str, str, str], ...] = ()  # (new name, function, old name): new = function(old)
    reason: str = ""
    modules: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()  # values that are new
    erases: tuple[str, ...] = ()  # values that are gone
    into: str = ""  # the value that readers of the anchor read from now on


@dataclass(frozen=True, slots=True)
class Miss:
    """A place where a rule nearly fired, and why it did not."""

    pass_name: str
    rule: str
    anchor: str
    reason: str
    modules: tuple[str, ...] = ()


@dataclass(slots=True)
class EventLog:
    events: list[Event] = field(default_factory=list)
    misses: list[Miss] = field(default_factory=list)
    limit: int | None = None  # rewrites allowed over the whole pipeline; None: all

    @property
    def is_exhausted(self) -> bool:
        return self.limit is not None and len(self.events) >= self.limit
