"""Runs steps on the device: fills the step tensors, launches a program, samples. Replays CUDA graphs for decodes where there are any.

Knows the scheduler's Step and the manifest; neither requests nor text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from tilewright.ir.errors import EngineError
from tilewright.runtime import kv_cache
from tilewright.runtime.engine import Engine
from tilewright.runtime.program_binder import BoundProgram, ProgramBinder
from tilewright.runtime.sample_kernels import SampleKernels
from tilewright.runtime.sampler import Sampled, SamplePlan, Sampler
from tilewright.runtime.scheduler import Step
from tilewright.runtime.step import SAMPLE_FIELDS, SlotTables, StepDims, StepLayout, sample_rows

NUM_STAGINGS = 2  # the host prepares a step while the one before it runs


class PendingTokens:
    """What a launched step will sample; `wait` blocks until it has. Call it before as many steps as there are stagings have been launched."""

    def __init__(self, tensors: list[torch.Tensor], num_rows: int, event: torch.cuda.Event | None) -> None:
        self._tensors, self._num_rows, self._event = tensors, num_rows, event

    def wait(self) -> SampledOnHost:
        if self._event is not None:
            self._event.synchronize()
        arrays = [tensor[: self._num_rows].numpy() for tensor in self._tensors]
        return SampledOnHost(arrays[0].tolist(), *arrays[1:])


@dataclass(frozen=True, slots=True)
class SampledOnHost:
    """`Sampled`, one row per sampling chunk of the step."""

    tokens: list[int]
    logprob: np.ndarray | None = None
    rank: np.ndarray | None = None
    top_logprobs: np.ndarray | None = None
    top_ids: np.ndarray | None = None


class _Fetch:
    """Where sampled tokens arrive on the host, in memory that is used again: allocating pinned memory waits for the device."""

    def __init__(self) -> None:
        self._event = torch.cuda.Event()
        self._buffers: list[torch.Tensor] = []

    def start(self, sampled: Sampled, num_rows: int) -> PendingTokens:
        arrived = [self._copy(place, tensor) for place, tensor in enumerate(sampled.tensors())]
        self._event.record()
        return PendingTokens(arrived, num_rows, self._event)

    def _copy(self, place: int, tensor: torch.Tensor) -> torch.Tensor:
        if place == len(self._buffers):
            self._buffers.append(torch.empty(tensor.nbytes, dtype=torch.uint8, pin_memory=True))
        if len(self._buffers[place]) < tensor.nbytes:
            self._buffers[place] = torch.empty(tensor.nbytes, dtype=torch.uint8, pin_memory=True)
        host = self._buffers[place][: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        return host.copy_(tensor, non_blocking=True)


@dataclass(frozen=True, slots=True)
class _Decode:
    """What decode steps of one size reuse."""

    size: int  # rows, padding among them
    bound: BoundProgram
    host: list[dict[str, np.ndarray]]  # step fields in each staging
    num_bytes: int  # to send


@dataclass(frozen=True, slots=True)
class _Graph:
    graph: torch.cuda.CUDAGraph
    sampled: Sampled  # written by each replay


class Runner:
    def __init__(self, engine: Engine, max_cache_tokens: int | None = None) -> None:
        manifest, self.device = engine.manifest, engine.backend.device
        self.limits, self.uses_graphs = manifest.limits, engine.backend.uses_graphs
        self._ragged = sorted((p for p in manifest.programs if p.kind == "ragged"), key=lambda p: p.max_tokens)
        self._decode = sorted((p for p in manifest.programs if p.kind == "decode"), key=lambda p: p.max_tokens) or self._ragged
        if not self._ragged or self._ragged[-1].max_tokens < self.limits.max_tokens:
            problem = f"no ragged program serves steps of {self.limits.max_tokens} tokens"
            raise EngineError(f"engine {engine.directory}", problem, "rebuild the engine")
        arena = max(program.arena_bytes for program in manifest.programs)
        reserved = arena + self.limits.max_batch_size * manifest.model.vocab_size * 48  # what sampling allocates: some f64 and f32 rows
        self.num_pages = kv_cache.choose_num_pages(manifest, self.device, max_cache_tokens, reserved)
        kv = kv_cache.allocate(manifest.cache, self.limits, self.num_pages, self.device)
        self._binder = ProgramBinder(engine, kv)
        most = self.limits.max_batch_size
        kernels = SampleKernels(manifest.sampling, engine.kernels, self.device, most) if manifest.sampling else None
        self.sampler = Sampler(manifest.model.vocab_size, most, self.device, kernels)
        self._tables = SlotTables(self.limits)
        self._buckets = decode_buckets(self.limits.max_batch_size)
        self._allocate_stagings()
        self._decodes: dict[int, _Decode] = {}  # by size
        self._bound_ragged: dict[str, BoundProgram] = {}  # as last run
        self._graphs: dict[tuple[int, SamplePlan], _Graph] = {}
        self._pool = torch.cuda.graph_pool_handle() if self.uses_graphs else None

    def launch(self, step: Step) -> PendingTokens:
        """Queues the step on the device and returns without waiting for it."""
        for sequence in step.admitted:
            self._tables.assign(sequence)
            self.sampler.assign(sequence.slot, sequence.params, sequence.prompt, sequence.output, sequence.stop_ids)
        self._tables.update_pages(step)
        self._turn = (self._turn + 1) % NUM_STAGINGS
        decode = self._find_decode(step)
        sampled = self._launch_decode(step, decode) if decode else self._launch_ragged(step)
        return self._fetch(sampled, len(step.sampling))

    def bound_decode(self, size: int) -> BoundProgram:
        """The program of the last decode step of about that many sequences, as it was bound: for whoever times its launches again."""
        fitting = [decode.bound for rows, decode in sorted(self._decodes.items()) if rows >= size]
        if not fitting:
            raise EngineError("runner", f"no decode step of {size} sequences has run", "run one before")
        return fitting[0]

    def bound_ragged(self, num_tokens: int) -> BoundProgram:
        """The program that runs so many tokens in one step, as it was bound last."""
        program = next((p for p in self._ragged if p.max_tokens >= num_tokens), None)
        if program is None or program.name not in self._bound_ragged:
            raise EngineError("runner", f"no step of {num_tokens} tokens has run", "run one before")
        return self._bound_ragged[program.name]

    def warm_up(self, plans: list[SamplePlan]) -> None:
        """Loads every kernel, and captures the decode steps of every size for these plans, so that no request waits for that.

        Between requests only: what runs is padding, which changes neither the cache nor any request's slot.
        """
        one = StepDims(1, 1, 1)
        for program in self._ragged:
            if program.name not in self._bound_ragged:
                self._bound_ragged[program.name] = self._binder.bind(program, one, self._ragged_layout.device_views(self._block, one))
        if not self.uses_graphs or not self._decode:
            return
        for plan in plans:
            self.sampler.prepare(plan)
        idle = Step(None, [], [], [], starts=[])
        for size in reversed(self._buckets):  # the largest first: the others find their memory in its
            if decode := self._find_sized(size):
                views = decode.host[self._turn]
                self._tables.fill_decode(idle, views)
                for name in SAMPLE_FIELDS:
                    views[name][:] = self._tables.padding if name == "sample_slots" else 0
                self._send(decode.num_bytes)
                for plan in plans:
                    if (size, plan) not in self._graphs:
                        self._run_and_capture(decode.bound, size, plan)
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)  # the staging is written again for the next size

    def _launch_decode(self, step: Step, decode: _Decode) -> Sampled:
        plan = self._tables.fill_decode(step, decode.host[self._turn])
        self._send(decode.num_bytes)
        if not self.uses_graphs:
            return self._run_decode(decode.bound, plan)
        size = decode.size
        if ready := self._graphs.get((size, plan)):
            ready.graph.replay()
            return ready.sampled
        return self._run_and_capture(decode.bound, size, plan)

    def _run_and_capture(self, bound: BoundProgram, size: int, plan: SamplePlan) -> Sampled:
        sampled = self._run_decode(bound, plan)  # loads what is loaded lazily; a capture runs nothing
        self._graphs[size, plan] = self._capture(bound, plan)
        return sampled

    def _find_sized(self, size: int) -> _Decode | None:
        """What decode steps of that many rows run; None where no decode program is as large."""
        if ready := self._decodes.get(size):
            return ready
        program = next((p for p in self._decode if p.max_tokens >= size), None)
        if program is None:
            return None
        dims = StepDims(size, size, size)
        layout = StepLayout(dims, self.limits)
        bound = self._binder.bind(program, dims, layout.device_views(self._block, dims))
        host = [layout.host_views(staging.numpy(), dims) for staging in self._stagings]
        self._decodes[size] = _Decode(size, bound, host, layout.num_bytes)
        return self._decodes[size]

    def _launch_ragged(self, step: Step) -> Sampled:
        program = next(p for p in self._ragged if p.max_tokens >= step.num_tokens)
        dims = StepDims(step.num_tokens, max(1, len(step.sampling)), len(step.starts))
        layout = self._ragged_layout
        views = layout.host_views(self._stagings[self._turn].numpy(), dims)
        plan = self._tables.fill_ragged(step, views)
        self._send(layout.num_bytes)
        device_views = layout.device_views(self._block, dims)
        ids = device_views["ids"]
        if views["ids"].min() < 0:  # tokens that only the device knows
            ids.copy_(torch.where(ids < 0, self.sampler.last_token[(-1 - ids).clamp_min_(0)], ids))
        if previous := self._bound_ragged.get(program.name):
            bound = self._binder.rebind(previous, dims, device_views)
        else:
            bound = self._binder.bind(program, dims, device_views)
        self._bound_ragged[program.name] = bound
        bound.run(self._stream())
        return self.sampler.sample(bound.logits, sample_rows(device_views), plan)

    def _run_decode(self, bound: BoundProgram, plan: SamplePlan) -> Sampled:
        rows = sample_rows(bound.step)
        torch.index_select(self.sampler.last_token, 0, rows.slots, out=bound.step["ids"])
        bound.run(self._stream())
        return self.sampler.sample(bound.logits, rows, plan)

    def _capture(self, bound: BoundProgram, plan: SamplePlan) -> _Graph:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            graph.capture_begin(pool=self._pool)
            try:
                sampled = self._run_decode(bound, plan)
            finally:
                graph.capture_end()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        return _Graph(graph, sampled)

    def _find_decode(self, step: Step) -> _Decode | None:
        return self._find_sized(self._decode_size(step)) if step.is_decode else None

    def _decode_size(self, step: Step) -> int:
        if not self.uses_graphs:
            return step.num_tokens
        return next(bucket for bucket in self._buckets if bucket >= step.num_tokens)

    def _allocate_stagings(self) -> None:
        """Host blocks and the device block are as large as any step needs; layouts start at its first byte."""
        most = self.limits.max_batch_size
        self._ragged_layout = StepLayout(StepDims(self.limits.max_tokens, most, most), self.limits)
        size = max(self._ragged_layout.num_bytes, StepLayout(StepDims(most, most, most), self.limits).num_bytes)
        pinned = self.device.type == "cuda"
        self._stagings = [torch.zeros(size, dtype=torch.uint8, pin_memory=pinned) for _ in range(NUM_STAGINGS)]
        self._block = torch.zeros(size, dtype=torch.uint8, device=self.device)
        self._fetches = [_Fetch() for _ in range(NUM_STAGINGS)] if pinned else []
        self._turn = 0

    def _send(self, num_bytes: int) -> None:
        self._block[:num_bytes].copy_(self._stagings[self._turn][:num_bytes], non_blocking=True)

    def _fetch(self, sampled: Sampled, num_rows: int) -> PendingTokens:
        if self.device.type != "cuda":
            return PendingTokens(sampled.tensors(), num_rows, None)
        return self._fetches[self._turn].start(sampled, num_rows)

    def _stream(self) -> int:
        return torch.cuda.current_stream(self.device).cuda_stream if self.device.type == "cuda" else 0


def decode_buckets(max_batch_size: int) -> list[int]:
    """1, 2, 4, 8, then every 8, up to the largest batch."""
    sizes = [1, 2, 4, *range(8, max_batch_size, 8), max_batch_size]
    return sorted({size for size in sizes if size <= max_batch_size})
