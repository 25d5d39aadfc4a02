"""Torch kernels against the reference interpreter: prompts in chunks, then decode steps with padding rows, over pages full of NaN."""

import pytest
import torch
from codegen_toys import FUSED_CUTS, LAYER_CUTS, Executor, ToyWeights, lower_toy, serve, torch_call, toy_graph

OPTIONS = {
    "plain": {},
    "partial rotary": {"rotary_dim": 6},
    "interleaved rotary": {"rotary_dim": 8, "layout": "interleaved"},
    "window": {"attend": ", window=3"},
    "softcap": {"attend": ", softcap=2.0"},
    "int8": {"int8": True},
    "slopes": {"slopes": True},
}


@pytest.mark.parametrize("cuts", [LAYER_CUTS, FUSED_CUTS], ids=["cut everywhere", "fused"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_f32_is_the_reference(options, cuts):
    graph = toy_graph(**options)
    weights = ToyWeights(graph)
    lowered = lower_toy(graph, "cpu", cuts)
    for got, expected in serve(Executor(lowered, weights, torch_call(lowered), 24), graph, weights):
        torch.testing.assert_close(got, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_half_precision_rounds_as_the_reference_does(dtype):
    graph = toy_graph(dtype=dtype)
    weights = ToyWeights(graph)
    lowered = lower_toy(graph, "cpu", FUSED_CUTS)
    for got, expected in serve(Executor(lowered, weights, torch_call(lowered), 24), graph, weights):
        torch.testing.assert_close(got, expected, rtol=0.02, atol=0.05)


def test_equal_layers_share_their_kernels():
    lowered = lower_toy(toy_graph(layers=3), "cpu")
    decode = lowered.programs[0]
    assert len({launch.kernel for launch in decode.launches if launch.region.endswith(".qkv")}) == 1
    assert len(decode.launches) == 3 * len(LAYER_CUTS) + 4


def test_source_says_where_it_came_from():
    lowered = lower_toy(toy_graph(), "cpu", FUSED_CUTS)
    name = next(k.name for k in lowered.kernels if k.name.startswith("qkv"))
    text = lowered.sources[name]
    assert "# from    model.layers.{0..1}.in_norm, model.layers.{0..1}.attn.qkv" in text
    assert f"def {name}(x, rms_norm_weight, weight, bias, out):" in text
    assert "F.linear(rms_norm, weight, bias)  # %qkv  model.layers.{0..1}.attn.qkv" in text
