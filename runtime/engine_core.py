"""Serves requests on an engine: the loop of schedule, launch, read back. Knows token ids; text only through a tokenizer's `decode`."""

from __future__ import annotations

import secrets
from collections import deque
from typing import TYPE_CHECKING, Protocol

from tilewright.ir.errors import RequestError
from tilewright.ir.manifest import Manifest
from tilewright.runtime.detokenizer import Tokenizer
from tilewright.runtime.request import Request
from tilewright.runtime.request_output import RequestOutput
from tilewright.runtime.sampling_params import MAX_STOP_IDS, SamplingParams
from tilewright.runtime.scheduler import Scheduler, Step
from tilewright.runtime.sequence import Sequence

if TYPE_CHECKING:
    from tilewright.runtime.runner import SampledOnHost


class Pending(Protocol):
    def wait(self) -> SampledOnHost: ...


class StepRunner(Protocol):
    """What the core needs of a runner."""

    num_pages: int

    def launch(self, step: Step) -> Pending: ...


class EngineCore:
    """`lookahead` steps are launched before the tokens of the oldest are read back: 0 or 1."""

    def __init__(self, manifest: Manifest, runner: StepRunner, tokenizer: Tokenizer | None = None, *, lookahead: int = 0) -> None:
        self.manifest, self.tokenizer = manifest, tokenizer
        self.scheduler = Scheduler(manifest.limits, runner.num_pages)
        self._runner, self._lookahead = runner, lookahead
        self._requests: dict[str, Request] = {}
        self._in_flight: deque[tuple[Step, Pending]] = deque()
        self._ended: list[RequestOutput] = []  # outputs of aborted requests, for the next step to return

    @property
    def has_work(self) -> bool:
        return bool(self._requests or self._ended or self._in_flight)

    @property
    def num_requests(self) -> int:
        return len(self._requests)

    def add_request(self, request_id: str, prompt: list[int], params: SamplingParams, *, stream: bool = True) -> None:
        """With `stream`, each step gives an output for the request; without, only its last. Raises RequestError."""
        if request_id in self._requests:
            raise RequestError(f"request {request_id}", "a request with this id is running", "choose another id")
        where = f"request {request_id}"
        if not isinstance(params, SamplingParams):
            raise RequestError(where, f"its sampling parameters are a {type(params).__name__}", "pass SamplingParams(max_tokens=..., ...)")
        check_prompt(prompt, self.manifest, where)
        check_params(params, self.manifest, where)
        if params.stop_strings and self.tokenizer is None:
            raise RequestError(where, f"stop={params.stop!r} needs text, this engine has no tokenizer", "use stop_token_ids")
        eos = () if params.ignore_eos else self.manifest.model.eos_token_ids
        sequence = Sequence(
            request_id,
            prompt,
            params,
            choose_max_outputs(prompt, params, self.manifest, where),
            frozenset([*eos, *(params.stop_token_ids or ())]),
            seed=secrets.randbits(63) if params.seed is None else params.seed,
        )
        self.scheduler.add(sequence)
        request = self._requests[request_id] = Request(sequence, self.tokenizer, stream=stream)
        sequence.is_watched = stream or request.follows_tokens

    def abort(self, request_id: str) -> None:
        """Ends the request; the next step returns its output so far. Unknown and finished ids are ignored: they may have just ended."""
        request = self._requests.pop(request_id, None)
        if request is None:
            return
        self.scheduler.finish(request.sequence, "abort")
        self._ended.append(request.output())

    def drop(self, request_id: str) -> None:
        """Ends the request without an output."""
        self.abort(request_id)
        self._ended = [output for output in self._ended if output.request_id != request_id]

    def step(self) -> list[RequestOutput]:
        """Launches a step, if one can run, and reads one back, if enough are in flight."""
        step = self.scheduler.schedule()
        if step.num_tokens:
            self._in_flight.append((step, self._runner.launch(step)))
        assert step.num_tokens or self._in_flight or not self.scheduler.has_work, "work is left but nothing can run"
        outputs, self._ended = self._ended, []
        if self._in_flight and (len(self._in_flight) > self._lookahead or not step.num_tokens):
            outputs += self._read_back()
        return outputs

    def _read_back(self) -> list[RequestOutput]:
        step, pending = self._in_flight.popleft()
        sampled = pending.wait()
        outputs = []
        for row in self.scheduler.complete(step, sampled.tokens[: len(step.sampling)]):
            sequence = step.sampling[row]
            request = self._requests[sequence.request_id]
            if request.follows_tokens:
                self._follow(request, sampled, row)
            if sequence.finish_reason is not None:
                del self._requests[sequence.request_id]
                outputs.append(request.output())
            elif request.stream:
                outputs.append(request.output())
        return outputs

    def _follow(self, request: Request, sampled: SampledOnHost, row: int) -> None:
        """What depends on each token: log-probabilities, stop strings."""
        request.take_logprobs(sampled, row)
        if request.sequence.finish_reason in (None, "length"):
            self._stop_at_string(request)

    def _stop_at_string(self, request: Request) -> None:
        if not request.finds_stop():
            return
        if request.sequence.is_finished:  # at its last token: the text still ends at the stop string
            request.sequence.finish_reason = "stop"
        else:
            self.scheduler.finish(request.sequence, "stop")


def check_prompt(prompt: list[int], manifest: Manifest, where: str) -> None:
    """Raises RequestError for an empty or long prompt, or a token id that the model has not."""
    if not prompt:
        raise RequestError(where, "the prompt has no tokens", "pass at least one token")
    if len(prompt) > manifest.limits.max_input_len:
        problem = f"the prompt has {len(prompt)} tokens, this engine takes max_input_len={manifest.limits.max_input_len}"
        raise RequestError(where, problem, "shorten the prompt, or build the engine with a larger max_input_len")
    vocab = manifest.model.vocab_size
    for token in prompt:
        if not 0 <= token < vocab:
            raise RequestError(where, f"token id {token} is outside the vocabulary of {vocab}", f"pass ids from 0 to {vocab - 1}")


def check_params(params: SamplingParams, manifest: Manifest, where: str) -> None:
    """Raises RequestError for token ids that the model has not."""
    vocab = manifest.model.vocab_size
    for name, ids in (("stop_token_ids", params.stop_token_ids or ()), ("logit_bias", params.logit_bias)):
        for token in ids:
            if token >= vocab:
                raise RequestError(where, f"{name} has token id {token}, the vocabulary has {vocab}", f"pass ids from 0 to {vocab - 1}")
    assert len(manifest.model.eos_token_ids) <= MAX_STOP_IDS


def choose_max_outputs(prompt: list[int], params: SamplingParams, manifest: Manifest, where: str) -> int:
    """max_tokens, or where that is None, all that the engine and the model's positions allow. Raises RequestError for more than that."""
    limits, positions = manifest.limits, manifest.model.max_positions
    room = min(limits.max_output_len, positions - len(prompt))
    if room < 1:
        problem = f"the prompt has {len(prompt)} tokens, the model has {positions} positions"
        raise RequestError(where, problem, "shorten the prompt")
    if params.max_tokens is None:
        return room
    if params.max_tokens > limits.max_output_len:
        problem = f"max_tokens={params.max_tokens}, this engine generates up to max_output_len={limits.max_output_len}"
        raise RequestError(where, problem, f"pass max_tokens of at most {limits.max_output_len}, or build with a larger max_output_len")
    if params.max_tokens > room:
        problem = f"{len(prompt)} prompt tokens and max_tokens={params.max_tokens} go past the model's {positions} positions"
        raise RequestError(where, problem, f"pass max_tokens of at most {room}")
    return params.max_tokens
