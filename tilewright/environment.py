"""The environment switches, all of them, as one typed table. Everything else travels as arguments."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

from tilewright.ir.errors import TilewrightError
from tilewright.ir.opdef import suggest

PREFIX = "TILEWRIGHT_"


class SwitchError(TilewrightError):
    """A TILEWRIGHT_ variable that means nothing."""


@dataclass(frozen=True, slots=True)
class Environment:
    """What the variables say. A field is `TILEWRIGHT_` and its name in capitals; SWITCHES has what each means."""

    inspect: int = 1
    interpret: bool = False
    validate: bool = False
    passes: str = ""
    opt_limit: int | None = None
    inspect_dir: str = ""
    print: str = ""
    stop_after: str = ""
    no: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Switch:
    parse: Callable[[str], Any]  # raises ValueError
    takes: str
    meaning: str


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(text)
        return text

    return parse


def _count(text: str) -> int:
    if int(text) < 0:
        raise ValueError(text)
    return int(text)


def _passes_to_print(text: str) -> str:
    name, colon, how = text.partition(":")
    if not name or (colon and how != "full"):
        raise ValueError(text)
    return text


STAGES = ("cudagraph", "triton", "quant")


def _stages_to_leave_out(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        _one_of(*STAGES)(name)
    return names


SWITCHES: dict[str, Switch] = {
    "inspect": Switch(
        lambda text: int(_one_of("0", "1", "2", "3")(text)), "0, 1, 2 or 3",
        "what a build keeps in ENGINE/inspect: 0 nothing, 1 passes, 2 also PTX, 3 also errors and times (runs the model)",
    ),
    "interpret": Switch(
        lambda text: _one_of("0", "1")(text) == "1", "0 or 1", "run Triton kernels slowly on the CPU; TRITON_INTERPRET=1 says the same"
    ),
    "validate": Switch(lambda text: _one_of("0", "1")(text) == "1", "0 or 1", "run the reference interpreter before and after every pass"),
    "passes": Switch(str, "-PASS,+PASS", "leave passes out of every pipeline, or append some"),
    "opt_limit": Switch(_count, "a number", "stop rewriting after that many events"),
    "inspect_dir": Switch(str, "a directory", "write there what a build would keep in ENGINE/inspect"),
    "print": Switch(_passes_to_print, "PASS, a glob, or all; with :full for graphs", "print on stderr what matching passes change"),
    "stop_after": Switch(str, "a pass", "end there, and leave the graph and the command that goes on"),
    "no": Switch(
        _stages_to_leave_out,
        "some of cudagraph, triton and quant, joined by commas (there is no unpaged cache to fall back to: `tilewright check` is its reference)",
        "leave stages out: CUDA graphs when steps run, Triton (a build is for cpu) and quantization when an engine is built",
    ),
}


_OVERRIDES: ContextVar[Mapping[str, str]] = ContextVar("tilewright_switches", default=MappingProxyType({}))


@contextmanager
def override(switches: Mapping[str, str]) -> Iterator[None]:
    """Sets switches by field name, as text, for what runs inside. Raises SwitchError at once."""
    variables = {**_OVERRIDES.get(), **{f"{PREFIX}{name.upper()}": text for name, text in switches.items()}}
    read_environment(variables)
    before = _OVERRIDES.set(variables)
    try:
        yield
    finally:
        _OVERRIDES.reset(before)


def read_environment(variables: Mapping[str, str] | None = None) -> Environment:
    """Raises SwitchError for a TILEWRIGHT_ variable that is unknown or has a value it cannot have."""
    variables = {**os.environ, **_OVERRIDES.get()} if variables is None else variables
    found: dict[str, Any] = {}
    for variable, text in variables.items():
        if not variable.startswith(PREFIX):
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in SWITCHES:
            raise SwitchError(variable, "is no switch", suggest(variable, [PREFIX + f.name.upper() for f in fields(Environment)]))
        try:
            found[name] = SWITCHES[name].parse(text)
        except ValueError as error:
            raise SwitchError(variable, f"is {text!r}", f"set it to {SWITCHES[name].takes}") from error
    return Environment(**found)
