"""What goes on while torch is imported: CUDA starts in a thread, and the garbage collector rests. Takes no torch itself."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tilewright.ir.errors import EngineError
from tilewright.runtime.cuda_driver import start_device


@contextmanager
def importing_torch(target: str, device: Any = None) -> Iterator[None]:
    """For imports of what needs torch, before an engine for `target` is loaded on `device`. Does nothing where torch is there already."""
    if "torch" in sys.modules:
        yield
        return
    with starting_cuda(find_ordinal(target, device)), paused_collector():
        yield


@contextmanager
def paused_collector() -> Iterator[None]:
    """An import makes objects by the hundred thousand, which live on: to search them for garbage takes a sixth of torch's import.

    They become old at once: as young ones, the next search would go through them all, and take what the pause has saved.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            if gc.get_freeze_count() == 0:  # what somebody froze stays so
                gc.freeze()
                gc.unfreeze()
            gc.enable()


@contextmanager
def starting_cuda(ordinal: int | None) -> Iterator[None]:
    """Where torch will start CUDA anyway, later and with all else waiting: nothing that it does differs but for that."""
    if ordinal is None:
        yield
        return
    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")  # as torch does: the driver reads it when it starts
    thread = threading.Thread(target=_try_start, args=(ordinal,), name="start-cuda", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _try_start(ordinal: int) -> None:
    try:
        start_device(ordinal)
    except EngineError:  # whoever needs the device will say what is wrong with it
        return


def find_ordinal(target: str, device: Any) -> int | None:
    """Of the GPU that a process without torch will run the engine on; None where it needs none, or where that is not plain."""
    if target == "cpu" or wants_interpreter(device):
        return None
    name, _, number = ("cuda" if device is None else str(device)).partition(":")
    return int(number or 0) if name == "cuda" and (not number or number.isdecimal()) else None


def wants_interpreter(device: Any) -> bool:
    """Whether Triton's interpreter is to run an engine made for a GPU. device: as it is asked for, None for the engine's own."""
    return str(device).partition(":")[0] == "cpu" or os.environ.get("TILEWRIGHT_INTERPRET") == "1"
