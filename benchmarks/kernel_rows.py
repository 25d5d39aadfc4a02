"""What benchmarks/kernels.py times: kernels of Llama-3-8B as text graphs, cut as the engine cuts them, each with a peer that does the same."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

HIDDEN, INTERMEDIATE, VOCAB, HEADS, KV_HEADS, HEAD_DIM = 4096, 14336, 128256, 32, 8, 128
QKV = (HEADS + 2 * KV_HEADS) * HEAD_DIM
TOKENS = {"bf16": (1, 8, 16, 32, 64, 128, 256, 2048), "i8": (1, 8, 16, 32, 64, 128, 256)}
MOST_HEAD_TOKENS = 256
Peer = Callable[[dict[str, torch.Tensor]], torch.Tensor]  # of the arguments by parameter name


@dataclass
class Row:
    name: str
    text: str  # the graph; embeddings stand for what earlier kernels made
    anchor: str
    kind: str
    tokens: int
    bytes: int
    operations: int
    peer: Peer
    context: int = 0  # keys of the longest sequence, for attention
    sequences: int = 1
    others: int = 0  # keys of each sequence but the first, where these are fewer

    def context_of(self, sequence: int) -> int:
        return self.others if sequence and self.others else self.context


def linear_rows() -> Iterator[Row]:
    for encoding, tokens in ((e, t) for e, sizes in TOKENS.items() for t in sizes):
        yield from layer_rows(tokens, encoding)
        if tokens <= MOST_HEAD_TOKENS:
            yield linear_row("head", VOCAB, HIDDEN, tokens, encoding, logits=True)


def layer_rows(tokens: int, encoding: str) -> Iterator[Row]:
    """The products of a layer, in order. One token's norms are recomputed in the kernels that read them."""
    yield linear_row("qkv", QKV, HIDDEN, tokens, encoding, norm=tokens == 1)
    yield linear_row("out", HIDDEN, HIDDEN, tokens, encoding, residual=True)
    yield linear_row("gate_up", 2 * INTERMEDIATE, HIDDEN, tokens, encoding, norm=tokens == 1, gated=True)
    yield linear_row("down", HIDDEN, INTERMEDIATE, tokens, encoding, residual=True)


def linear_row(
    name: str, n: int, k: int, tokens: int, encoding: str, *, norm: bool = False, residual: bool = False, gated: bool = False, logits: bool = False
) -> Row:
    rows, ids = ("S", "%rows") if logits else ("T", "%ids")
    x, weight, result = "%n" if norm else "%x", "@w", "%y"
    lines = [f"  %x = embedding(@emb, {ids}) : bf16[{rows}, {k}]", f"  %r = embedding(@emb_r, {ids}) : bf16[{rows}, {n}]"]
    if norm:
        lines.append(f"  %n = rms_norm(%x, @g) {{eps=1e-05}} : bf16[{rows}, {k}]")
    if encoding == "i8":
        weight = "@q"
        lines.append(f"  @q = quantize(@w) : i8[{n}, {k}]{{scale=f32}}")
    lines.append(f"  %y = linear({x}, {weight}) : bf16[{rows}, {n}]")
    if residual or gated or logits:
        result = "%o"
    if residual:
        lines.append(f"  %o = add(%r, %y) : bf16[{rows}, {n}]")
    if gated:
        lines.append(f"  %o = gated(%y) {{activation=silu}} : bf16[{rows}, {n // 2}]")
    if logits:
        lines.append(f"  %o = cast(%y) {{dtype=f32}} : f32[{rows}, {n}]")
    params = f"  param @emb : bf16[2, {k}]\n  param @emb_r : bf16[2, {n}]\n  param @g : bf16[{k}]\n  param @w : bf16[{n}, {k}]\n"
    head = "graph @g(%ids: i32[T], %rows: i32[S]) dims(T in 1..8192, S in 1..8192)"
    text = f"{head} {{\n{params}" + "\n".join(lines) + f"\n  return {result}\n}}\n"
    num_bytes = n * k * (1 if encoding == "i8" else 2) + tokens * (k * 2 + (n // 2 if gated else n) * (4 if logits else 2))

    def peer(a: dict[str, torch.Tensor]) -> torch.Tensor:
        """The product alone, as cuBLAS does it: bf16 in any case."""
        return torch.mv(a["weight"], a["x"][0]) if tokens == 1 else F.linear(a["x"], a["weight"])

    return Row(f"{name} {encoding} T={tokens}", text, "linear", "decode", tokens, num_bytes, 2 * n * k * tokens, peer)


def attend_rows() -> Iterator[Row]:
    for sequences, context in ((1, 128), (1, 256), (1, 384), (8, 512), (16, 512), (64, 512), (128, 512), *itertools.product((1, 32), (512, 8192))):
        size = sequences * context * KV_HEADS * HEAD_DIM * 2 * 2
        yield attend_row(f"decode B={sequences} ctx={context}", "decode", sequences, sequences, context, size)
    for sequences, others in ((32, 512), (64, 512)):  # the peer pads
        size = (8192 + (sequences - 1) * others) * KV_HEADS * HEAD_DIM * 2 * 2
        yield attend_row(f"decode B={sequences} ctx=8192+{others}", "decode", sequences, sequences, 8192, size, others)
    for tokens in (2048, 8192):
        yield attend_row(f"prefill T={tokens}", "ragged", tokens, 1, tokens, tokens * QKV * 2)


def attend_row(name: str, kind: str, tokens: int, sequences: int, context: int, num_bytes: int, others: int = 0) -> Row:
    """decode: as in an engine's step, with the rotary embedding of query and key and the write of the newest key and value."""
    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    turned = f"rotary({{}}, %cos, %sin) {{{{head_dim={HEAD_DIM}, layout=half}}}}" if kind == "decode" else "reshape({}) {{shape=[T, {}]}}"
    text = f"""graph @g(%ids: i32[T]) dims(T in 1..8192) {{
  param @emb : bf16[2, {QKV}]
  param @table : bf16[2, {HEAD_DIM}]
  %cos = embedding(@table, %ids) : bf16[T, {HEAD_DIM}]
  %sin = embedding(@table, %ids) : bf16[T, {HEAD_DIM}]
  %qkv = embedding(@emb, %ids) : bf16[T, {QKV}]
  %k = slice(%qkv) {{axis=1, start={q}, stop={q + kv}}} : bf16[T, {kv}]
  %v = slice(%qkv) {{axis=1, start={q + kv}, stop={QKV}}} : bf16[T, {kv}]
  %k_turned = {turned.format("%k", kv)} : bf16[T, {kv}]
  %kv = write_kv(%k_turned, %v) {{kv_heads={KV_HEADS}, layer=0}} : kv[{KV_HEADS}, {HEAD_DIM}, {HEAD_DIM}]
  %q = slice(%qkv) {{axis=1, start=0, stop={q}}} : bf16[T, {q}]
  %q_turned = {turned.format("%q", q)} : bf16[T, {q}]
  %o = attend(%q_turned, %kv) {{heads={HEADS}, scale={HEAD_DIM**-0.5}, layer=0}} : bf16[T, {q}]
  return %o
}}
"""
    pairs = context + (sequences - 1) * (others or context) if kind == "decode" else context * (context + 1) // 2

    def peer(a: dict[str, torch.Tensor]) -> torch.Tensor:
        """Attention alone, over keys and values gathered beforehand: torch has no pages."""
        wide = a["qkv"][:, :q].unflatten(-1, (HEADS, HEAD_DIM))
        queries = wide[:, :, None] if kind == "decode" else wide.transpose(0, 1)[None]
        return F.scaled_dot_product_attention(queries, a["dense_k"], a["dense_v"], is_causal=kind == "ragged", enable_gqa=True)

    return Row(name, text, "attend", kind, tokens, num_bytes, 4 * pairs * HEADS * HEAD_DIM, peer, context, sequences, others)
