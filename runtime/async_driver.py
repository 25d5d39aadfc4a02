"""Lets many coroutines share one EngineCore: steps run in a thread, outputs go to who asked. Knows nothing of prompts or text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from tilewright.runtime.engine_core import EngineCore
from tilewright.runtime.request_output import RequestOutput
from tilewright.runtime.sampling_params import SamplingParams


class AsyncDriver:
    """Belongs to the event loop it is first used in."""

    def __init__(self, core: EngineCore) -> None:
        self._core = core
        self._turn = asyncio.Lock()  # whoever holds it may touch the core; first come, first served
        self._queues: dict[str, asyncio.Queue[RequestOutput | BaseException]] = {}
        self._pump: asyncio.Task[None] | None = None

    async def stream(self, request_id: str, prompt: list[int], params: SamplingParams) -> AsyncGenerator[RequestOutput, None]:
        """Outputs as tokens come. A consumer that leaves early aborts its request."""
        async with self._turn:
            self._core.add_request(request_id, prompt, params, stream=True)
        queue = self._queues[request_id] = asyncio.Queue()
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._run())
        finished = False
        try:
            while not finished:
                item = await queue.get()
                if isinstance(item, BaseException):
                    raise item
                finished = item.finished
                yield item
        finally:
            del self._queues[request_id]
            if not finished:
                async with self._turn:
                    self._core.drop(request_id)

    async def _run(self) -> None:
        try:
            while self._core.has_work:
                async with self._turn:
                    outputs = await asyncio.to_thread(self._core.step)
                for output in outputs:
                    if queue := self._queues.get(output.request_id):
                        queue.put_nowait(output)
        except Exception as error:
            for queue in self._queues.values():
                queue.put_nowait(error)
