"""One request being served: its tokens, its pages, how far it is. Knows neither scheduler nor tensors."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Literal

from tilewright.runtime.sampling_params import SamplingParams

FinishReason = Literal["stop", "length", "abort"]
NO_SLOT = -1


class Status(enum.Enum):
    WAITING = "waiting"  # owns no pages: new, or preempted
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """Its tokens are the prompt, the output, and pending ones: sampled in steps that the host has not read back yet."""

    request_id: str
    prompt: list[int]
    params: SamplingParams
    max_outputs: int  # tokens to generate at most, the engine's limits included
    stop_ids: frozenset[int]  # tokens that end it: end of text unless ignored, and stop_token_ids
    seed: int = 0  # of its random stream
    is_watched: bool = False  # somebody wants to hear of each of its tokens, not of its end alone
    arrival: int = 0  # order of arrival, set by the scheduler
    output: list[int] = field(default_factory=list)
    num_tokens: int = 0  # prompt + output + pending
    max_len: int = 0  # prompt and all outputs
    num_computed: int = 0  # tokens whose keys and values are in the cache once the scheduled steps have run
    pages: list[int] = field(default_factory=list)
    num_reserved: int = 0  # tokens that its pages hold
    slot: int = NO_SLOT  # row of the per-request tables (last token, counts, parameters) while running
    token_in_slot: bool = False  # the last token was sampled into the slot, so the device can read it there
    status: Status = Status.WAITING
    finish_reason: FinishReason | None = None

    def __post_init__(self) -> None:
        self.num_tokens = len(self.prompt) + len(self.output)
        self.max_len = len(self.prompt) + self.max_outputs

    @property
    def num_outputs(self) -> int:
        return self.num_tokens - len(self.prompt)

    @property
    def num_known(self) -> int:
        return len(self.prompt) + len(self.output)

    @property
    def num_pending(self) -> int:
        return self.num_tokens - self.num_known

    @property
    def num_uncomputed(self) -> int:
        """Tokens to run before the next can be sampled; 0 when no further token is wanted."""
        return 0 if self.num_tokens >= self.max_len else self.num_tokens - self.num_computed

    @property
    def is_finished(self) -> bool:
        return self.status is Status.FINISHED

    def tokens(self, start: int, stop: int) -> list[int]:
        """Known tokens [start, stop); pending ones are left out."""
        num_prompt = len(self.prompt)
        if stop <= num_prompt:
            return self.prompt[start:stop]
        if start >= num_prompt:
            return self.output[start - num_prompt : stop - num_prompt]
        return self.prompt[start:] + self.output[: stop - num_prompt]

    def find_end(self) -> FinishReason | None:
        """Whether its last known token ends it."""
        if self.output[-1] in self.stop_ids and len(self.output) >= self.params.min_tokens:
            return "stop"
        return "length" if len(self.output) >= self.max_outputs else None
