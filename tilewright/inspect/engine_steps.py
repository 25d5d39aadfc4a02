"""Steps of an engine outside its scheduler: chosen tokens of a sample, pages scattered over the pool, and a program bound to them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from tilewright.inspect.references import Sample
from tilewright.ir.errors import RequestError
from tilewright.ir.manifest import Program
from tilewright.runtime import kv_cache
from tilewright.runtime.engine import Engine
from tilewright.runtime.program_binder import BoundProgram, ProgramBinder
from tilewright.runtime.step import StepDims, StepLayout


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens [start, stop) of a prompt of the sample."""

    prompt: int
    start: int
    stop: int


class EngineSteps:
    """Loads nothing itself. Prompts keep their pages from step to step, so that a later chunk reads what an earlier one wrote."""

    def __init__(self, engine: Engine, sample: Sample) -> None:
        self.engine, self.sample, self.limits = engine, sample, engine.manifest.limits
        self.device = engine.backend.device
        for index, prompt in enumerate(sample.prompts):
            if len(prompt) > self.limits.max_sequence_len:
                problem = f"has {len(prompt)} tokens, the engine takes {self.limits.max_sequence_len}"
                raise RequestError(f"prompt {index}", problem, "shorten it")
        self.tables = self._scatter_pages()
        self.cache = kv_cache.allocate(engine.manifest.cache, self.limits, 1 + sum(map(len, self.tables)), self.device)
        self.binder = ProgramBinder(engine, self.cache)

    def _scatter_pages(self) -> list[list[int]]:
        """Pages of each prompt: they alternate between prompts and run backwards; page 0 belongs to none."""
        counts = [ceil(len(prompt) / self.limits.page_size) for prompt in self.sample.prompts]
        order = [prompt for turn in range(max(counts)) for prompt, count in enumerate(counts) if turn < count]
        tables: list[list[int]] = [[] for _ in counts]
        for page, prompt in zip(range(len(order), 0, -1), order):
            tables[prompt].append(page)
        return tables

    def slots_of(self, prompt: int, start: int, stop: int) -> list[int]:
        size = self.limits.page_size
        return [self.tables[prompt][position // size] * size + position % size for position in range(start, stop)]

    def rows_of(self, chunks: list[Chunk]) -> list[int]:
        """Rows of the sample's flattened batch that a step of these chunks runs."""
        starts = self.sample.batch.starts
        return [starts[chunk.prompt] + position for chunk in chunks for position in range(chunk.start, chunk.stop)]

    def find_ragged(self, num_tokens: int) -> Program:
        programs = sorted((p for p in self.engine.manifest.programs if p.kind == "ragged"), key=lambda p: p.max_tokens)
        return next(program for program in programs if program.max_tokens >= num_tokens)

    def bind(self, program: Program, chunks: list[Chunk], rows: list[int]) -> BoundProgram:
        """rows: which of the step's tokens give logits."""
        dims = StepDims(sum(chunk.stop - chunk.start for chunk in chunks), len(rows), len(chunks))
        layout = StepLayout(dims, self.limits)
        block = torch.zeros(layout.num_bytes, dtype=torch.uint8)
        self._fill(layout.device_views(block, dims), chunks, rows)
        return self.binder.bind(program, dims, layout.device_views(block.to(self.device), dims))

    def _fill(self, fields: dict[str, Tensor], chunks: list[Chunk], rows: list[int]) -> None:
        def put(name: str, numbers: list[int]) -> None:
            fields[name].copy_(torch.tensor(numbers, dtype=torch.int32))

        lengths = [chunk.stop - chunk.start for chunk in chunks]
        put("ids", [token for chunk in chunks for token in self.sample.prompts[chunk.prompt][chunk.start : chunk.stop]])
        put("positions", [position for chunk in chunks for position in range(chunk.start, chunk.stop)])
        put("slots", [slot for chunk in chunks for slot in self.slots_of(chunk.prompt, chunk.start, chunk.stop)])
        put("rows", rows)
        put("query_start", [sum(lengths[:index]) for index in range(len(lengths) + 1)])
        put("context_len", [chunk.stop for chunk in chunks])
        for row, chunk in enumerate(chunks):
            table = self.tables[chunk.prompt]
            fields["block_table"][row, : len(table)] = torch.tensor(table, dtype=torch.int32)

    def stream(self) -> int:
        return torch.cuda.current_stream(self.device).cuda_stream if self.device.type == "cuda" else 0

    # -- the cache ----------------------------------------------------------------------------------------------------------------
    def write_cache(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """keys, values: [tokens of the sample, heads * dim]"""
        slots = torch.tensor([s for i, p in enumerate(self.sample.prompts) for s in self.slots_of(i, 0, len(p))], device=self.device)
        size = self.limits.page_size
        for cache, tensor in zip(self.cache[layer], (keys, values)):
            cache[slots // size, :, slots % size] = tensor.to(self.device, cache.dtype).unflatten(-1, (cache.shape[1], -1))

    def read_cache(self, layer: int, chunks: list[Chunk]) -> tuple[Tensor, Tensor]:
        """Keys and values at the chunks' tokens: [T, heads * dim] each"""
        slots = torch.tensor([s for chunk in chunks for s in self.slots_of(chunk.prompt, chunk.start, chunk.stop)], device=self.device)
        size = self.limits.page_size
        keys, values = (cache[slots // size, :, slots % size].flatten(1).cpu() for cache in self.cache[layer])
        return keys, values

    def erase_cache(self, layer: int, chunks: list[Chunk]) -> None:
        """NaN at the chunks' tokens."""
        slots = torch.tensor([s for chunk in chunks for s in self.slots_of(chunk.prompt, chunk.start, chunk.stop)], device=self.device)
        size = self.limits.page_size
        for cache in self.cache[layer]:
            cache[slots // size, :, slots % size] = float("nan")

    def clear_cache(self) -> None:
        for pair in self.cache:
            for cache in pair:
                cache.zero_()

    # -- the whole engine ---------------------------------------------------------------------------------------------------------
    def logits(self) -> Tensor:
        """What the engine's kernels give one after the other, all prompts in flight together, in steps as large as it takes: f32[T, vocab]"""
        self.clear_cache()
        found = torch.empty(self.sample.num_tokens, self.engine.manifest.model.vocab_size)
        done = [0] * len(self.sample.prompts)
        while left := [Chunk(i, done[i], len(prompt)) for i, prompt in enumerate(self.sample.prompts) if done[i] < len(prompt)]:
            chunks = fit(left, self.limits.max_tokens, self.limits.max_batch_size)
            found[self.rows_of(chunks)] = self._run(chunks)
            for chunk in chunks:
                done[chunk.prompt] = chunk.stop
        return found

    def _run(self, chunks: list[Chunk]) -> Tensor:
        """The same step again for each set of rows that one step may ask for; what it writes to the cache is the same each time."""
        length, most = sum(chunk.stop - chunk.start for chunk in chunks), self.limits.max_batch_size
        found: list[Tensor] = []
        for first in range(0, length, most):
            bound = self.bind(self.find_ragged(length), chunks, list(range(first, min(length, first + most))))
            bound.run(self.stream())
            found.append(bound.logits.float().cpu().clone())
        return torch.cat(found)


def fit(chunks: Iterable[Chunk], max_tokens: int, max_chunks: int) -> list[Chunk]:
    """As many as fit in a step, the last one cut short; each keeps at least one token."""
    found: list[Chunk] = []
    for chunk in chunks:
        length = min(chunk.stop - chunk.start, max_tokens)
        if length > 0 and len(found) < max_chunks:
            found.append(Chunk(chunk.prompt, chunk.start, chunk.start + length))
            max_tokens -= length
    return found
