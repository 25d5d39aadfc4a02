"""What a request has given so far, as users see it."""

from __future__ import annotations

from dataclasses import dataclass, field

from tilewright.runtime.sequence import FinishReason


@dataclass(frozen=True, slots=True)
class Logprob:
    logprob: float  # natural logarithm of the model's probability, before penalties, biases and temperature
    rank: int  # 1 for the most probable token


@dataclass(frozen=True, slots=True)
class RequestOutput:
    request_id: str
    prompt_token_ids: list[int]
    token_ids: list[int]  # all so far, the token that ended it included
    text: str  # all so far, without stop strings and stop tokens; empty for an engine without tokenizer
    finish_reason: FinishReason | None  # stop, length or abort; None while it goes on
    logprobs: list[dict[int, Logprob]] | None = None  # per token: the chosen one and the alternatives asked for
    new_text: str = ""  # since the output before this one
    new_token_ids: list[int] = field(default_factory=list)  # since the output before this one

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    def __str__(self) -> str:
        return self.text
