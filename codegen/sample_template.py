"""Sampling kernels of an engine: one token per row of logits f32[S, vocab], by the row's own parameters, without sorting. Knows no model.

A row is read in parts by many programs, then ended by one; what is read twice is read in the same order of passes whatever the batch:

    scan     [parts, S]  penalties; each part's largest logit, its token, and the sum of weights exp((x - largest) / temperature)
    settle   [S]         ends greedy rows, and rows that draw from all tokens: a part by the parts' sums, then a token in that part.
                         For a filtered row, a cut: a weight that the filters' threshold is probably not under
    collect  [parts, S]  each part's mass, and a list of the tokens over the cut
    choose   [S]         the threshold of top_k (by count), then of top_p (by mass), among the collected tokens, eight pivots at a time over
                         the bits of the weights; then the token, eight pivots at a time over the bits of token ids. Where the list
                         turns out not to hold what the filters keep (flat distributions), the same over the whole row

Of 128,256 tokens a list holds 2,048; a greedy batch needs the first two kernels in a form without parameters, an unfiltered one the
first two, so each token is read once, and twice where rows are filtered.

Exact for any logits: weights order tokens by their bits, sums are whole numbers of 1 / SCALE of the largest weight (SCALE is such that a
vocabulary of the largest weights fits 62 bits), so they depend neither on the order of programs nor on the batch. Ties at a threshold are
kept. A token whose weight is under 1 / SCALE is not drawn.

Penalties read a history i16[slots, vocab]: bit 15 for the prompt, times sampled below (up to 32,767). That is half of the bytes of logits,
read once more with them; a list of the tokens seen would be shorter for short requests only, and would have to be searched for each token
sampled. logit_bias and min_tokens are applied before, to a copy of the logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tilewright.codegen.emission import HEADER
from tilewright.codegen.sample_source import KERNELS, signature_of, source_of
from tilewright.ir.manifest import Arg, Extent, Kernel, Launch, SampleProgram, Sampling, Space

CAPACITY = 2048  # tokens that a row's list holds; fewer than the vocabulary has, since Triton 3.6 fails where the list could hold them all
FEW = 256  # tokens of a list that are compared all with all
SHORTEST = 16  # of both
CHUNK = 2048  # tokens that one program reads at a time where it reads a row alone
PROBES = 4096  # weights that the cut is chosen by
MIN_PART, MOST_PARTS = 1024, 256

_TYPES = {
    "logits": "*f32", "history": "*i16", "slots": "*i64", "params": "*f32", "uniform": "*f64", "tokens": "*i32", "last_token": "*i32",
    "part_top": "*f32", "part_token": "*i32", "part_sum": "*f32", "row_top": "*f32", "row_cut": "*f32", "row_guess": "*f32", "num_found": "*i32",
    "found_key": "*i32", "found_token": "*i32", "part_mass": "*i64",
}  # fmt: skip
_PROGRAMS: dict[Literal["greedy", "draw", "filter"], tuple[str, ...]] = {
    "greedy": ("sample_scan_greedy", "sample_settle_greedy"),
    "draw": ("sample_scan", "sample_settle"),
    "filter": ("sample_scan", "sample_settle", "sample_collect", "sample_choose"),
}
_NUM_WARPS = {"sample_settle": 8, "sample_choose": 8}
_PER_PART = ("sample_scan_greedy", "sample_scan", "sample_collect")


@dataclass(frozen=True, slots=True)
class EmittedSampling:
    sampling: Sampling  # binaries are filled in by packing
    sources: dict[str, str]  # by kernel name


def emit_sampling(vocab: int, *, dependent_launch: bool, part: int | None = None, num_warps: Mapping[str, int] = _NUM_WARPS) -> EmittedSampling:
    """Kernels for rows of `vocab` logits. part: tokens that one program reads, a power of two. num_warps: by kernel, 4 by default."""
    part = part or choose_part(vocab)
    constants = _constants(vocab, part, dependent_launch=dependent_launch)
    kernels = tuple(_kernel(entry, vocab, constants, num_warps.get(entry, 4)) for entry in KERNELS)
    sources = {kernel.name: f"{HEADER}\n{source_of(kernel.entry)}" for kernel in kernels}
    programs = tuple(SampleProgram(kind, tuple(_launch(entry, vocab, constants["NUM_PARTS"]) for entry in e)) for kind, e in _PROGRAMS.items())
    return EmittedSampling(Sampling(kernels, programs, _spaces(constants["NUM_PARTS"], constants["CAPACITY"])), sources)


def choose_part(vocab: int) -> int:
    """Small parts keep a GPU busy with one row; what ends a row reads a few words of each."""
    part = MIN_PART
    while -(-vocab // part) > MOST_PARTS:
        part *= 2
    return part


def _constants(vocab: int, part: int, *, dependent_launch: bool) -> dict[str, int]:
    num_parts = -(-vocab // part)
    capacity = max(SHORTEST, min(CAPACITY, (1 << (vocab - 1).bit_length()) // 2))
    id_shift = 0
    while 8 << id_shift <= vocab:
        id_shift += 3
    return {
        "VOCAB": vocab, "PART": part, "NUM_PARTS": num_parts, "LANES": 1 << (num_parts - 1).bit_length(), "PROBES": PROBES,
        "STRIDE": -(-vocab // PROBES), "CAPACITY": capacity, "FEW": min(FEW, capacity), "CHUNK": CHUNK,
        "SCALE": 1 << (62 - vocab.bit_length()), "ID_SHIFT": id_shift, "EARLY": int(dependent_launch),
    }  # fmt: skip


def _kernel(entry: str, vocab: int, constants: dict[str, int], num_warps: int) -> Kernel:
    name, (parameters, used) = f"{entry}_{vocab}", signature_of(entry)
    return Kernel(
        name=name, language="triton", file=f"kernels/{name}.py", entry=entry, parameters=tuple((p, _TYPES[p]) for p in parameters),
        constants={name: constants[name] for name in sorted(used)}, num_warps=num_warps, num_stages=3,
        dependent_launch=bool(constants["EARLY"]),
    )  # fmt: skip


def _launch(entry: str, vocab: int, num_parts: int) -> Launch:
    args = tuple(Arg("buffer", name) for name in signature_of(entry)[0])
    rows = Extent(1, "S")
    grid = (Extent(num_parts), rows, Extent()) if entry in _PER_PART else (rows, Extent(), Extent())
    return Launch(f"{entry}_{vocab}", args, grid, entry)


def _spaces(num_parts: int, capacity: int) -> tuple[Space, ...]:
    parts = ("S", num_parts)
    return (
        Space("part_top", "f32", parts), Space("part_token", "i32", parts), Space("part_sum", "f32", parts),
        Space("part_mass", "i64", parts), Space("row_top", "f32", ("S",)), Space("row_cut", "f32", ("S",)), Space("row_guess", "f32", ("S",)),
        Space("num_found", "i32", ("S",)), Space("found_key", "i32", ("S", capacity)), Space("found_token", "i32", ("S", capacity)),
    )  # fmt: skip
