"""Launch tables: what is bound to what, where scratch lies, and what is refused."""

import dataclasses

import pytest
from codegen_toys import FUSED_CUTS, LIMITS, cut, lower_toy, toy_graph, toy_text

from tilewright.codegen.lower import cache_of, lower
from tilewright.codegen.provenance import fold_paths, join_siblings
from tilewright.ir.errors import CodegenError
from tilewright.ir.manifest import Arg, KVCache, KVLayer
from tilewright.ir.parser import parse_graph
from tilewright.ir.regions import Regime

DECODE = Regime("decode", "decode", 8)


def test_each_layer_writes_its_own_pages_through_the_same_kernel():
    lowered = lower_toy(toy_graph(), "cpu")
    writes = [launch for launch in lowered.programs[0].launches if launch.region.endswith("rotary")]
    assert [a for launch in writes for a in launch.args if a.kind == "k_cache"] == [Arg("k_cache", "0"), Arg("k_cache", "1")]
    assert len({launch.kernel for launch in writes}) == 1


def test_the_cache_is_declared_by_the_ops():
    assert cache_of(toy_graph(dtype="bf16")) == KVCache("bf16", (KVLayer(2, 10, 10), KVLayer(2, 10, 10)))


def test_lowering_twice_gives_the_same_sources():
    assert lower_toy(toy_graph(), "cpu", FUSED_CUTS).sources == lower_toy(toy_graph(), "cpu", FUSED_CUTS).sources


def test_a_buffer_without_a_place_is_refused():
    graph = toy_graph()
    schedule = cut(graph, DECODE)
    schedule = dataclasses.replace(schedule, placements=schedule.placements[1:])
    with pytest.raises(CodegenError, match=r"region embed: %h has no place in the arena of program decode"):
        lower(graph, [schedule], target="cpu", limits=LIMITS)


def test_logits_must_be_f32():
    text = toy_text("bf16").replace("{dtype=f32} : f32[S, 37]", "{dtype=f16} : f16[S, 37]")
    graph = parse_graph(text)
    with pytest.raises(CodegenError, match=r"the first result must be logits f32\[S, vocab\]"):
        lower(graph, [cut(graph, DECODE)], target="cpu", limits=LIMITS)


def test_module_paths_fold_over_layers():
    paths = [f"model.layers.{i}.attn.{p}" for i in (0, 1, 2) for p in ("q", "k")] + ["model.norm", "h.0.mlp", "h.2.mlp"]
    assert join_siblings(fold_paths(paths)) == ["model.layers.{0..2}.attn.{q,k}", "model.norm", "h.{0,2}.mlp"]


def test_split_attention_has_scratch_behind_the_activations_and_counters_apart():
    graph = toy_graph()
    long = dataclasses.replace(LIMITS, max_input_len=8000)
    schedule = cut(graph, DECODE)
    program = lower(graph, [schedule], target="sm_90", limits=long).programs[0]
    attend = [launch for launch in program.launches if launch.region == "layers.1.attend"]
    assert len(attend) == 1
    scratch = [b for b in program.buffers if b.name.startswith(f"{attend[0].kernel}.")]
    *parts, counters = scratch
    assert [b.name.rpartition(".")[2] for b in scratch] == ["partial", "level", "counters"]
    assert all(schedule.arena_bytes <= b.offset < program.arena_bytes and b.offset % 256 == 0 for b in parts)
    assert counters.zeroed and counters.offset == 0 and counters.shape == ("B", 2)  # key-value heads
