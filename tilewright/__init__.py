"""Tilewright: a compiler from Hugging Face decoder models to paged-attention engines."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilewright import inspect as inspect
    from tilewright.builder import Builder, BuilderConfig
    from tilewright.codegen.expressions import register_expression
    from tilewright.compiler import Optimized, build, compile, optimize, trace
    from tilewright.engine import Engine
    from tilewright.instruments import inspecting
    from tilewright.ir.errors import TilewrightError
    from tilewright.ir.opdef import op
    from tilewright.ir.reference import reference
    from tilewright.ir.types import TensorType
    from tilewright.onnx_files import export_onnx, import_onnx
    from tilewright.passes.instrument import Instrument
    from tilewright.passes.pattern import Match
    from tilewright.passes.registry import register_pass, rewrite
    from tilewright.passes.rewriter import Rewriter
    from tilewright.runtime import LLM, RequestOutput, SamplingParams

# Triton reads this switch once, when it is imported, and cannot compile from then on; our interpreter runs beside the compiler.
if os.environ.pop("TRITON_INTERPRET", "") == "1":
    os.environ["TILEWRIGHT_INTERPRET"] = "1"

# Loaded when first asked for, so that `import tilewright` takes no torch.
_HOMES = {
    "compile": "compiler", "trace": "compiler", "optimize": "compiler", "build": "compiler", "Optimized": "compiler", "Engine": "engine",
    "Builder": "builder", "BuilderConfig": "builder", "LLM": "runtime", "SamplingParams": "runtime", "RequestOutput": "runtime",
    "TilewrightError": "ir.errors", "export_onnx": "onnx_files", "import_onnx": "onnx_files",
    "op": "ir.opdef", "reference": "ir.reference", "TensorType": "ir.types", "Match": "passes.pattern", "Rewriter": "passes.rewriter",
    "inspecting": "instruments", "Instrument": "passes.instrument",
    "inspect": "inspect", "register_pass": "passes.registry", "rewrite": "passes.registry", "register_expression": "codegen.expressions",
}  # fmt: skip

__all__ = [
    "LLM", "Builder", "BuilderConfig", "Engine", "Instrument", "Match", "Optimized", "RequestOutput", "Rewriter", "SamplingParams",
    "TensorType", "TilewrightError", "build", "compile", "export_onnx", "import_onnx", "inspecting", "op", "optimize", "reference",
    "register_expression", "register_pass", "rewrite", "trace",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tilewright' has no attribute {name!r}")
    home = import_module(f"tilewright.{_HOMES[name]}")
    return home if name == _HOMES[name] else getattr(home, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
