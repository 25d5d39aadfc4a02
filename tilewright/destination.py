"""Where an engine is to be written: checked before the work starts, and left as it was found where the work fails."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tilewright.ir.errors import EngineError


def choose_destination(out: Any) -> Path:
    """`out` as a path. Raises EngineError for one that holds other files, or where nothing can be written."""
    from tilewright.codegen.pack import check_destination

    if not isinstance(out, str | os.PathLike):
        raise EngineError("out", f"is a {type(out).__name__}", "pass the directory to write the engine to")
    path = Path(out).resolve() if os.path.islink(out) else Path(out)
    if os.path.ismount(path):
        raise EngineError(f"engine {path}", "is a mount point, which a finished engine cannot be renamed to", "choose a directory inside it")
    try:
        check_destination(path)
        nearest = next(parent for parent in path.absolute().parents if parent.exists())
        os.rmdir(tempfile.mkdtemp(prefix=f".{path.name}.", dir=nearest))  # as packing will; permissions alone do not tell
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise EngineError(f"engine {str(out)!r:.80}", f"cannot be written there ({reason})", "choose another directory") from error
    return path


@contextmanager
def leave_as_found(out: Path) -> Iterator[None]:
    """Takes away the parents that a failed build made. Raises EngineError where the disk was at fault."""
    missing = [parent for parent in out.absolute().parents if not parent.exists()]
    try:
        yield
    except BaseException as error:
        for parent in missing:
            with suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError):
            raise EngineError(f"engine {out}", f"cannot be written ({error})", "free space there, or choose another directory") from error
        raise
