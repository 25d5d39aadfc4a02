"""Samples one token per row of logits on their device, each row by its own request's parameters. Knows neither steps nor pages.

By the engine's kernels where it has some, else by torch ops of fixed shape, so that it can be captured in a CUDA graph. Order and meaning of
the parameters are vLLM's.
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass
from typing import Literal

import torch

from tilewright.ir.manifest import SAMPLE_PARAMS as PARAMS  # columns of `SampleRows.params`
from tilewright.runtime.backend import BoundLaunch
from tilewright.runtime.sample_kernels import SampleKernels
from tilewright.runtime.sampling_params import MAX_LOGIT_BIAS, MAX_LOGPROBS, MAX_STOP_IDS, SamplingParams

NO_FILTER = 2.0  # a top_p that no sum of probabilities reaches
MOST_TOP_K = 1024  # up to here top_k is found without putting all logits in order
MOST_PARTS = 256  # of a row
MOST_COUNT = 0x7FFF  # of a token's occurrences in an output
IN_PROMPT = -0x8000


@dataclass(frozen=True, slots=True)
class SamplePlan:
    """Which parts of the sampler a batch needs; each part costs launches, so the parts that no row asks for are left out."""

    draws: bool = False  # some row is not greedy
    filters: bool = False  # some row has top_k or top_p
    sorts: bool = False  # some row has a top_k over MOST_TOP_K, or top_p without top_k
    penalties: bool = False  # some row has a penalty
    biases: bool = False  # some row has logit_bias or min_tokens
    logprobs: bool = False  # some row reports them
    min_p: bool = False  # some row that draws has it

    @staticmethod
    def of(params: SamplingParams) -> SamplePlan:
        return SamplePlan(
            draws=not params.is_greedy,
            filters=params.has_filters,
            sorts=params.has_filters and not 0 < params.top_k <= MOST_TOP_K,
            penalties=params.has_penalties,
            biases=bool(params.logit_bias) or params.min_tokens > 0,
            logprobs=params.logprobs is not None,
            min_p=params.min_p > 0 and not params.is_greedy,
        )

    @property
    def kind(self) -> Literal["greedy", "draw", "filter"]:
        """The sample program that serves it."""
        if self.filters or self.min_p:
            return "filter"
        return "draw" if self.draws or self.penalties else "greedy"

    @property
    def bits(self) -> int:
        return sum(getattr(self, name) << i for i, name in enumerate(PARTS))

    @staticmethod
    @functools.cache
    def from_bits(bits: int) -> SamplePlan:
        """The inverse of `bits`; the union of plans is the bitwise or of theirs."""
        return SamplePlan(*(bool(bits >> i & 1) for i in range(len(PARTS))))


PARTS = tuple(SamplePlan.__dataclass_fields__)


@dataclass(frozen=True, slots=True)
class SampleRows:
    """What the sampler reads per row, on the device."""

    slots: torch.Tensor  # i64[S] row of the per-request tables
    num_outputs: torch.Tensor  # i32[S] tokens generated so far
    params: torch.Tensor  # f32[S, len(PARAMS)]
    uniform: torch.Tensor  # f64[S] in [0, 1)


@dataclass(frozen=True, slots=True)
class Sampled:
    """Tokens of a step and, where asked for, their log-probabilities before any penalty, bias or temperature."""

    tokens: torch.Tensor  # i32[S]
    logprob: torch.Tensor | None = None  # f32[S] of the token
    rank: torch.Tensor | None = None  # i32[S], 1 for the most probable token
    top_logprobs: torch.Tensor | None = None  # f32[S, MAX_LOGPROBS]
    top_ids: torch.Tensor | None = None  # i32[S, MAX_LOGPROBS]

    def tensors(self) -> list[torch.Tensor]:
        return [t for t in (self.tokens, self.logprob, self.rank, self.top_logprobs, self.top_ids) if t is not None]


def param_row(params: SamplingParams) -> list[float]:
    """One row of `SampleRows.params`; a filter that is off gets a value that removes nothing."""
    row = {name: float(getattr(params, name)) for name in PARAMS}
    row["temperature"] = 0.0 if params.is_greedy else params.temperature
    row["top_k"] = float(max(params.top_k, 0))
    row["top_p"] = NO_FILTER if params.top_p >= 1 else params.top_p
    return [row[name] for name in PARAMS]


class Sampler:
    """Holds what must stay on the device between steps, by slot; slot num_slots is for rows whose result nobody reads."""

    def __init__(self, vocab_size: int, num_slots: int, device: torch.device, kernels: SampleKernels | None = None) -> None:
        self.vocab_size, self.num_slots, self.device, self._kernels = vocab_size, num_slots, device, kernels
        self.last_token = torch.zeros(num_slots + 1, dtype=torch.int32, device=device)
        self._history: _History | None = None  # allocated for the first request with penalties
        self._biases: _Biases | None = None  # allocated for the first request with biases

    def prepare(self, plan: SamplePlan) -> None:
        """Allocates the tables that the plan reads, outside of any capture."""
        if plan.penalties and self._history is None:
            self._history = _History(self.vocab_size, self.num_slots, self.device)
        if plan.biases and self._biases is None:
            self._biases = _Biases(self.num_slots, self.device)

    def assign(self, slot: int, params: SamplingParams, prompt: list[int], output: list[int], stop_ids: frozenset[int]) -> None:
        """Fills the slot's tables for a request that starts or comes back; `output` is what it has generated."""
        plan = SamplePlan.of(params)
        self.prepare(plan)
        if plan.penalties and self._history is not None:
            self._history.assign(slot, prompt, output)
        if self._biases is not None:
            self._biases.assign(slot, params, stop_ids)

    def sample(self, logits: torch.Tensor, rows: SampleRows, plan: SamplePlan) -> Sampled:
        """logits: f32[S, vocab], left as they are. Also writes each token to `last_token` of its slot."""
        raw = logits
        if plan.biases and self._biases is not None:
            logits = self._biases.apply(logits, rows)
        short = self._sample_by_kernels(logits, rows, plan) if self._kernels else self._sample_by_torch(logits, rows, plan)
        return report(raw, short.long(), short) if plan.logprobs else Sampled(short)

    def bind(self, logits: torch.Tensor, rows: SampleRows, plan: SamplePlan) -> list[BoundLaunch]:
        """The kernels' launches of `sample`, for whoever times them; none where torch samples."""
        return self._kernels.bind(plan.kind, *self._tensors(logits, rows, plan)) if self._kernels else []

    def _sample_by_kernels(self, logits: torch.Tensor, rows: SampleRows, plan: SamplePlan) -> torch.Tensor:
        assert self._kernels is not None
        return self._kernels.sample(plan.kind, *self._tensors(logits, rows, plan))

    def _tensors(self, logits: torch.Tensor, rows: SampleRows, plan: SamplePlan) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        """What the kernels read and write, and the history where they need one."""
        history = self._history.table if plan.penalties and self._history is not None else None
        tensors = {"logits": logits, "slots": rows.slots, "params": rows.params, "uniform": rows.uniform, "last_token": self.last_token}
        return tensors, history

    def _sample_by_torch(self, logits: torch.Tensor, rows: SampleRows, plan: SamplePlan) -> torch.Tensor:
        if plan.penalties and self._history is not None:
            logits = self._history.penalize(logits, rows)
        tokens = choose_greedy(logits)
        if plan.draws:
            temperature = rows.params[:, 0]
            tokens = torch.where(temperature == 0, tokens, draw(logits, rows, filters=plan.filters, sorts=plan.sorts))
        short = tokens.to(torch.int32)
        self.last_token[rows.slots] = short
        if plan.penalties and self._history is not None:
            self._history.count(rows.slots, tokens)
        return short


def split_rows(x: torch.Tensor) -> torch.Tensor:
    """f32[S, vocab] as f32[S, parts, vocab / parts]: torch gives a whole row to one block of a GPU, parts keep more of it busy."""
    size = x.shape[-1]
    parts = next(parts for parts in range(min(MOST_PARTS, size), 0, -1) if size % parts == 0)
    return x.view(x.shape[0], parts, size // parts)


def choose_greedy(logits: torch.Tensor) -> torch.Tensor:
    """tokens: i64[S], the first of the largest of logits: f32[S, vocab]."""
    best, place = split_rows(logits).max(dim=-1)
    part = best.argmax(dim=-1, keepdim=True)
    return (place.gather(-1, part) + part * (logits.shape[-1] // best.shape[-1]))[:, 0]


def draw(logits: torch.Tensor, rows: SampleRows, *, filters: bool, sorts: bool) -> torch.Tensor:
    """tokens: i64[S], drawn after temperature, min_p, top_k, top_p. Weights are probabilities relative to the most probable token."""
    temperature, min_p = rows.params[:, 0:1], rows.params[:, 3:4]
    weights = logits - split_rows(logits).amax(dim=-1).amax(dim=-1, keepdim=True)
    weights.div_(torch.where(temperature == 0, 1.0, temperature)).exp_()
    weights.masked_fill_(weights < min_p, 0)
    if filters:
        num_candidates = weights.shape[-1] if sorts else min(MOST_TOP_K, weights.shape[-1])
        weights.masked_fill_(weights < filter_threshold(weights, rows.params[:, 1:2], rows.params[:, 2:3], num_candidates), 0)
    return pick(weights, rows.uniform)


def filter_threshold(weights: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, num_candidates: int) -> torch.Tensor:
    """f32[S, 1]: the least weight that top_k: f32[S, 1] (0: all), then top_p: f32[S, 1], keep of weights: f32[S, vocab]. Ties are kept.

    Only the num_candidates largest weights are put in order; top_k must not be larger, and top_p needs a top_k then.
    """
    sorts = num_candidates == weights.shape[-1]
    ordered = weights.sort(dim=-1, descending=True).values if sorts else weights.topk(num_candidates, dim=-1).values
    limit = torch.where(top_k == 0, num_candidates, top_k).clamp_max(num_candidates).long()
    sums = running_sums(ordered)
    wanted = top_p * sums.gather(-1, limit - 1)
    num_kept = torch.minimum(torch.searchsorted(sums, wanted) + 1, limit)
    threshold = ordered.gather(-1, num_kept - 1)
    return torch.where((top_k == 0) & (top_p >= 1), 0.0, threshold)


def running_sums(x: torch.Tensor) -> torch.Tensor:
    """f32[S, n]: x[:, :i + 1].sum() for each i, over x: f32[S, n]."""
    within = split_rows(x).cumsum(dim=-1)
    before = within[:, :, -1].cumsum(dim=-1) - within[:, :, -1]
    return within.add_(before[:, :, None]).view(x.shape)


def pick(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """tokens: i64[S], the first whose running sum exceeds uniform: f64[S] of the whole, over weights: f32[S, vocab]."""
    parts = split_rows(weights)
    sums = parts.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    target = uniform[:, None] * sums[:, -1:]
    part = torch.searchsorted(sums, target, right=True).clamp_max(sums.shape[-1] - 1)
    before = torch.where(part > 0, sums.gather(-1, (part - 1).clamp_min(0)), 0.0)
    inside = parts.gather(1, part[:, :, None].expand(-1, 1, parts.shape[-1]))[:, 0]
    place = torch.searchsorted(inside.cumsum(dim=-1, dtype=torch.float64), target - before, right=True)
    last = torch.where(inside > 0, torch.arange(inside.shape[-1], device=inside.device), 0).amax(dim=-1, keepdim=True)
    return (part * parts.shape[-1] + torch.minimum(place, last))[:, 0]


def report(logits: torch.Tensor, tokens: torch.Tensor, short: torch.Tensor) -> Sampled:
    """Log-probabilities of tokens: i64[S] (short: i32[S] are the same) and of the MAX_LOGPROBS most probable ones under logits: f32[S, vocab]."""
    logprobs = logits.log_softmax(dim=-1)
    chosen = logprobs.gather(-1, tokens[:, None])
    rank = (logprobs > chosen).sum(dim=-1) + 1
    top = logprobs.topk(min(MAX_LOGPROBS, logits.shape[-1]), dim=-1)
    return Sampled(short, chosen[:, 0], rank.to(torch.int32), top.values, top.indices.to(torch.int32))


class _History:
    """Which tokens each slot's request has seen and made, for the penalties.

    table: i16[slots, vocab], negative for a token of the prompt; the other bits count how often it was sampled, up to MOST_COUNT.
    """

    def __init__(self, vocab_size: int, num_slots: int, device: torch.device) -> None:
        self.table = torch.zeros(num_slots + 1, vocab_size, dtype=torch.int16, device=device)

    def assign(self, slot: int, prompt: list[int], output: list[int]) -> None:
        counts, in_prompt = Counter(output), set(prompt)
        tokens = sorted(in_prompt | counts.keys())
        values = [min(counts[token], MOST_COUNT) + (IN_PROMPT if token in in_prompt else 0) for token in tokens]
        self.table[slot] = 0
        self.table[slot].scatter_(0, _send(tokens, self.table.device), _send(values, self.table.device, torch.int16))

    def penalize(self, logits: torch.Tensor, rows: SampleRows) -> torch.Tensor:
        repetition, presence, frequency = rows.params[:, 4:5], rows.params[:, 5:6], rows.params[:, 6:7]
        seen = self.table.index_select(0, rows.slots)
        counts = seen & MOST_COUNT
        logits = torch.where(seen != 0, torch.where(logits > 0, logits / repetition, logits * repetition), logits)
        return logits - frequency * counts - presence * (counts > 0)

    def count(self, slots: torch.Tensor, tokens: torch.Tensor) -> None:
        flat, places = self.table.view(-1), slots * self.table.shape[1] + tokens
        seen = flat.gather(0, places)
        flat.scatter_(0, places, seen + (seen & MOST_COUNT < MOST_COUNT))


class _Biases:
    """Sparse additions to the logits: logit_bias always, -inf on stop ids until min_tokens are made."""

    def __init__(self, num_slots: int, device: torch.device) -> None:
        self._ids = torch.zeros(num_slots + 1, MAX_LOGIT_BIAS, dtype=torch.int64, device=device)
        self._values = torch.zeros(num_slots + 1, MAX_LOGIT_BIAS, device=device)
        self._stop_ids = torch.zeros(num_slots + 1, 2 * MAX_STOP_IDS, dtype=torch.int64, device=device)
        self._stop_values = torch.zeros(num_slots + 1, 2 * MAX_STOP_IDS, device=device)

    def assign(self, slot: int, params: SamplingParams, stop_ids: frozenset[int]) -> None:
        _fill_row(self._ids[slot], list(params.logit_bias))
        _fill_row(self._values[slot], list(params.logit_bias.values()))
        banned = sorted(stop_ids) if params.min_tokens else []
        _fill_row(self._stop_ids[slot], banned)
        _fill_row(self._stop_values[slot], [-torch.inf] * len(banned))

    def apply(self, logits: torch.Tensor, rows: SampleRows) -> torch.Tensor:
        logits = logits.scatter_add(1, self._ids.index_select(0, rows.slots), self._values.index_select(0, rows.slots))
        early = (rows.num_outputs < rows.params[:, 7])[:, None]
        bans = torch.where(early, self._stop_values.index_select(0, rows.slots), 0.0)
        return logits.scatter_add_(1, self._stop_ids.index_select(0, rows.slots), bans)


def _fill_row(row: torch.Tensor, values: list) -> None:
    """values, then zeros, which add nothing to token 0."""
    row.zero_()
    if values:
        row[: len(values)] = _send(values, row.device, row.dtype)


def _send(values: list, device: torch.device, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """To the device without waiting for it."""
    tensor = torch.tensor(values, dtype=dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
