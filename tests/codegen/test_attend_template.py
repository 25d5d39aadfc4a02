"""Paged attention kernels on Triton's interpreter against the reference: decode, split keys, ragged chunks, and compiled for three architectures."""

import dataclasses
import math
from dataclasses import dataclass

import pytest
import torch
from kernel_run import compile_case, emit_case, make_case, relative_error, run_case

from tilewright.codegen.tiles import choose_decode, machine
from tilewright.ir.errors import CodegenError
from tilewright.ir.manifest import Limits
from tilewright.ir.reference import Batch
from tilewright.ir.regions import Regime

TOLERANCE = {"f32": 3e-6, "f16": 3e-3, "bf16": 2e-2}


@dataclass(frozen=True)
class Setup:
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    value_dim: int = 16
    dtype: str = "f32"
    page: int = 16
    window: int | None = None
    softcap: float | None = None
    alibi: bool = False

    @property
    def text(self):
        q, k, v = self.heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.value_dim
        total, dtype = q + k + v + 5, self.dtype  # q starts at column 5 of its buffer
        slopes = ", @slopes" if self.alibi else ""
        extra = f", window={self.window}" * bool(self.window) + f", softcap={self.softcap}" * bool(self.softcap)
        return f"""
graph @g(%ids: i32[T]) dims(T in 1..65536) {{
  param @emb : {dtype}[97, {total}]
  param @slopes : f32[{self.heads}]
  %qkv = embedding(@emb, %ids) : {dtype}[T, {total}]
  %k = slice(%qkv) {{axis=1, start={q + 5}, stop={q + k + 5}}} : {dtype}[T, {k}]
  %v = slice(%qkv) {{axis=1, start={q + k + 5}, stop={total}}} : {dtype}[T, {v}]
  %kv = write_kv(%k, %v) {{kv_heads={self.kv_heads}, layer=0}} : kv[{self.kv_heads}, {self.head_dim}, {self.value_dim}]
  %q = slice(%qkv) {{axis=1, start=5, stop={q + 5}}} : {dtype}[T, {q}]
  %o = attend(%q, %kv{slopes}) {{heads={self.heads}, scale=0.3, layer=0{extra}}} : {dtype}[T, {self.heads * self.value_dim}]
  return %o
}}
"""

    @property
    def limits(self):
        return Limits(max_batch_size=8, max_input_len=96, max_output_len=32, max_tokens=256, page_size=self.page)


def attend(setup, kind, lengths, chunks, *, seed=0, padding=0, scale_by=1.0, writes=False, **config):
    """The step that has the last chunks[b] tokens of sequences of lengths[b]; returns (kernel's rows, reference's rows).

    writes: the kernel makes and writes the last key and value of each sequence; its pages are compared with the reference's.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 97, (sum(lengths),), generator=generator).int()
    batch = Batch.of_lengths(lengths)
    text = setup.text.replace("scale=0.3", f"scale={0.3 * scale_by}")
    case = make_case(text, "attend", "attend", {"ids": ids}, seed=seed, batch=batch, writes=writes)
    table, pages = scatter(case, setup, lengths, batch, padding, generator)
    expected_pages = {name: cache.clone() for name, cache in pages.items()}
    slots = last_slots(table, lengths, setup.page, padding)
    if writes:
        for cache in pages.values():
            cache[slots[: len(lengths)] // setup.page, :, slots[: len(lengths)] % setup.page] = math.nan
    stops = batch.starts[1:]
    tokens = torch.cat([torch.arange(stop - chunk, stop) for stop, chunk in zip(stops, chunks)] + [torch.zeros(padding)]).long()
    starts = torch.tensor([0, *torch.tensor([*chunks, *[1] * padding]).cumsum(0)]).int()
    step = {"query_start": starts, "context_len": torch.tensor([*lengths, *[0] * padding]).int(), "block_table": table, "slots": slots, **pages}
    regime = Regime("r", kind, len(tokens))
    out = run_case(case, regime, {"T": len(tokens), "B": len(lengths) + padding}, step, setup.limits, tokens=tokens, **config)["o"]
    count = sum(chunks)
    if writes:
        for name, cache in pages.items():
            torch.testing.assert_close(cache, expected_pages[name], rtol=0, atol=0, equal_nan=True)
    if padding and kind == "decode":
        assert torch.equal(out[count:], torch.zeros_like(out[count:]))
    return out[:count], case.values[case.graph.value("o")][tokens[:count]]


def scatter(case, setup, lengths, batch, padding, generator):
    """A block table of scattered pages, and pages that hold every sequence's keys and values; all else is NaN."""
    most = setup.limits.max_pages_per_sequence
    total = len(lengths) * most
    order = torch.randperm(total, generator=generator).reshape(-1, most)
    pages = {}
    for name, source, width in (("k_cache", "k", setup.head_dim), ("v_cache", "v", setup.value_dim)):
        rows = case.values[case.graph.value(source)].unflatten(-1, (setup.kv_heads, width))
        cache = torch.full((total, setup.kv_heads, setup.page, width), math.nan, dtype=rows.dtype)
        for b, (start, length) in enumerate(zip(batch.starts, lengths)):
            place = torch.arange(length)
            cache[order[b][place // setup.page], :, place % setup.page] = rows[start : start + length]
        pages[name] = cache
    used = torch.tensor([-(-length // setup.page) for length in lengths])
    table = torch.where(torch.arange(most)[None] < used[:, None], order, -1).int()  # unused entries must not be followed
    return torch.cat([table, torch.zeros(padding, most).int()]), pages


def last_slots(table, lengths, page, padding):
    """Where the last token of each sequence is kept; -1 for padding."""
    found = [int(table[b, (length - 1) // page]) * page + (length - 1) % page for b, length in enumerate(lengths)]
    return torch.tensor(found + [-1] * padding).int()


DECODES = [
    Setup(),
    Setup(heads=3, kv_heads=3, head_dim=8, value_dim=8, page=4, dtype="f16"),
    Setup(heads=6, kv_heads=2, head_dim=24, value_dim=24, dtype="bf16"),
    Setup(heads=8, kv_heads=1, head_dim=64, value_dim=32, page=32, dtype="bf16"),
    Setup(heads=4, kv_heads=1, page=4, window=9, softcap=5.0, alibi=True),
]


@pytest.mark.parametrize("writes", [False, True], ids=["reads", "writes"])
@pytest.mark.parametrize("setup", DECODES, ids=str)
def test_decode_equals_the_reference_and_padding_sequences_get_zeros(setup, writes):
    out, expected = attend(setup, "decode", [37, 1, 16], [1, 1, 1], padding=1, num_splits=1, writes=writes)
    assert relative_error(out, expected) < TOLERANCE[setup.dtype]


@pytest.mark.parametrize("setup", DECODES[::2], ids=str)
@pytest.mark.parametrize("splits, writes", [(2, False), (3, True), (4, True)])
def test_split_keys_are_put_together_again(setup, splits, writes):
    """Of 101 and 113 keys; one key, and as many as fill their pages and blocks, are not split."""
    out, expected = attend(setup, "decode", [1, 101, 33, 113], [1] * 4, padding=1, seed=1, num_splits=splits, block_n=16, writes=writes)
    assert relative_error(out, expected) < TOLERANCE[setup.dtype]


@pytest.mark.parametrize("usual", [1, 2])
@pytest.mark.parametrize("setup", DECODES[::2], ids=str)
def test_long_sequences_are_shared_by_more_programs(setup, usual):
    """Of 113 and 65 keys; parts of these have no fewer than 32, those of 35 and 48 keys as many as are usual."""
    config = {"num_splits": usual, "long_splits": 3, "long_keys": 32, "block_n": 16, "alone_blocks": 1}
    out, expected = attend(setup, "decode", [113, 35, 65, 2, 48], [1] * 5, padding=1, seed=2, writes=True, **config)
    assert relative_error(out, expected) < TOLERANCE[setup.dtype]


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("setup", DECODES, ids=str)
def test_first_and_last_block_of_a_part_may_be_one_or_have_others_between_them(setup, splits):
    lengths = [1, 17, 18, 33, 34, 49, 100]  # the newest key is in no block
    out, expected = attend(setup, "decode", lengths, [1] * 7, padding=1, seed=3, writes=True, num_splits=splits, block_n=16)
    assert relative_error(out, expected) < TOLERANCE[setup.dtype]


@pytest.mark.parametrize("setup", DECODES, ids=str)
def test_ragged_chunks_equal_the_reference(setup):
    out, expected = attend(setup, "ragged", [21, 1, 33, 40], [21, 1, 5, 17], seed=2, block_m=32, block_n=16)
    assert relative_error(out, expected) < TOLERANCE[setup.dtype]


@pytest.mark.parametrize("window", [1, 7, 16, 40])
def test_windows_hide_what_is_far_whatever_block_they_end_in(window):
    setup = Setup(heads=2, kv_heads=1, head_dim=8, value_dim=8, page=4, window=window)
    for kind, chunks, more in (("decode", [1, 1], {"writes": True}), ("decode", [1, 1], {"num_splits": 2}), ("ragged", [50, 3], {})):
        out, expected = attend(setup, kind, [50, 3], chunks, seed=window, block_n=16, **more)
        assert relative_error(out, expected) < 3e-6, kind


def test_very_negative_scores_are_not_lost():
    """Every score is about -300 in powers of two: a row that has seen no key yet must not fix its reference point at 0."""
    setup = Setup(heads=2, kv_heads=2, window=3, alibi=False)
    steep = dataclasses.replace(setup, alibi=True, window=3)
    for case in (setup, steep):
        out, expected = attend(case, "ragged", [40], [40], seed=3, block_m=32, block_n=16, scale_by=20.0)
        assert relative_error(out, expected) < 3e-6


def test_results_do_not_depend_on_what_else_is_in_the_step():
    setup = Setup(dtype="bf16")
    alone, _ = attend(setup, "ragged", [33], [9], seed=4, block_m=32)
    with_more, _ = attend(setup, "ragged", [33, 20], [9, 20], seed=4, block_m=32)
    assert torch.equal(alone, with_more[:9])


def test_attention_and_its_cache_write_are_not_one_kernel_where_a_sequence_has_many_tokens():
    setup = Setup()
    case = make_case(setup.text, "attend", "attend", writes=True)
    with pytest.raises(CodegenError, match="write_kv belongs to a region of its own"):
        emit_case(case, Regime("r", "ragged", 4), setup.limits)


def test_few_sequences_are_split_and_many_are_not():
    assert [choose_decode(4, 128, 2, sequences * 8, 8192, 90).num_splits for sequences in (1, 16, 32, 64, 128)] == [8, 4, 1, 1, 1]
    assert choose_decode(4, 128, 2, 8, 100, 90).num_splits == 1


@pytest.mark.parametrize("arch, held", [(80, 4), (89, 2), (90, 4), (100, 4)])
@pytest.mark.parametrize("group, width, size", [(4, 128, 2), (1, 64, 2), (8, 256, 2), (2, 128, 4)])
def test_programs_of_usual_sequences_come_in_one_turn_unless_there_are_more_sequences(arch, held, group, width, size):
    for programs in (1, 7, 33, 64, 200, 512, 1024, 4096):
        tile = choose_decode(group, width, size, programs, 1 << 17, arch)
        assert programs * tile.num_splits <= max(programs, held * machine(arch).num_cores)
        assert tile.num_splits == tile.most_splits or programs * tile.long_splits <= 4 * held * machine(arch).num_cores
    assert choose_decode(group, width, size, 4096, 1 << 17, arch).most_splits == 1


def test_no_more_programs_share_long_sequences_than_there_are_long_parts():
    assert [choose_decode(4, 128, 2, 256, longest, 90).long_splits for longest in (100, 1024, 1025, 3000, 8192, 1 << 17)] == [1, 1, 2, 3, 8, 8]


MODELS = {"llama-3-8b": (32, 8, 128), "llama-3.2-1b": (32, 8, 64), "gpt-j-6b": (16, 16, 256)}


@pytest.mark.parametrize("model, arch", [("llama-3-8b", "sm_90"), ("llama-3.2-1b", "sm_80"), ("gpt-j-6b", "sm_100")])
def test_kernels_of_real_shapes_compile_without_spills(model, arch):
    heads, kv_heads, width = MODELS[model]
    setup = Setup(heads, kv_heads, width, width, "bf16", page=64)
    limits = Limits(max_batch_size=8, max_input_len=8000, max_output_len=192, max_tokens=2048, page_size=64)
    for kind, tokens in (("decode", 1), ("decode", 32), ("ragged", 2048)):
        case = make_case(setup.text, "attend", "attend", writes=kind == "decode")
        for entry, binary in compile_case(case, Regime("r", kind, tokens), arch, limits):
            assert binary.stack_bytes == 0, (kind, entry, binary)
