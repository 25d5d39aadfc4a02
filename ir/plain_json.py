"""Rebuilds frozen dataclasses from plain JSON, refusing unknown, missing and mistyped fields by path. Knows no particular dataclass."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

from tilewright.ir.errors import EngineError

Reader = Callable[[Any], Any]


def decode(kind: Any, data: Any, where: str) -> Any:
    """A value of annotation `kind`. Raises EngineError at the path, below `where`, of what does not fit."""
    try:
        return _reader(kind)(data)
    except _Misfit as misfit:
        raise EngineError(where + misfit.path, misfit.problem, "rebuild the engine") from None


def schema_of(data: Any) -> Any:
    """The schema that a file's JSON gives itself; None where it gives none."""
    return data.get("schema") if isinstance(data, dict) else None


class _Misfit(Exception):
    def __init__(self, problem: str, path: str = "") -> None:
        self.problem, self.path = problem, path

    def below(self, step: str) -> _Misfit:
        return _Misfit(self.problem, step + self.path)


@cache
def _reader(kind: Any) -> Reader:
    """Made once for each annotation: what an annotation means takes longer to find out than to read a value of it."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _dataclass_reader(kind)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return _list_reader(args[0]) if len(args) == 2 and args[1] is Ellipsis else _tuple_reader(args)
    if origin is dict:
        return _object_reader(args[1])
    if origin is Literal:
        return _checked(lambda data: data in args, " or ".join(map(repr, args)))
    if origin in (typing.Union, types.UnionType):
        return _union_reader(kind, args)
    return _checked(_plain_check(kind), getattr(kind, "__name__", str(kind)))


def _dataclass_reader(kind: type) -> Reader:
    hints, known = typing.get_type_hints(kind), {f.name: f for f in dataclasses.fields(kind)}
    missing = dataclasses.MISSING
    needed = [name for name, f in known.items() if f.default is missing and f.default_factory is missing]
    readers = {name: _reader(hints[name]) for name in known}

    def read(data: Any) -> Any:
        _require(isinstance(data, dict), data, f"an object ({kind.__name__})")
        for name in data:
            if name not in readers:
                raise _Misfit(f"unknown field {name!r}; {kind.__name__} has {', '.join(known)}")
        for name in needed:
            if name not in data:
                raise _Misfit(f"field {name!r} is missing")
        return kind(**_read_each(data, readers))

    return read


def _read_each(data: dict[str, Any], readers: dict[str, Reader]) -> dict[str, Any]:
    values = {}
    for name, item in data.items():
        try:
            values[name] = readers[name](item)
        except _Misfit as misfit:
            raise misfit.below(f".{name}") from None
    return values


def _list_reader(kind: Any) -> Reader:
    item_reader = _reader(kind)

    def read(data: Any) -> tuple[Any, ...]:
        _require(isinstance(data, list), data, "a list")
        return _read_items(data, [item_reader] * len(data))

    return read


def _tuple_reader(kinds: tuple[Any, ...]) -> Reader:
    readers = [_reader(kind) for kind in kinds]

    def read(data: Any) -> tuple[Any, ...]:
        _require(isinstance(data, list), data, "a list")
        _require(len(data) == len(readers), data, f"{len(readers)} items")
        return _read_items(data, readers)

    return read


def _read_items(data: list[Any], readers: list[Reader]) -> tuple[Any, ...]:
    items = []
    for place, (item, reader) in enumerate(zip(data, readers)):
        try:
            items.append(reader(item))
        except _Misfit as misfit:
            raise misfit.below(f"[{place}]") from None
    return tuple(items)


def _object_reader(kind: Any) -> Reader:
    item_reader = _reader(kind)

    def read(data: Any) -> dict[str, Any]:
        _require(isinstance(data, dict), data, "an object")
        return _read_each(data, dict.fromkeys(data, item_reader))

    return read


def _union_reader(kind: Any, args: tuple[Any, ...]) -> Reader:
    """Of a dataclass or None, or of plain values."""
    described = [arg for arg in args if dataclasses.is_dataclass(arg)]
    checks = [_plain_check(arg) for arg in args if arg not in described]
    plain = _checked(lambda data: any(check(data) for check in checks), str(kind))
    if not described:
        return plain
    whole = _reader(described[0])
    return lambda data: plain(data) if data is None else whole(data)


def _checked(check: Callable[[Any], bool], expected: str) -> Reader:
    def read(data: Any) -> Any:
        _require(check(data), data, expected)
        return data

    return read


def _plain_check(kind: Any) -> Callable[[Any], bool]:
    if kind is type(None):
        return lambda data: data is None
    if kind is float:
        return lambda data: isinstance(data, int | float) and not isinstance(data, bool)
    return lambda data: isinstance(data, kind) and (kind is bool or not isinstance(data, bool))


def _require(ok: bool, data: Any, expected: str) -> None:
    if not ok:
        raise _Misfit(f"is {data!r:.60}, expected {expected}")
