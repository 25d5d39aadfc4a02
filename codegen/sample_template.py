"""Sampling kernels of an engine: one token per row of logits f32[S, vocab], by the row's own parameters, without sorting. Knows no model.

A row is read in parts by many programs, then ended by one; what is read twice is read in the same order of passes whatever the batch:

    scan     [parts, S]  penalties; each part's largest logit, its token, and the sum of weights exp((x - largest) / temperature)
    settle   [S]         ends greedy rows, and rows that draw from all tokens: a part by the parts' sums, then a token in that part.
                         For a filtered row, a bracket: weights that the filters' threshold is hardly under, and hardly over
    collect  [parts, S]  each part's mass over the bracket, and a list of the tokens in it; parts under the bracket are not read
    choose   [S]         the threshold of top_k (by count), then of top_p (by mass), in the list; then the token

The bracket is open above where few tokens are over its lower bound: the list then has all that may be kept, and FEW of them are compared all
with all. Else the list is put into bins by the bits of the weights, the bin of the threshold is searched, and the token is found by the
parts' masses. A flat distribution keeps most of its tokens, but only some thousands are near the threshold. The lower bound comes from the
parts' largest logits where they tell enough, and both from histograms of a sample of PROBES tokens, which each bound misses with a
probability of exp(-SURENESS). A row that they miss, or where more tokens tie than a list holds, is searched whole by one program.

So each token is read once in a greedy or an unfiltered batch (a greedy one has kernels without parameters), and at most twice where rows
are filtered.

Exact for any logits: the sample decides only where to look. Weights order tokens by their bits, sums are whole numbers of 1 / SCALE of the
largest weight (SCALE is such that a vocabulary of the largest weights fits 62 bits), so they depend neither on the order of programs nor on
the batch; what top_p takes its share of is the sum of the parts' sums, in their order. Ties at a threshold are kept. A token whose weight is
under 1 / SCALE is not drawn.

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

CAPACITY = 16384  # tokens that a row's list holds; fewer than the vocabulary has, since Triton 3.6 fails where a list could hold them all
MOST_LEFT = 1024  # tokens that a search of a whole row ends with
FEW = 256  # tokens of a list that are compared all with all
SHORTEST = 16  # of the three
LOG_BINS = 8  # of the bins of the bracket's keys
CHUNK = 1024  # tokens or keys that one program reads at a time where it reads many alone
PROBES = 4096  # tokens of the sample
FEWEST_PROBES = 512  # of a small vocabulary: one for each thread
PROBE_BINS = 128  # of its logits, twice
SURENESS = 12  # a bound from the sample is wrong with a probability of exp(-SURENESS)
MIN_PART, MOST_PARTS = 1024, 256

_TYPES = {
    "logits": "*f32", "history": "*i16", "slots": "*i64", "params": "*f32", "uniform": "*f64", "tokens": "*i32", "last_token": "*i32",
    "part_top": "*f32", "part_token": "*i32", "part_sum": "*f32", "part_over": "*i64", "part_num_over": "*i32",
    "part_start": "*i32", "part_found": "*i32", "row_top": "*f32", "row_total": "*i64", "row_low": "*i32", "row_high": "*i32", "row_shift": "*i32",
    "num_found": "*i32", "found_key": "*i32", "found_token": "*i32", "left_key": "*i32", "bin_count": "*i32", "bin_mass": "*i64",
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


def emit_sampling(
    vocab: int, *, dependent_launch: bool, part: int | None = None, capacity: int = CAPACITY, num_warps: Mapping[str, int] = _NUM_WARPS
) -> EmittedSampling:
    """Kernels for rows of `vocab` logits. part: tokens that one program reads; capacity: that a row's list holds; both powers of two.

    num_warps: by kernel, 4 by default.
    """
    part = part or choose_part(vocab)
    constants = _constants(vocab, part, capacity, dependent_launch=dependent_launch)
    kernels = tuple(_kernel(entry, vocab, constants, num_warps.get(entry, 4)) for entry in KERNELS)
    sources = {kernel.name: f"{HEADER}\n{source_of(kernel.entry)}" for kernel in kernels}
    programs = tuple(SampleProgram(kind, tuple(_launch(entry, vocab, constants["NUM_PARTS"]) for entry in e)) for kind, e in _PROGRAMS.items())
    return EmittedSampling(Sampling(kernels, programs, _spaces(constants)), sources)


def choose_part(vocab: int) -> int:
    """Small parts keep a GPU busy with one row; what ends a row reads a few words of each."""
    part = MIN_PART
    while -(-vocab // part) > MOST_PARTS:
        part *= 2
    return part


def _constants(vocab: int, part: int, capacity: int, *, dependent_launch: bool) -> dict[str, int]:
    num_parts = -(-vocab // part)
    capacity = max(SHORTEST, min(capacity, (1 << (vocab - 1).bit_length()) // 2))
    probes = max(FEWEST_PROBES, min(PROBES, 1 << (vocab - 1).bit_length()))
    return {
        "VOCAB": vocab, "PART": part, "NUM_PARTS": num_parts, "LANES": 1 << (num_parts - 1).bit_length(), "PROBES": probes,
        "STRIDE": -(-vocab // probes), "PROBE_BINS": PROBE_BINS, "SURENESS": SURENESS, "CAPACITY": capacity, "BINS": 1 << LOG_BINS,
        "LOG_BINS": LOG_BINS, "FEW": min(FEW, capacity), "MOST_LEFT": min(MOST_LEFT, capacity), "CHUNK": CHUNK,
        "SCALE": 1 << (62 - vocab.bit_length()), "KEY_OF_ONE": 0x3F800000, "EARLY": int(dependent_launch),
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


def _spaces(constants: dict[str, int]) -> tuple[Space, ...]:
    parts, bins, row = ("S", constants["NUM_PARTS"]), ("S", constants["BINS"]), ("S",)
    return (
        Space("part_top", "f32", parts), Space("part_token", "i32", parts), Space("part_sum", "f32", parts), Space("part_over", "i64", parts),
        Space("part_num_over", "i32", parts), Space("part_start", "i32", parts), Space("part_found", "i32", parts),
        Space("row_top", "f32", row), Space("row_total", "i64", row), Space("row_low", "i32", row), Space("row_high", "i32", row),
        Space("row_shift", "i32", row), Space("num_found", "i32", row), Space("found_key", "i32", ("S", constants["CAPACITY"])),
        Space("found_token", "i32", ("S", constants["FEW"])), Space("left_key", "i32", ("S", constants["MOST_LEFT"])),
        Space("bin_count", "i32", bins), Space("bin_mass", "i64", bins),
    )  # fmt: skip
