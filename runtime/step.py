"""The tensors of one step: laid out in one block of bytes, filled on the host, sent to the device in one copy.

Knows the scheduler's Step and the manifest's step fields, no kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import torch

from tilewright.ir.manifest import STEP_FIELDS, Limits
from tilewright.runtime.random_stream import uniforms
from tilewright.runtime.sampler import PARAMS, SamplePlan, SampleRows, param_row
from tilewright.runtime.sampling_params import SamplingParams
from tilewright.runtime.scheduler import Step
from tilewright.runtime.sequence import Sequence

# What the runner and the sampler add to the manifest's fields. Same form.
SAMPLE_FIELDS: dict[str, tuple[str, tuple[str | int, ...]]] = {
    "sample_slots": ("i64", ("S",)),
    "num_outputs": ("i32", ("S",)),
    "params": ("f32", ("S", len(PARAMS))),
    "uniform": ("f64", ("S",)),
}
_NUMPY = {"i32": np.int32, "i64": np.int64, "f32": np.float32, "f64": np.float64}
_TORCH = {"i32": torch.int32, "i64": torch.int64, "f32": torch.float32, "f64": torch.float64}
_ALIGNMENT = 256  # bytes; kernels may rely on it


@dataclass(frozen=True, slots=True)
class StepDims:
    """Sizes of a step: T tokens, S sampled rows, B sequences."""

    T: int
    S: int
    B: int

    def of(self, dim: str | int, pages: int) -> int:
        if isinstance(dim, int):
            return dim
        return {"T": self.T, "S": self.S, "B": self.B, "B1": self.B + 1, "P": pages}[dim]

    def as_dict(self) -> dict[str, int]:
        return {"T": self.T, "S": self.S, "B": self.B}


class StepLayout:
    """Where each field lies for steps of up to `dims`. Offsets do not depend on the step, so that kernels keep their pointers."""

    def __init__(self, dims: StepDims, limits: Limits) -> None:
        self.dims, self.pages = dims, limits.max_pages_per_sequence
        self.offsets: dict[str, int] = {}
        offset = 0
        for name, (dtype, shape) in (SAMPLE_FIELDS | STEP_FIELDS).items():
            self.offsets[name] = offset
            num_bytes = prod(dims.of(d, self.pages) for d in shape) * np.dtype(_NUMPY[dtype]).itemsize
            offset += -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
        self.num_bytes = offset

    def host_views(self, block: np.ndarray, dims: StepDims) -> dict[str, np.ndarray]:
        """Fields at their actual size, as views of block: u8[>= num_bytes]."""
        views = {}
        for name, (dtype, symbols) in (SAMPLE_FIELDS | STEP_FIELDS).items():
            shape = tuple(dims.of(d, self.pages) for d in symbols)
            start = self.offsets[name]
            views[name] = block[start : start + prod(shape) * np.dtype(_NUMPY[dtype]).itemsize].view(_NUMPY[dtype]).reshape(shape)
        return views

    def device_views(self, block: torch.Tensor, dims: StepDims) -> dict[str, torch.Tensor]:
        """The same fields of block: u8[>= num_bytes]."""
        views = {}
        for name, (dtype, symbols) in (SAMPLE_FIELDS | STEP_FIELDS).items():
            shape = tuple(dims.of(d, self.pages) for d in symbols)
            start = self.offsets[name]
            views[name] = block[start : start + prod(shape) * _TORCH[dtype].itemsize].view(_TORCH[dtype]).view(shape)
        return views


def sample_rows(views: dict[str, torch.Tensor]) -> SampleRows:
    return SampleRows(views["sample_slots"], views["num_outputs"], views["params"], views["uniform"])


class SlotTables:
    """What the host keeps per slot, so that a step's rows are gathered, not rebuilt. Row num_slots stands for padding."""

    def __init__(self, limits: Limits) -> None:
        num_slots = limits.max_batch_size
        self.page_size = limits.page_size
        self.params = np.zeros((num_slots + 1, len(PARAMS)), np.float32)
        self.seeds = np.zeros(num_slots + 1, np.uint64)
        self.prompt_lengths = np.zeros(num_slots + 1, np.int64)
        self.plan_bits = np.zeros(num_slots + 1, np.uint8)
        self.pages = np.zeros((num_slots + 1, limits.max_pages_per_sequence), np.int32)
        self.padding = num_slots
        self.params[self.padding] = param_row(SamplingParams(temperature=0))
        self._num_pages = [0] * (num_slots + 1)

    def assign(self, sequence: Sequence) -> None:
        self.params[sequence.slot] = param_row(sequence.params)
        self.seeds[sequence.slot] = sequence.seed & 0xFFFFFFFFFFFFFFFF
        self.prompt_lengths[sequence.slot] = len(sequence.prompt)
        self.plan_bits[sequence.slot] = SamplePlan.of(sequence.params).bits
        self._num_pages[sequence.slot] = 0

    def update_pages(self, step: Step) -> None:
        for sequence in step.grown:
            slot, pages = sequence.slot, sequence.pages
            self.pages[slot, self._num_pages[slot] : len(pages)] = pages[self._num_pages[slot] :]
            self._num_pages[slot] = len(pages)

    def fill_decode(self, step: Step, views: dict[str, np.ndarray]) -> SamplePlan:
        """One token per sequence, whose id the device has; rows after the last sequence are padding."""
        used = len(step.chunks)
        slots = np.full(len(views["slots"]), self.padding, np.int64)
        slots[:used] = [sequence.slot for sequence in step.sampling]
        views["positions"][:used] = [chunk.start for chunk in step.chunks]
        views["positions"][used:] = 0
        views["query_start"][:] = np.arange(len(views["query_start"]), dtype=np.int32)
        views["rows"][:] = views["query_start"][:-1]
        np.add(views["positions"], 1, out=views["context_len"])
        views["context_len"][used:] = 0
        np.take(self.pages, slots, axis=0, out=views["block_table"], mode="clip")
        views["slots"][:] = self._place(slots, views["positions"])
        views["slots"][used:] = -1
        return self._fill_samples(views, slots, step.sampling)

    def fill_ragged(self, step: Step, views: dict[str, np.ndarray]) -> SamplePlan:
        """Any mixture of chunks. A token that only the device knows is written as -1 - slot."""
        row = 0
        rows: list[int] = []
        for index, chunk in enumerate(step.chunks):
            sequence, start, end = chunk.sequence, chunk.start, chunk.start + chunk.length
            stop = row + chunk.length
            known = sequence.tokens(start, end)
            views["ids"][row : row + len(known)] = known
            views["ids"][row + len(known) : stop] = -1 - sequence.slot
            positions = np.arange(start, end, dtype=np.int32)
            views["positions"][row:stop] = positions
            views["slots"][row:stop] = self._place(np.full(chunk.length, sequence.slot), positions)
            views["query_start"][index] = row
            views["context_len"][index] = end
            views["block_table"][index] = self.pages[sequence.slot]
            if chunk.samples:
                rows.append(stop - 1)
            row = stop
        views["query_start"][len(step.chunks)] = row
        views["rows"][:] = rows or [0]
        return self._fill_samples(views, np.array([s.slot for s in step.sampling] or [self.padding]), step.sampling)

    def _place(self, slots: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """i32[n]: page * page_size + offset of each position of the sequence in each slot."""
        return self.pages[slots, positions // self.page_size] * self.page_size + positions % self.page_size

    def _fill_samples(self, views: dict[str, np.ndarray], slots: np.ndarray, sequences: list[Sequence]) -> SamplePlan:
        """What these rows need of the sampler. The token to be sampled counts in num_tokens already."""
        views["sample_slots"][:] = slots
        plan = SamplePlan.from_bits(int(np.bitwise_or.reduce(self.plan_bits[slots])))
        if plan == SamplePlan():
            return plan
        np.take(self.params, slots, axis=0, out=views["params"], mode="clip")
        lengths = np.zeros(len(slots), np.int64)
        lengths[: len(sequences)] = [sequence.num_tokens - 1 for sequence in sequences]
        np.subtract(lengths, self.prompt_lengths[slots], out=views["num_outputs"], casting="unsafe")
        if plan.draws:
            views["uniform"][:] = uniforms(self.seeds[slots], lengths)
        return plan
