"""Lets many coroutines share one EngineCore: steps run in a thread, outputs go to who asked. Knows nothing of prompts or text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from tilewright.runtime.engine_core import EngineCore
from tilewright.runtime.request_output import RequestOutput
from tilewright.runtime.sampling_params import SamplingParams


class AsyncDriver:
    """Belongs to the event loop that it is made in."""

    def __init__(self, core: EngineCore) -> None:
        self.loop = asyncio.get_running_loop()
        self._core = core
        self._turn = asyncio.Lock()  # whoever holds it may touch the core; first come, first served
        self._queues: dict[str, asyncio.Queue[RequestOutput | BaseException]] = {}
        self._pump: asyncio.Task[None] | None = None
        self._left: list[str] = []  # requests whose consumers left while a step ran; no waiting there, a loop that closes cancels it

    @property
    def is_serving(self) -> bool:
        """Whether anybody but this driver must leave the core alone."""
        is_pumping = self._pump is not None and not self._pump.done()
        return not self.loop.is_closed() and (is_pumping or bool(self._queues))

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
                self._left.append(request_id)
            if not self._turn.locked():
                self._drop_left()

    async def _run(self) -> None:
        try:
            while self._core.has_work:
                async with self._turn:
                    try:
                        outputs = await self._step()
                    finally:
                        self._drop_left()
                for output in outputs:
                    if queue := self._queues.get(output.request_id):
                        queue.put_nowait(output)
        except Exception as error:
            for queue in self._queues.values():
                queue.put_nowait(error)

    def _drop_left(self) -> None:
        while self._left:
            self._core.drop(self._left.pop())

    async def _step(self) -> list[RequestOutput]:
        """One step in a thread. A loop that is closing waits for it: the thread cannot be stopped, and the core is its until then."""
        step = self.loop.run_in_executor(None, self._core.step)
        try:
            return await asyncio.shield(step)
        except asyncio.CancelledError:
            await asyncio.wait([step])
            raise
