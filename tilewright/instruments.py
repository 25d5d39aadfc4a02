"""Switches and instruments for the builds inside a `with` block, in place of environment variables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from tilewright.environment import override
from tilewright.ir.events import Event
from tilewright.passes.instrument import Instrument

_INSTRUMENT: ContextVar[Instrument | None] = ContextVar("tilewright_instrument", default=None)


@contextmanager
def inspecting(
    *, instrument: Instrument | None = None, on_rewrite: Callable[[Event], bool | None] | None = None, **switches: object
) -> Iterator[None]:
    """switches: as TILEWRIGHT_ variables without the prefix, as in print="fuse-*", stop_after="quantize", inspect=3, no=("quant",).

    instrument: hooks of a pipeline; on_rewrite: one of them, alone. Raises SwitchError for a switch that is none or cannot have that value.
    """
    hooks = instrument or Instrument()
    if on_rewrite is not None:
        hooks.on_rewrite = on_rewrite  # type: ignore[method-assign]  # of this object
    before = _INSTRUMENT.set(hooks if instrument or on_rewrite else _INSTRUMENT.get())
    try:
        with override({name: _as_text(value) for name, value in switches.items() if value is not None}):
            yield
    finally:
        _INSTRUMENT.reset(before)


def current_instrument() -> Instrument | None:
    return _INSTRUMENT.get()


def _as_text(value: object) -> str:
    if isinstance(value, bool):
        return str(int(value))
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
