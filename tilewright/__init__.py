"""Tilewright: a compiler from Hugging Face decoder models to paged-attention engines."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilewright.builder import Builder, BuilderConfig
    from tilewright.compiler import Optimized, build, compile, optimize, trace
    from tilewright.engine import Engine
    from tilewright.ir.errors import TilewrightError
    from tilewright.runtime import LLM, RequestOutput, SamplingParams

# Loaded when first asked for, so that `import tilewright` takes no torch.
_HOMES = {
    "compile": "compiler", "trace": "compiler", "optimize": "compiler", "build": "compiler", "Optimized": "compiler", "Engine": "engine",
    "Builder": "builder", "BuilderConfig": "builder", "LLM": "runtime", "SamplingParams": "runtime", "RequestOutput": "runtime",
    "TilewrightError": "ir.errors",
}  # fmt: skip

__all__ = [
    "LLM", "Builder", "BuilderConfig", "Engine", "Optimized", "RequestOutput", "SamplingParams", "TilewrightError",
    "build", "compile", "optimize", "trace",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tilewright' has no attribute {name!r}")
    return getattr(import_module(f"tilewright.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
