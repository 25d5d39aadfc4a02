"""The tensors of one step: laid out in one block of bytes, filled on the host, sent to the device in one copy.

Knows the scheduler's Step and the manifest's step fields, no kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import torch

from tilewright.ir.manifest import STEP_FIELDS, Limits
from tilewright.runtime.random_stream import draw_uniforms, make_keys
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
_GREEDY = SamplePlan()
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
        self.keys = np.zeros(num_slots + 1, np.uint64)  # of the random streams
        self.prompt_lengths = np.zeros(num_slots + 1, np.int64)
        self.plan_bits = np.zeros(num_slots + 1, np.uint8)
        self.pages = np.zeros((num_slots + 1, limits.max_pages_per_sequence), np.int32)
        self.padding = num_slots
        self.params[self.padding] = param_row(SamplingParams(temperature=0))
        self._num_pages = [0] * (num_slots + 1)
        self._counts = np.arange(max(limits.max_tokens, num_slots) + 1, dtype=np.int32)
        self._last_sequences: list[Sequence] = []
        self._last_slots = np.zeros(0, np.int64)  # of them in the last decode step

    def assign(self, sequence: Sequence) -> None:
        self.params[sequence.slot] = param_row(sequence.params)
        self.keys[sequence.slot] = make_keys(np.array([sequence.seed & 0xFFFFFFFFFFFFFFFF], np.uint64))[0]
        self.prompt_lengths[sequence.slot] = len(sequence.prompt)
        self.plan_bits[sequence.slot] = SamplePlan.of(sequence.params).bits
        self._num_pages[sequence.slot] = 0
        self._last_slots = np.zeros(0, np.int64)  # a sequence that comes back may have another slot

    def update_pages(self, step: Step) -> None:
        for sequence in step.grown:
            slot, pages = sequence.slot, sequence.pages
            self.pages[slot, self._num_pages[slot] : len(pages)] = pages[self._num_pages[slot] :]
            self._num_pages[slot] = len(pages)

    def fill_decode(self, step: Step, views: dict[str, np.ndarray]) -> SamplePlan:
        """One token per sequence, whose id the device has; rows after the last sequence are padding.

        Of the block table only the columns in use are written: what stands behind them is read by nobody.
        """
        used, size = step.num_tokens, len(views["slots"])
        slots = self._slots_of(step.sampling, size)
        positions, context_len = views["positions"], views["context_len"]
        positions[:used] = step.starts
        positions[used:] = 0
        views["query_start"][:] = self._counts[: size + 1]
        views["rows"][:] = self._counts[:size]
        np.add(positions, 1, out=context_len)
        lengths = context_len.astype(np.int64)
        context_len[used:] = 0
        num_columns = int(context_len.max(initial=1) - 1) // self.page_size + 1
        views["block_table"][:, :num_columns] = self.pages[slots, :num_columns]
        views["slots"][:] = self._place(slots, positions)
        views["slots"][used:] = -1
        return self._fill_samples(views, slots, lengths)

    def _slots_of(self, sequences: list[Sequence], size: int) -> np.ndarray:
        """i64[size], padding behind the last sequence. Decode steps mostly have the sequences of the one before."""
        if size != len(self._last_slots) or sequences != self._last_sequences:
            self._last_sequences = sequences
            self._last_slots = np.full(size, self.padding, np.int64)
            self._last_slots[: len(sequences)] = [sequence.slot for sequence in sequences]
        return self._last_slots

    def fill_ragged(self, step: Step, views: dict[str, np.ndarray]) -> SamplePlan:
        """Any mixture of chunks. A token that only the device knows is written as -1 - slot."""
        chunks = step.chunks
        slots = np.array([chunk.sequence.slot for chunk in chunks], np.int64)
        starts, lengths = np.array(step.starts, np.int32), np.array([chunk.length for chunk in chunks], np.int32)
        stops = np.cumsum(lengths, dtype=np.int32)
        views["query_start"][0] = 0
        views["query_start"][1:] = stops
        np.add(starts, lengths, out=views["context_len"])
        views["block_table"][:] = self.pages[slots]
        owners = np.repeat(slots, lengths)
        views["positions"][:] = self._counts[: step.num_tokens] + np.repeat(starts - stops + lengths, lengths)
        views["slots"][:] = self._place(owners, views["positions"])
        ids = views["ids"]
        np.subtract(-1, owners, out=ids, casting="unsafe")
        for chunk, stop in zip(chunks, stops.tolist()):
            if chunk.start < chunk.sequence.num_known:
                known = chunk.sequence.tokens(chunk.start, chunk.start + chunk.length)
                ids[stop - chunk.length : stop - chunk.length + len(known)] = known
        sampled = [index for index, chunk in enumerate(chunks) if chunk.samples]
        if not sampled:  # one row all the same, whose token nobody reads
            views["rows"][:] = 0
            return self._fill_samples(views, np.array([self.padding]), np.zeros(1, np.int64))
        views["rows"][:] = stops[sampled] - 1
        return self._fill_samples(views, slots[sampled], views["context_len"][sampled].astype(np.int64))

    def _place(self, slots: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """i32[n]: page * page_size + offset of each position of the sequence in each slot."""
        return self.pages[slots, positions // self.page_size] * self.page_size + positions % self.page_size

    def _fill_samples(self, views: dict[str, np.ndarray], slots: np.ndarray, lengths: np.ndarray) -> SamplePlan:
        """What these rows need of the sampler. lengths: i64[n], tokens before the one to be sampled."""
        views["sample_slots"][:] = slots
        plan = SamplePlan.from_bits(int(np.bitwise_or.reduce(self.plan_bits[slots])))
        if plan == _GREEDY:
            return plan
        views["params"][:] = self.params[slots]
        np.subtract(lengths, self.prompt_lengths[slots], out=views["num_outputs"], casting="unsafe")
        if plan.draws:
            views["uniform"][:] = draw_uniforms(self.keys[slots], lengths)
        return plan
