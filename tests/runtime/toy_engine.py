"""A hand-written engine of plain torch kernels: one attention layer, and its obvious forward to compare with."""

import hashlib
import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file

from tilewright.ir.manifest import (
    SCHEMA,
    Arg,
    Buffer,
    Extent,
    Kernel,
    KVCache,
    KVLayer,
    Launch,
    Limits,
    Manifest,
    ModelInfo,
    Program,
    Weight,
)

VOCAB, HEADS, DIM = 61, 2, 8
WIDTH = HEADS * DIM
EOS = 60

SOURCE = '''
import math
import torch


def embed(ids, positions, table, places, x):
    x.copy_(table[ids.long()] + places[positions.long()])


def project(x, weight, out):
    out.copy_(x @ weight.T)


def write(qkv, slots, k_cache, v_cache):
    heads, size, dim = k_cache.shape[1:]
    _, k, v = qkv.view(len(qkv), 3, heads, dim).unbind(1)
    for row, slot in enumerate(slots.tolist()):
        if slot >= 0:
            k_cache[slot // size, :, slot % size] = k[row]
            v_cache[slot // size, :, slot % size] = v[row]


def attend(qkv, query_start, context_len, block_table, k_cache, v_cache, out):
    heads, size, dim = k_cache.shape[1:]
    q = qkv.view(len(qkv), 3, heads, dim)[:, 0]
    for b, length in enumerate(context_len.tolist()):
        if length == 0:
            continue
        first, last = query_start[b].item(), query_start[b + 1].item()
        pages = block_table[b, : -(-length // size)].long()
        keys = k_cache[pages].transpose(1, 2).reshape(-1, heads, dim)[:length]
        values = v_cache[pages].transpose(1, 2).reshape(-1, heads, dim)[:length]
        scores = torch.einsum("thd,khd->htk", q[first:last], keys) / math.sqrt(dim)
        position = torch.arange(length - (last - first), length)
        scores = scores.masked_fill(torch.arange(length) > position[:, None], -torch.inf)
        out[first:last] = torch.einsum("htk,khd->thd", scores.softmax(-1), values).reshape(last - first, -1)


def head(x, context, rows, weight, logits):
    logits.copy_((x + context)[rows.long()] @ weight.T)
'''


def make_weights(seed: int, positions: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    shapes = {"table": (VOCAB, WIDTH), "places": (positions, WIDTH), "qkv": (3 * WIDTH, WIDTH), "head": (VOCAB, WIDTH)}
    return {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}


def forward(weights: dict[str, torch.Tensor], tokens: list[int]) -> torch.Tensor:
    """logits: f32[T, vocab] of one sequence, without any cache."""
    x = weights["table"][tokens] + weights["places"][: len(tokens)]
    q, k, v = (x @ weights["qkv"].T).view(len(tokens), 3, HEADS, DIM).unbind(1)
    scores = torch.einsum("thd,khd->htk", q, k) / math.sqrt(DIM)
    scores = scores.masked_fill(torch.ones(len(tokens), len(tokens)).triu(1).bool(), -torch.inf)
    context = torch.einsum("htk,khd->thd", scores.softmax(-1), v).reshape(len(tokens), WIDTH)
    return (x + context) @ weights["head"].T


def greedy(weights: dict[str, torch.Tensor], prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    while len(tokens) < len(prompt) + count:
        tokens.append(int(forward(weights, tokens)[-1].argmax()))
        if tokens[-1] == EOS:
            break
    return tokens[len(prompt) :]


def write_engine(directory: Path, limits: Limits, *, seed: int = 0, max_positions: int = 512) -> dict[str, torch.Tensor]:
    """Returns the weights."""
    weights = make_weights(seed, max_positions)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "kernels").mkdir(exist_ok=True)
    (directory / "kernels/toy.py").write_text(SOURCE)
    save_file(weights, directory / "weights.safetensors")
    names = ("kernels/toy.py", "weights.safetensors")
    files = {name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in names}
    make_manifest(limits, weights, files, max_positions).write(directory)
    return weights


def make_manifest(limits: Limits, weights: dict[str, torch.Tensor], files: dict[str, str], max_positions: int) -> Manifest:
    model = ModelInfo("toy", "ToyForCausalLM", VOCAB, "f32", "none", sum(w.numel() for w in weights.values()), max_positions, None, (EOS,))
    stored = tuple(Weight(name, "f32", tuple(w.shape), "weights.safetensors") for name, w in weights.items())
    programs = tuple(_make_program(kind, limits) for kind in ("decode", "ragged"))
    cache = KVCache("f32", (KVLayer(HEADS, DIM, DIM),))
    return Manifest(SCHEMA, "test", "cpu", model, limits, cache, programs, _KERNELS, stored, files)


def edit_manifest(directory: Path, **changes: object) -> None:
    path = directory / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _args(text: str) -> tuple[Arg, ...]:
    return tuple(Arg(*word.split(":")) for word in text.split())  # type: ignore[arg-type]


_CALLS = {
    "embed": _args("step:ids step:positions weight:table weight:places buffer:x"),
    "project": _args("buffer:x weight:qkv buffer:qkv"),
    "write": _args("buffer:qkv step:slots k_cache:0 v_cache:0"),
    "attend": _args("buffer:qkv step:query_start step:context_len step:block_table k_cache:0 v_cache:0 buffer:context"),
    "head": _args("buffer:x buffer:context step:rows weight:head buffer:logits"),
}
_KERNELS = tuple(
    Kernel(f"{name}_0", "torch", "kernels/toy.py", name, tuple((arg.name, "f32") for arg in args)) for name, args in _CALLS.items()
)


def _make_program(kind: str, limits: Limits) -> Program:
    tokens = limits.max_batch_size if kind == "decode" else limits.max_tokens
    buffers, offset = [], 0
    for name, shape in (("x", ("T", WIDTH)), ("qkv", ("T", 3 * WIDTH)), ("context", ("T", WIDTH)), ("logits", ("S", VOCAB))):
        buffers.append(Buffer(name, "f32", shape, offset))
        offset += -(-tokens * shape[1] * 4 // 256) * 256
    one = (Extent(), Extent(), Extent())
    launches = tuple(Launch(f"{name}_0", args, one, name) for name, args in _CALLS.items())
    return Program(f"{kind}_{tokens}", kind, tokens, offset, tuple(buffers), launches, "logits")  # type: ignore[arg-type]
