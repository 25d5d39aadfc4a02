"""Reasons: what fired, what nearly fired, and why kernels were cut, by a glob of a rule, a pass, a tensor or a module."""

import pytest
from recorded import engine_run, llama_run

from tilewright.ir.errors import EngineError


@pytest.mark.parametrize(
    "pattern, said, kept_silent",
    [
        ("fuse-*", ["pass 17 fuse-qkv", "pass 18 fuse-gate-up", '"three products of one activation"'], ["raise-rotary"]),
        ("raise-bias", ["missed x31 [L=1..31]  .add", "is no constant of one value for each column"], ["pass 05"]),
        ("join-reshapes", ["event x", "join-reshapes:"], ["raise-rotary"]),
        ("model.norm", ["pass 05 raise-rms-norm", "event x1  model.norm"], ["[L="]),
        ("%model.layers.7.mlp.mul", ["x1 [L=7]", "linear linear gated -> interleave linear gated"], ["x32"]),
        ("self_attn", ["raise-rotary", "fuse-qkv"], ["raise-gated"]),
        ("raise-gelu", ["pass 06 raise-gelu", "nothing fired, nothing nearly fired"], []),
    ],
)
def test_a_pattern_finds_what_it_names(pattern, said, kept_silent):
    text = str(llama_run().why(pattern))
    assert all(words in text for words in said), text
    assert not any(words in text for words in kept_silent), text


def test_cuts_stand_with_their_reasons():
    text = str(engine_run("llama3").why("mlp"))
    assert "regions" in text
    assert 'cut x2 [L=0..1]  decode: .mlp.mul.gate_up  linear: linear gated  "epilogue gated: needs no other row"' in text


def test_a_tensor_that_no_rule_touched_is_said_to_be_so():
    assert str(llama_run().why("ids")) == "no rule fired there, or nearly did"


@pytest.mark.parametrize(
    "pattern, said",
    [
        ("fuse-qvk", "nothing fits 'fuse-qvk'; did you mean 'fuse-qkv'?"),
        ("zzz", "nothing fits 'zzz'; it has the passes and rules cut-early"),
    ],
)
def test_a_pattern_that_fits_nothing_gets_a_suggestion(pattern, said):
    with pytest.raises(EngineError) as caught:
        llama_run().why(pattern)
    assert said in str(caught.value)


def test_a_pass_that_did_not_run_is_named_with_how_to_run_it():
    with pytest.raises(EngineError, match=r"pass 'fuse-qkv' is not in its pipeline \(simplify\); build with TILEWRIGHT_PASSES=\+fuse-qkv"):
        llama_run(2, "simplify").why("fuse-qkv")
