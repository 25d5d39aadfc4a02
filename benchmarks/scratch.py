"""Where a benchmark keeps checkpoints and engines: a named folder stays, and what is in it is used again; without a name it goes at the end."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def open_scratch(folder: str | None, shape: str) -> Iterator[Path]:
    if folder is None:
        with tempfile.TemporaryDirectory() as path:
            yield Path(path)
    else:
        path = Path(folder) / shape
        path.mkdir(parents=True, exist_ok=True)
        yield path
