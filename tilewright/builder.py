"""Builder and BuilderConfig by the names that TensorRT-LLM made common: a thin face over `compile`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilewright.compiler import compile
from tilewright.engine import Engine
from tilewright.ir.errors import EngineError


@dataclass(frozen=True, slots=True, kw_only=True)
class BuilderConfig:
    max_batch_size: int = 16
    max_input_len: int | None = None
    max_output_len: int | None = None
    fp16: bool = False
    bf16: bool = False
    int8: bool = False  # weights in int8, activations as they are
    target: str | None = None

    @property
    def dtype(self) -> str | None:
        if self.fp16 and self.bf16:
            raise EngineError("builder config", "fp16 and bf16 are both set", "set one of them")
        return "float16" if self.fp16 else "bfloat16" if self.bf16 else None


class Builder:
    def create_builder_config(self, **settings: Any) -> BuilderConfig:
        """The fields of BuilderConfig by keyword. Raises EngineError for one that it does not have."""
        known = BuilderConfig.__dataclass_fields__
        for name in settings:
            if name not in known:
                raise EngineError("builder config", f"has no field {name!r}", "it has " + ", ".join(known))
        return BuilderConfig(**settings)

    def build_engine(self, *, model_dir: str | Path, config: BuilderConfig, engine_dir: str | Path) -> Engine:
        """Writes the engine and returns its handle. Raises TilewrightError."""
        return compile(
            model_dir, engine_dir, dtype=config.dtype, quantize="int8" if config.int8 else None, target=config.target,
            max_batch_size=config.max_batch_size, max_input_len=config.max_input_len, max_output_len=config.max_output_len,
        )  # fmt: skip
