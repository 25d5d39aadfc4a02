"""Torch text of the ops that touch the pages of the KV cache: one query per sequence (decode), or any mixture of chunks (ragged).

The pages that a batch uses are gathered; what lies behind a sequence's end, or in front of its window, is masked.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.codegen.expressions import literal
from tilewright.codegen.plan import KernelPlan, PlanOp
from tilewright.codegen.writer import Writer

_CHUNK = 256  # query rows whose scores are held at once


@dataclass(frozen=True, slots=True)
class Attend:
    """Names and sizes in the text of one attend op."""

    q: str
    k_cache: str
    v_cache: str
    slopes: str | None
    kv_heads: int
    group: int  # query heads that share a key-value head
    head_dim: int
    page_size: int
    scale: float
    window: int | None
    softcap: float | None
    wide: str  # method that gives the dtype of scores
    dtype_of: str  # tensor whose dtype the result has


def emit_write_kv(plan: KernelPlan, op: PlanOp, k: str, v: str, writer: Writer, note: str) -> None:
    """Rows with slot -1 write nothing."""
    heads, key_dim, value_dim = op.types[0].shape
    k_cache, v_cache = (plan.carrier(op.result, role).name for role in ("k_cache", "v_cache"))
    kept = writer.let("kept", "slots >= 0", note)
    slot = writer.let("slot", f"slots[{kept}].long()")
    for cache, rows, dim in ((k_cache, k, key_dim), (v_cache, v, value_dim)):
        writer.line(f"{cache}[{slot} // {plan.page_size}, :, {slot} % {plan.page_size}] = {rows}.unflatten(-1, ({heads}, {dim}))[{kept}]")


def emit_attend(plan: KernelPlan, op: PlanOp, operands: list[str], writer: Writer, note: str) -> str:
    """Emits the op and returns the name of its result, [T, heads * value_dim]."""
    heads = int(op.attr("heads"))  # type: ignore[arg-type]
    kv = op.operands[1]
    assert kv is not None
    kv_heads, head_dim, value_dim = (int(d) for d in plan.type_of(kv).shape)
    a = Attend(
        q=operands[0], k_cache=plan.carrier(kv, "k_cache").name, v_cache=plan.carrier(kv, "v_cache").name,
        slopes=operands[2] if len(operands) > 2 else None, kv_heads=kv_heads, group=heads // kv_heads, head_dim=head_dim,
        page_size=plan.page_size, scale=op.attr("scale"), window=op.attr("window"), softcap=op.attr("softcap"),  # type: ignore[arg-type]
        wide="double" if op.types[0].dtype == "f64" else "float", dtype_of=operands[0],
    )  # fmt: skip
    if plan.kind == "decode":
        return _emit_decode(a, writer, note)
    return _emit_ragged(a, heads * value_dim, writer, note)


def _emit_decode(a: Attend, writer: Writer, note: str) -> str:
    let = writer.let
    queries = let("queries", f"{a.q}.unflatten(-1, ({a.kv_heads}, {a.group}, {a.head_dim})).{a.wide}()", note)
    writer.line(f"num_pages = max(1, -(-int(context_len.max()) // {a.page_size}))")
    writer.line(f"pages = block_table[:, :num_pages].long().clamp(0, {a.k_cache}.shape[0] - 1)")
    writer.line(f"keys = {a.k_cache}[pages].transpose(1, 2).flatten(2, 3).{a.wide}()", "[B, kv_heads, N, head_dim]")
    writer.line(f"values = {a.v_cache}[pages].transpose(1, 2).flatten(2, 3).{a.wide}()")
    writer.line("row = (context_len - 1)[:, None]")
    writer.line("column = torch.arange(keys.shape[2])[None, :]")
    writer.line(f"hidden = {_hidden(a)}")
    writer.line("values = values.masked_fill(hidden[:, None, :, None], 0.0)", "pages hold anything behind the end")
    slopes = f"view(1, {a.kv_heads}, {a.group}, 1) * (column - row)[:, None, None, :]"
    _emit_scores(a, f"{queries} @ keys.transpose(2, 3)", slopes, "hidden[:, None, None, :]", writer)
    return let("context", f"(scores.softmax(-1) @ values).flatten(1).to({a.dtype_of}.dtype)")


def _emit_ragged(a: Attend, width: int, writer: Writer, note: str) -> str:
    context = writer.fresh("context")
    writer.line(f"{context} = {a.q}.new_zeros({a.q}.shape[0], {width})", note)
    writer.line("starts, lengths = query_start.tolist(), context_len.tolist()")
    with writer.block("for sequence, length in enumerate(lengths):"):
        writer.line("first, last = starts[sequence], starts[sequence + 1]")
        with writer.block("if first == last or length == 0:"):
            writer.line("continue")
        writer.line(f"pages = block_table[sequence, : -(-length // {a.page_size})].long()")
        writer.line(f"keys = {a.k_cache}[pages].transpose(0, 1).flatten(1, 2)[:, None, :length].{a.wide}()", "[kv_heads, 1, N, head_dim]")
        writer.line(f"values = {a.v_cache}[pages].transpose(0, 1).flatten(1, 2)[:, None, :length].{a.wide}()")
        with writer.block(f"for begin in range(first, last, {_CHUNK}):"):
            writer.line(f"end = min(begin + {_CHUNK}, last)")
            writer.line("seen = length - last + end", "tokens that the last row of the chunk sees")
            heads = f"({a.kv_heads}, {a.group}, {a.head_dim})"
            writer.line(f"queries = {a.q}[begin:end].unflatten(-1, {heads}).permute(1, 2, 0, 3).{a.wide}()")
            writer.line("row = torch.arange(seen - (end - begin), seen)[:, None]")
            writer.line("column = torch.arange(seen)[None, :]")
            writer.line(f"hidden = {_hidden(a)}")
            slopes = f"view({a.kv_heads}, {a.group}, 1, 1) * (column - row)"
            _emit_scores(a, "queries @ keys[:, :, :seen].transpose(2, 3)", slopes, "hidden", writer)
            writer.line(f"{context}[begin:end] = (scores.softmax(-1) @ values[:, :, :seen]).permute(2, 0, 1, 3).flatten(1).to({a.dtype_of}.dtype)")
    return context


def _hidden(a: Attend) -> str:
    return "column > row" if a.window is None else f"(column > row) | (row - column >= {a.window})"


def _emit_scores(a: Attend, product: str, slopes: str, hidden: str, writer: Writer) -> None:
    """product [..., kv_heads, group, (M,) N]; slopes: the slopes' view in that shape times the distance from row to column."""
    writer.line(f"scores = {product} * {literal(a.scale)}")
    if a.softcap is not None:
        writer.line(f"scores = {literal(a.softcap)} * torch.tanh(scores / {literal(a.softcap)})")
    if a.slopes is not None:
        writer.line(f"scores = scores + {a.slopes}.{a.wide}().{slopes}")
    writer.line(f"scores = scores.masked_fill({hidden}, torch.finfo(scores.dtype).min)")
