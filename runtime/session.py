"""Runtime, session and generation config by the names that TensorRT-LLM made common: padded token ids in, generated token ids out.

A thin face over `LLM`; knows nothing that `LLM` does not.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilewright.ir.errors import RequestError
from tilewright.runtime.llm import LLM
from tilewright.runtime.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationConfig:
    max_new_tokens: int = 16
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: all tokens
    repetition_penalty: float = 1.0
    seed: int | None = None

    def sampling_params(self) -> SamplingParams:
        return SamplingParams(
            max_tokens=self.max_new_tokens, temperature=self.temperature, top_p=self.top_p, top_k=self.top_k,
            repetition_penalty=self.repetition_penalty, seed=self.seed,
        )  # fmt: skip


class Runtime:
    """Loads engines into sessions."""

    def load_engine(self, engine: str | os.PathLike[str], **options: Any) -> Session:
        """engine: what `build_engine` returned, or its directory. options are those of `LLM`. Raises EngineError."""
        return Session(LLM(Path(os.fspath(engine)), **options))


class Session:
    def __init__(self, llm: LLM) -> None:
        self.llm = llm

    def generate(
        self, *, input_ids: Any, input_lengths: Sequence[int] | Any | None = None, generation_config: GenerationConfig | None = None
    ) -> list[list[int]]:
        """input_ids: i32[B, longest], padded on the right, or B lists; input_lengths: i32[B], default: all of each row.

        Returns the generated token ids of each row, without its prompt. Raises RequestError.
        """
        prompts = _cut(_as_lists(input_ids, "input_ids"), input_lengths)
        params = (generation_config or GenerationConfig()).sampling_params()
        return [output.token_ids for output in self.llm.generate(prompts, params)]


def _cut(rows: list[list[int]], lengths: Any) -> list[list[int]]:
    if lengths is None:
        return rows
    counts = lengths.tolist() if hasattr(lengths, "tolist") else list(lengths)
    if len(counts) != len(rows):
        raise RequestError("session", f"input_ids has {len(rows)} rows, input_lengths has {len(counts)}", "pass one length for each row")
    for index, (row, count) in enumerate(zip(rows, counts)):
        if not 0 < count <= len(row):
            raise RequestError("session", f"input_lengths[{index}] is {count}, row {index} of input_ids has {len(row)} tokens", "pass 1 to that many")
    return [row[:count] for row, count in zip(rows, counts)]


def _as_lists(ids: Any, name: str) -> list[list[int]]:
    rows = [row.tolist() if hasattr(row, "tolist") else row for row in (ids.tolist() if hasattr(ids, "tolist") else ids)]
    if not rows or not all(isinstance(row, (list, tuple)) for row in rows):
        raise RequestError("session", f"{name} is not a batch of rows of token ids", "pass i32[B, longest], or a list of lists")
    return [list(row) for row in rows]
