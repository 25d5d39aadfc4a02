"""A plan with one of several tiles, emitted and compiled: what the tuner measures and benchmarks sweep. Knows no device."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from tilewright.codegen.aot import Compiled, Progress, compile_each, strip_comments
from tilewright.codegen.emission import Emission
from tilewright.codegen.linear_product import Product, tile_of
from tilewright.codegen.lower import make_kernel
from tilewright.codegen.plan import KernelPlan
from tilewright.codegen.source import emit
from tilewright.codegen.tile_moves import Move, list_moves
from tilewright.ir.errors import CodegenError
from tilewright.ir.manifest import Kernel


@dataclass(eq=False)
class Candidate:
    """`compiled` has one binary for each kernel of the emission; it stays empty, and `problem` says why, where one does not compile."""

    plan: KernelPlan  # with the move in its config
    move: Move  # empty: the default tile
    emission: Emission
    compiled: list[Compiled] = field(default_factory=list)
    problem: str = ""

    @staticmethod
    def of(plan: KernelPlan, move: Mapping[str, int]) -> Candidate:
        """Raises CodegenError for a tile that the template refuses."""
        moved = plan.with_tile(move)
        return Candidate(moved, dict(move), emit(moved))

    @property
    def kernels(self) -> list[Kernel]:
        return [make_kernel(self.plan, self.emission, position) for position in range(len(self.emission.kernels))]

    @cached_property
    def code(self) -> str:
        """Digest of what is launched and how, whatever the region is called: equal code has equal speed."""
        texts = [
            (re.sub(rf"\b{text.entry}\b", "kernel", strip_comments(text.source)), sorted(text.constants.items()), text.num_warps, text.num_stages,
             repr(text.grid), text.dependent_launch)
            for text in self.emission.kernels
        ]  # fmt: skip
        return hashlib.sha256(repr((texts, self.emission.workspaces)).encode()).hexdigest()[:12]

    @property
    def tile(self) -> dict[str, int]:
        """All that was chosen, by the default or by the move: fields of LinearTile or constants of the kernel."""
        if self.plan.template == "linear":
            return {name: int(value) for name, value in dataclasses.asdict(tile_of(Product.of(self.plan))).items()}
        text = self.emission.kernels[0]
        return {**{name.lower(): value for name, value in text.constants.items()}, "num_warps": text.num_warps, "num_stages": text.num_stages}


def list_candidates(plan: KernelPlan, most: int = 0) -> list[Candidate]:
    """The default first, then moves that give other code: the first `most` of them (0: all)."""
    found = [Candidate.of(plan, {})]
    seen = {found[0].code}
    for move in list_moves(plan):
        if most and len(found) > most:
            break
        try:
            candidate = Candidate.of(plan, move)
        except CodegenError:
            continue  # no tile of this template
        if candidate.code not in seen:
            seen.add(candidate.code)
            found.append(candidate)
    return found


def compile_candidates(candidates: Sequence[Candidate], arch: str, jobs: int = 0, progress: Progress | None = None) -> None:
    """Fills in `compiled` or `problem`, in parallel and from the kernel cache."""
    kernels = {kernel.name: (kernel, text.source) for c in candidates for kernel, text in zip(c.kernels, c.emission.kernels)}
    sources = {name: source for name, (_, source) in kernels.items()}
    results = compile_each([kernel for kernel, _ in kernels.values()], sources, [arch], jobs, progress)
    for candidate in candidates:
        own = [results[kernel.name, arch] for kernel in candidate.kernels]
        candidate.compiled = [result for result in own if isinstance(result, Compiled)]
        problems = [result.problem for result in own if isinstance(result, CodegenError)]
        if problems:
            candidate.compiled, candidate.problem = [], problems[0].splitlines()[0]
