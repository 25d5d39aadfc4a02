"""Packages that only some uses need. A missing one is one sentence, with the command that installs it."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from tilewright.ir.errors import TilewrightError


def require(package: str, *, extra: str) -> None:
    """Raises TilewrightError where `package` is not installed."""
    if find_spec(package) is None:
        raise TilewrightError(extra, f"the package {package} is not installed", f"pip install tilewright[{extra}]")
    import_module(package)
