"""Random arguments of a plan's kernels for one step, in as many sets as keep what is read out of the L2 cache. Launches nothing."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch

from tilewright.codegen.linear_product import Product
from tilewright.codegen.plan import KernelPlan, Parameter
from tilewright.ir.manifest import Limits
from tilewright.ir.reference import TORCH_DTYPES

COLD_BYTES = 300 << 20  # sets that are used in turn hold at least this much: more than the L2 cache
MOST_SETS = 256
MOST_PAGE_BYTES = 2 << 30  # of keys and values of one set
CONTEXTS = (1 / 8, 1 / 2)  # shares of the longest sequence that decode attention is measured at


@dataclass(frozen=True, slots=True)
class Step:
    tokens: int
    rows: int  # whose logits are wanted
    contexts: tuple[int, ...]  # keys of each sequence, its tokens of this step among them

    @property
    def dims(self) -> dict[str, int]:
        return {"T": self.tokens, "S": self.rows, "B": len(self.contexts)}


def steps_of(plan: KernelPlan, limits: Limits) -> list[Step]:
    """Steps that a plan is measured at: the largest that it serves; of decode attention, with short and with long contexts."""
    tokens = plan.max_tokens
    if plan.template == "attend" and plan.kind == "decode":
        return [Step(tokens, tokens, _spread(plan, limits, share)) for share in CONTEXTS]
    if plan.template == "attend":
        sequences = min(-(-tokens // limits.max_input_len), limits.max_batch_size)
        tokens = min(tokens, sequences * limits.max_input_len)
        starts = _starts(tokens, sequences)
        return [Step(tokens, sequences, tuple(b - a for a, b in pairwise(starts)))]
    rows = min(Product.of(plan).tokens, limits.max_batch_size)
    return [Step(tokens, rows, (1,) * rows)]


def _spread(plan: KernelPlan, limits: Limits, share: float) -> tuple[int, ...]:
    """Contexts from half of the wanted one up to it, since sequences of a batch differ; no more than memory holds."""
    token_bytes = sum(p.type.num_bytes({"pages": 1}) // plan.page_size for p in plan.parameters if p.role in ("k_cache", "v_cache"))
    longest = min(int(limits.max_sequence_len * share), MOST_PAGE_BYTES // max(1, token_bytes * plan.max_tokens))
    return tuple(max(1, round(longest * (1 + (i + 1) / plan.max_tokens) / 2)) for i in range(plan.max_tokens))


def _starts(tokens: int, sequences: int) -> list[int]:
    return [i * tokens // sequences for i in range(sequences + 1)]


class Operands:
    """Sets of arguments by parameter name; they serve every tile of a plan."""

    def __init__(self, plan: KernelPlan, step: Step, *, copies: int = 0, device: str = "cuda") -> None:
        """copies: how many sets (0: as many as are larger than the L2 cache)."""
        self.plan, self.step, self.device = plan, step, device
        self._pages = [-(-context // plan.page_size) for context in step.contexts] if plan.page_size else []
        first = self._make(0)
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in first.values())
        cold = 1 if plan.kind == "ragged" else max(1, min(MOST_SETS, -(-COLD_BYTES // max(1, num_bytes))))
        self.sets = [first, *(self._make(seed) for seed in range(1, copies or cold))]

    @property
    def dims(self) -> dict[str, int]:
        return self.step.dims

    def written(self) -> dict[str, torch.Tensor]:
        """What kernels write of the first set: outputs, and the newest keys and values where they write those."""
        arguments = self.sets[0]
        found = {p.name: arguments[p.name] for p in self.plan.outputs}
        if "slots" in arguments:
            slots = arguments["slots"].long()
            for name in ("k_cache", "v_cache"):
                found[name] = arguments[name][slots // self.plan.page_size, :, slots % self.plan.page_size]
        return found

    def _make(self, seed: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator(self.device).manual_seed(seed)
        arguments = {p.name: self._tensor(p, generator) for p in self.plan.parameters}
        if "slots" in arguments:
            size = self.plan.page_size
            newest = torch.tensor([context - 1 for context in self.step.contexts], device=self.device)
            page = arguments["block_table"].gather(1, (newest // size)[:, None])[:, 0]
            arguments["slots"] = (page * size + newest % size).int()
        return arguments

    def _tensor(self, p: Parameter, generator: torch.Generator) -> torch.Tensor:
        if p.role == "step":
            return self._step_tensor(p, generator)
        dims = {**self.dims, "pages": sum(self._pages)}
        shape, dtype = [dims[d] if isinstance(d, str) else d for d in p.type.shape], TORCH_DTYPES[p.type.dtype]
        if dtype == torch.int8:
            return torch.randint(-127, 128, shape, dtype=dtype, device=self.device, generator=generator)
        if not dtype.is_floating_point:
            return torch.zeros(shape, dtype=dtype, device=self.device)
        if p.role == "scale":
            return torch.rand(shape, dtype=dtype, device=self.device, generator=generator) / 4096
        scale = shape[-1] ** -0.5 if p.role == "weight" and len(shape) == 2 else 1.0
        return torch.empty(shape, dtype=dtype, device=self.device).normal_(0.0, scale, generator=generator)

    def _step_tensor(self, p: Parameter, generator: torch.Generator) -> torch.Tensor:
        step, sequences = self.step, len(self.step.contexts)
        starts = _starts(step.tokens, sequences)
        if p.name == "block_table":
            table = torch.zeros((sequences, int(p.type.shape[1])), dtype=torch.int32, device=self.device)
            pool = torch.randperm(sum(self._pages), device=self.device, generator=generator).int().split(self._pages)
            for row, pages in zip(table, pool):
                row[: len(pages)] = pages
            return table
        values = {
            "context_len": list(step.contexts),
            "query_start": starts,
            "rows": [i * step.tokens // step.rows for i in range(step.rows)],
            "positions": [c - (b - a) + i for c, a, b in zip(step.contexts, starts, starts[1:]) for i in range(b - a)],
        }
        size = {"ids": step.tokens, "slots": step.tokens}.get(p.name, 0)
        return torch.tensor(values.get(p.name, [0] * size), dtype=TORCH_DTYPES[p.type.dtype], device=self.device)
