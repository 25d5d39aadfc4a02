"""Passes in a file that no package holds: for trying one before it has an entry point."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from tilewright.ir.errors import PassError, TilewrightError


def load_file(file: Path) -> None:
    """Runs a Python file, which registers what it declares. Raises PassError."""
    if not file.is_file() or file.suffix != ".py":
        raise PassError(f"--load {file}", "is no Python file", "name the .py file that declares your pass")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    try:
        spec.loader.exec_module(module)
    except TilewrightError:
        raise
    except Exception as error:
        raise PassError(f"--load {file}", f"cannot be run: {error!r}", "fix it; `python FILE.py` shows where") from error
