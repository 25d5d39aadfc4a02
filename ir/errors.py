"""Errors that users see. Each says where, what (both sides quoted) and what to do; knows nothing of who raises it."""

from __future__ import annotations


class TilewrightError(Exception):
    """Base of every error raised for something a user, a model or a file caused: `where: problem; remedy`."""

    def __init__(self, where: str, problem: str, remedy: str = "") -> None:
        self.where, self.problem, self.remedy = where, problem, remedy
        super().__init__(f"{where}: {problem}; {remedy}" if remedy else f"{where}: {problem}")


class GraphError(TilewrightError):
    """An op, type or name that the IR refuses."""


class ParseError(TilewrightError):
    """Text that is not IR; `where` is `file:line:column`."""


class PassError(TilewrightError):
    """A pass, pipeline or rewrite that cannot go on."""


class TraceError(TilewrightError):
    """A model that cannot be imported."""


class CheckpointError(TilewrightError):
    """Weights or config files that are missing, truncated or of the wrong kind."""


class CodegenError(TilewrightError):
    """A region without a kernel, or a kernel that does not compile for its target."""


class EngineError(TilewrightError):
    """An engine directory that cannot be loaded, or does not fit this machine."""


class RequestError(TilewrightError, ValueError):
    """A prompt or sampling parameter that cannot be served."""
