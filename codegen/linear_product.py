"""What a matrix product is to its template: its sizes, what it reads, what hangs on it, and the tile that it gets. Emits no text."""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.codegen.plan import KernelPlan, Parameter, PlanOp
from tilewright.codegen.tiles import LinearTile, choose_linear, keep_order, override
from tilewright.ir.errors import CodegenError
from tilewright.ir.types import ITEM_BYTES

VIEWS = ("reshape", "slice", "expand", "gather_rows", "embedding")
_FEW_ROWS, _MOST_SEQUENCES = 64, 256  # rows whose logits are wanted, in steps with chunks of prompts; tokens of a step that may all be such rows


@dataclass(frozen=True, slots=True)
class Product:
    """The anchor of a linear region, and what hangs on it."""

    plan: KernelPlan
    n: int
    k: int
    rows: str  # dim of the rows: T or S
    x: int
    weight: Parameter
    scale: Parameter | None
    bias: int | None
    result: int
    pairs: PlanOp | None  # `gated` over interleaved columns: its result has half the columns
    after: frozenset[int]  # values that depend on the result, itself among them

    @staticmethod
    def of(plan: KernelPlan) -> Product:
        anchor = plan.anchor_op
        if anchor.op != "linear":
            raise CodegenError(f"kernel {plan.label}", f"{anchor.op} has no template for Triton", "only products with a weight [N, K] have")
        x, weight, bias = (*anchor.operands, None)[:3]
        assert x is not None and weight is not None
        if plan.producer(weight) is not None:
            raise CodegenError(f"kernel {plan.label}", "the weight of its linear is computed in the region", "weights are inputs, packed beforehand")
        parameter = plan.carrier(weight)
        scale = plan.carrier(weight, "scale") if plan.type_of(weight).encoding else None
        n, k = (int(d) for d in parameter.type.shape)
        after = _dependents(plan, anchor.result)
        pairs = [op for op in plan.ops if op.op == "gated" and len(op.operands) == 1 and op.operands[0] in after]
        rows = anchor.types[0].shape[0]
        if len(pairs) > 1 or not isinstance(rows, str) or anchor.types[0].rank != 2:
            problem = f"linear gives {anchor.types[0]}, with {len(pairs)} gated"
            raise CodegenError(f"kernel {plan.label}", problem, "it must be [T, N] with at most one")
        stray = [p.name for p in plan.outputs if p.value not in after]
        if stray:
            raise CodegenError(f"kernel {plan.label}", f"its output {stray[0]} does not depend on the product", "give it a region of its own")
        return Product(plan, n, k, rows, x, parameter, scale, bias, anchor.result, pairs[0] if pairs else None, after)

    @property
    def halved(self) -> frozenset[int]:
        """Values that have one column for each pair of columns of the product."""
        return _dependents(self.plan, self.pairs.result) if self.pairs else frozenset()

    @property
    def tokens(self) -> int:
        """The rows that tiles are chosen for: the most that a step has, 0 if unknown. Of large steps, few rows have their logits wanted."""
        most = self.plan.max_tokens
        return _FEW_ROWS if self.rows == "S" and most > _MOST_SEQUENCES else most

    @property
    def is_plain(self) -> bool:
        """x is read as it lies in memory: nothing is computed on the way."""
        return all(op.op in VIEWS for op in self.plan.cone(self.x)) and self.plan.type_of(self.x).dtype == self.dtype

    @property
    def dtype(self) -> str:
        return self.plan.anchor_op.types[0].dtype


def _dependents(plan: KernelPlan, value: int) -> frozenset[int]:
    found = {value}
    for op in plan.ops:
        if found.intersection(v for v in op.operands if v is not None):
            found.update(range(op.first, op.first + len(op.types)))
    return frozenset(found)


def tile_of(product: Product) -> LinearTile:
    """The default for its shape, with what the plan's config sets."""
    config, weight_bytes = dict(product.plan.config), ITEM_BYTES[product.weight.type.dtype]
    fixed = bool(config.get("deterministic"))
    tokens = max(product.tokens or 1 << 16, 64 if fixed else 1)
    tile = choose_linear(tokens, product.n, product.k, weight_bytes, product.dtype, config.get("arch", 90))
    return override(keep_order(tile, weight_bytes) if fixed else tile, config)
