"""Loads an engine directory and serves it: pages, scheduler, runner, sampler, session. Knows the manifest, never the compiler."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilewright.runtime.engine_core import EngineCore
    from tilewright.runtime.llm import LLM
    from tilewright.runtime.request_output import Logprob, RequestOutput
    from tilewright.runtime.sampling_params import SamplingParams
    from tilewright.runtime.session import GenerationConfig, Runtime, Session

_HOMES = {
    "EngineCore": "engine_core",
    "GenerationConfig": "session",
    "LLM": "llm",
    "Logprob": "request_output",
    "RequestOutput": "request_output",
    "Runtime": "session",
    "SamplingParams": "sampling_params",
    "Session": "session",
}

__all__ = ["EngineCore", "GenerationConfig", "LLM", "Logprob", "RequestOutput", "Runtime", "SamplingParams", "Session"]


def __getattr__(name: str) -> Any:
    """Imports on first use: scheduler and pages are usable without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"tilewright.runtime.{_HOMES[name]}"), name)
