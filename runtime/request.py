"""A request beside its sequence: its text, stop strings and log-probabilities, and its outputs. Knows no scheduler."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tilewright.runtime.detokenizer import Detokenizer, StopFinder, Tokenizer
from tilewright.runtime.request_output import Logprob, RequestOutput
from tilewright.runtime.sequence import Sequence

if TYPE_CHECKING:
    from tilewright.runtime.runner import SampledOnHost


class Request:
    """Without streaming and stop strings, text is made once, at the end."""

    def __init__(self, sequence: Sequence, tokenizer: Tokenizer | None, *, stream: bool) -> None:
        self.sequence, self.stream = sequence, stream
        self._detokenizer = Detokenizer(tokenizer, sequence.prompt) if tokenizer else None
        self._stops = StopFinder(sequence.params.stop_strings)
        self._logprobs: list[dict[int, Logprob]] | None = None if sequence.params.logprobs is None else []
        self.follows_tokens = bool(sequence.params.stop_strings) or self._logprobs is not None  # needs a look at each token
        self._num_decoded = 0  # output tokens that the detokenizer has seen
        self._num_told_tokens, self._num_told_characters = 0, 0  # in outputs so far

    def take_logprobs(self, sampled: SampledOnHost, row: int) -> None:
        """Call for each token that the sequence accepts."""
        count = self.sequence.params.logprobs
        if self._logprobs is None or count is None:
            return
        assert sampled.logprob is not None and sampled.rank is not None
        assert sampled.top_ids is not None and sampled.top_logprobs is not None
        entry = {sampled.tokens[row]: Logprob(float(sampled.logprob[row]), int(sampled.rank[row]))}
        top = zip(sampled.top_ids[row, :count].tolist(), sampled.top_logprobs[row, :count].tolist())
        for rank, (token, logprob) in enumerate(top, 1):
            entry.setdefault(token, Logprob(logprob, rank))
        self._logprobs.append(entry)

    def finds_stop(self) -> bool:
        """Whether the tokens so far complete a stop string. Call after each token."""
        return bool(self.sequence.params.stop_strings) and self._read_text(len(self.sequence.output))

    def output(self) -> RequestOutput:
        sequence = self.sequence
        if not self._stops.is_complete and (self.stream or sequence.is_finished):
            self._read_text(len(sequence.output) - self._ends_with_stop_token())
        if sequence.is_finished:
            self._stops.flush()
        told_tokens, told_characters = self._num_told_tokens, self._num_told_characters
        self._num_told_tokens, self._num_told_characters = len(sequence.output), len(self._stops.text)
        return RequestOutput(
            sequence.request_id,
            sequence.prompt,
            list(sequence.output),
            self._stops.text,
            sequence.finish_reason,
            None if self._logprobs is None else list(self._logprobs),
            self._stops.text[told_characters:],
            sequence.output[told_tokens:],
        )

    def _ends_with_stop_token(self) -> bool:
        return self.sequence.finish_reason == "stop" and bool(self.sequence.output) and self.sequence.output[-1] in self.sequence.stop_ids

    def _read_text(self, num_tokens: int) -> bool:
        """Gives the detokenizer the output up to num_tokens; whether that completes a stop string."""
        if self._detokenizer is None or num_tokens <= self._num_decoded:
            return False
        text = self._detokenizer.feed(self.sequence.output[self._num_decoded : num_tokens])
        self._num_decoded = num_tokens
        if num_tokens < self.sequence.params.min_tokens:
            self._stops.pass_over(text)
            return False
        return self._stops.feed(text)
