"""The face of a loaded engine: prompts in, text out, in batches, as a stream, or request by request.

Imports torch, and what needs it, only once an engine is loaded: its files are hashed meanwhile.
"""

from __future__ import annotations

import asyncio
import functools
import operator
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, overload

from tilewright.ir.errors import RequestError
from tilewright.runtime.async_driver import AsyncDriver
from tilewright.runtime.engine_core import EngineCore
from tilewright.runtime.engine_files import EngineFiles
from tilewright.runtime.progress import track
from tilewright.runtime.request_output import RequestOutput
from tilewright.runtime.sampling_params import SamplingParams
from tilewright.runtime.tokenizer import Prompt, encode, load_tokenizer, split_prompts
from tilewright.runtime.torch_import import importing_torch

if TYPE_CHECKING:
    import torch


class LLM:
    """Loads an engine directory. Raises EngineError for one that is damaged or does not fit this machine.

    max_cache_tokens bounds the page pool; None takes what the engine's limits can use, or what memory allows. device is "cuda",
    "cuda:1" or "cpu" (a GPU engine then runs in Triton's interpreter); None follows the engine's target. use_progress shows bars where
    stderr is a terminal. warm_up makes all that greedy requests need before the first one comes: see the method.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        max_cache_tokens: int | None = None,
        device: str | torch.device | None = None,
        verify: bool = True,
        use_progress: bool = True,
        warm_up: bool = False,
    ) -> None:
        with EngineFiles(directory, verify=verify) as files:
            with importing_torch(files.manifest.target, device):
                from tilewright.runtime.engine import Engine
                from tilewright.runtime.runner import Runner
            self.engine = Engine.from_files(files, device, use_progress=use_progress)
        self.manifest = self.engine.manifest
        self.runner = Runner(self.engine, max_cache_tokens)
        self.core = EngineCore(self.manifest, self.runner, lookahead=1 if self.runner.uses_graphs else 0)
        self._num_requests = 0
        self._async: AsyncDriver | None = None
        self._kept: list[RequestOutput] = []  # outputs of added requests that came while `generate` was stepping
        if warm_up:
            self.warm_up()

    def warm_up(self, *sampling_params: SamplingParams) -> None:
        """Loads all kernels and captures CUDA graphs for decode steps of every size, which otherwise happens when a size first comes up.

        sampling_params: one for each kind of request to come, since batches that sample in other ways have other graphs; without any,
        greedy ones. Takes about as long as a few decode steps of each size. Raises RequestError while requests run.
        """
        if self.has_work:
            raise RequestError("warm_up", f"{self.core.num_requests} requests are under way", "call it before adding any")
        from tilewright.runtime.sampler import SamplePlan

        plans = {SamplePlan.of(params) for params in sampling_params or [SamplingParams(temperature=0.0)]}
        bits = [plan.bits for plan in plans]
        together = SamplePlan.from_bits(functools.reduce(operator.or_, bits))
        self.runner.warm_up(list(dict.fromkeys([*plans, together])))

    @cached_property
    def tokenizer(self) -> Any | None:
        """The engine's transformers tokenizer, or None."""
        return load_tokenizer(self.engine.directory)

    @overload
    def generate(
        self,
        prompts: Any,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        stream: Literal[False] = False,
        use_progress: bool = True,
    ) -> list[RequestOutput]: ...

    @overload
    def generate(
        self,
        prompts: Any,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        stream: Literal[True],
        use_progress: bool = True,
    ) -> Iterator[RequestOutput]: ...

    def generate(
        self,
        prompts: Any,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        stream: bool = False,
        use_progress: bool = True,
    ) -> list[RequestOutput] | Iterator[RequestOutput]:
        """prompts: text, token ids or chat messages, or a list of such. Returns one result per prompt, in order.

        With `stream`, an iterator of outputs as tokens come; `request_id` ends in the prompt's index. Raises RequestError before anything
        runs if any of the requests cannot be served.
        """
        items = split_prompts(prompts)
        ids = self._add_all(items, _one_each(sampling_params, len(items)), stream=stream)
        return self._stream(ids) if stream else self._collect(ids, use_progress=use_progress)

    async def generate_async(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, request_id: str | None = None
    ) -> AsyncIterator[RequestOutput]:
        """Outputs for one prompt as tokens come; any number may run at once. Leaving the iterator early aborts the request."""
        request_id = request_id or self._next_id()
        token_ids = self._encode(prompt, f"request {request_id}")
        outputs = self._take_async_turn().stream(request_id, token_ids, sampling_params or SamplingParams())
        try:
            async for output in outputs:
                yield output
        finally:
            await outputs.aclose()

    def add_request(self, prompt: Prompt, sampling_params: SamplingParams | None = None, request_id: str | None = None) -> str:
        """Queues one request for `step`; returns its id. Raises RequestError."""
        self._take_turn("add_request")
        request_id = request_id or self._next_id()
        token_ids = self._encode(prompt, f"request {request_id}")
        self.core.add_request(request_id, token_ids, sampling_params or SamplingParams(), stream=True)
        return request_id

    def step(self) -> list[RequestOutput]:
        """Runs one step; returns what the requests that went on have so far."""
        self._take_turn("step")
        kept, self._kept = self._kept, []
        return kept + self.core.step()

    def abort(self, request_id: str) -> None:
        """Ends a request; the next step returns its output so far, with finish_reason "abort"."""
        self._take_turn("abort")
        self.core.abort(request_id)

    @property
    def has_work(self) -> bool:
        return bool(self._kept) or self.core.has_work

    def _take_turn(self, where: str) -> None:
        """Raises RequestError while `generate_async` serves requests: its steps run in a thread, and go on by themselves."""
        if self._async is not None and self._async.is_serving:
            remedy = "use it for all requests, or wait for them (leaving an iterator ends its request)"
            raise RequestError(where, "requests of generate_async are under way", remedy)

    def _take_async_turn(self) -> AsyncDriver:
        """The driver of the running event loop. Raises RequestError while requests are served in another way."""
        if self._async is None or self._async.loop is not asyncio.get_running_loop():
            self._take_turn("generate_async in another event loop")
            self._async = AsyncDriver(self.core)
        if self.core.num_requests and not self._async.is_serving:
            raise RequestError("generate_async", "requests of generate or add_request are under way", "let them end, or abort them")
        return self._async

    def _add_all(self, prompts: list[Any], params: Sequence[SamplingParams], *, stream: bool) -> list[str]:
        self._take_turn("generate")
        ids = [f"{self._next_id()}-{index}" for index in range(len(prompts))]
        encoded = [self._encode(prompt, f"prompt {index}") for index, prompt in enumerate(prompts)]
        added: list[str] = []
        try:
            for request_id, tokens, param in zip(ids, encoded, params):
                self.core.add_request(request_id, tokens, param, stream=stream)
                added.append(request_id)
        except RequestError:
            self._drop(added)
            raise
        return ids

    def _collect(self, ids: list[str], *, use_progress: bool) -> list[RequestOutput]:
        results: dict[str, RequestOutput] = {}
        mine = frozenset(ids)
        try:
            with track("generating", len(ids), shown=use_progress and len(ids) > 1) as advance:
                while len(results) < len(ids):
                    ended = self._step_for(mine)
                    results |= {output.request_id: output for output in ended}
                    advance(len(ended))
        finally:
            self._drop([request_id for request_id in ids if request_id not in results])
        return [results[request_id] for request_id in ids]

    def _stream(self, ids: list[str]) -> Iterator[RequestOutput]:
        mine, left = frozenset(ids), set(ids)
        try:
            while left:
                for output in self._step_for(mine):
                    if output.finished:
                        left.discard(output.request_id)
                    yield output
        finally:
            self._drop(sorted(left))

    def _step_for(self, ids: frozenset[str]) -> list[RequestOutput]:
        """Outputs of these requests; those of others are kept for `step`."""
        mine = []
        for output in self.core.step():
            (mine if output.request_id in ids else self._kept).append(output)
        return mine

    def _drop(self, ids: list[str]) -> None:
        """Forgets requests whose outputs nobody will read."""
        for request_id in ids:
            self.core.drop(request_id)

    def _encode(self, prompt: Any, where: str) -> list[int]:
        self.core.tokenizer = self.tokenizer
        return encode(prompt, self.tokenizer, where)

    def _next_id(self) -> str:
        self._num_requests += 1
        return f"r{self._num_requests}"


def _one_each(params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> Sequence[SamplingParams]:
    if params is None:
        return [SamplingParams()] * count
    if not isinstance(params, (list, tuple)):
        return [cast(SamplingParams, params)] * count
    if len(params) != count:
        raise RequestError("generate", f"{count} prompts and {len(params)} sampling parameters", "pass one for all, or one for each")
    return params
