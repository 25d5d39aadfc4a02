"""What a traced graph looks like: names after modules, provenance on every op, parameters under the checkpoint's names, unit axes gone."""

import re

import pytest
import torch
from transformers import masking_utils
from zoo import ARCHITECTURES, build

from tilewright.frontend.capture import parse_mask
from tilewright.frontend.trace import trace, trace_config
from tilewright.ir.errors import TraceError

pytestmark = pytest.mark.usefixtures("traced_anew")


@pytest.fixture(scope="module")
def graph():
    config = ARCHITECTURES["llama3"]()
    config.num_hidden_layers = 2
    return trace_config(config, "bfloat16")[1].graph


def test_the_result_of_a_module_bears_the_name_of_the_module(graph):
    for name, op in {
        "model.embed_tokens": "embedding",
        "model.layers.0.self_attn.q_proj": "linear",
        "model.layers.1.input_layernorm": "mul",
        "model.layers.1.mlp.act_fn": "silu",
        "lm_head": "linear",
    }.items():
        assert graph.value(name).producer.name == op


def test_every_op_says_which_module_and_line_made_it(graph):
    unplaced = [op for op in graph.ops if not op.loc.sources or not (op.loc.modules or op.name == "gather_rows")]
    assert unplaced == []
    assert all(re.fullmatch(r"transformers/[\w./]+\.py:\d+", source) for op in graph.ops for source in op.loc.sources)
    attention = graph.find("attention")[1]
    assert attention.loc.modules == ("model.layers.1.self_attn",)
    assert attention.loc.sources[0].startswith("transformers/models/llama/modeling_llama.py:")


def test_inputs_are_flat_and_the_result_has_a_row_for_each_row_asked_for(graph):
    assert [str(v.type) for v in graph.inputs] == ["i32[T]", "i32[T]", "i32[S]"]
    assert [v.name for v in graph.inputs] == ["ids", "positions", "rows"]
    assert str(graph.outputs[0].type) == "f32[S, 131]"  # sampling reads f32, whatever the model computes in


def test_no_value_keeps_the_batch_axis(graph):
    tokens_first_or_heads = {v.type.shape[0] for v in graph.values() if "T" in v.type.shape and v.type.rank == 2}
    assert tokens_first_or_heads <= {"T", 12, 1}  # 12 frequencies times 1 row of positions, before they become [T, 12]


def test_tied_weights_are_one_parameter(graph):
    assert "lm_head.weight" not in graph.params
    assert {op.name for op in graph.params["model.embed_tokens.weight"].users} == {"embedding", "linear"}


def test_rotary_frequencies_stay_in_f32_beside_half_precision_weights(graph):
    assert graph.params["model.rotary_emb.inv_freq"].type.dtype == "f32"
    assert graph.params["model.norm.weight"].type.dtype == "bf16"


def test_equal_constants_of_the_layers_are_one_parameter():
    traced = trace(build("gptj"))
    assert list(traced.weights.constants) == ["transformer.h.0.attn.embed_positions"]


def test_a_weight_stored_as_columns_times_rows_is_turned_once():
    graph = trace(build("gpt2")).graph
    linear = graph.value("transformer.h.0.attn.c_attn").producer
    turned = linear.operand("weight").producer
    assert (turned.name, turned.is_const, turned.operands[0].name) == ("transpose", True, "transformer.h.0.attn.c_attn.weight")


def test_a_weight_turned_by_the_model_is_not_turned_again():
    linear = trace(build("falcon_7b")).graph.value("transformer.h.0.mlp.dense_4h_to_h").producer
    assert linear.operand("weight").is_param


def test_two_traces_are_the_same_text():
    assert str(trace(build("falcon_40b"))) == str(trace(build("falcon_40b")))


# -- masks ---------------------------------------------------------------------------------------------------------------------------
def test_causal_and_window_masks_are_read_from_their_functions():
    windowed = masking_utils.and_masks(masking_utils.sliding_window_overlay(9), masking_utils.causal_mask_function)
    assert parse_mask(masking_utils.causal_mask_function).window is None
    assert parse_mask(windowed).window == 9
    assert parse_mask(masking_utils.add_offsets_to_mask_function(windowed, 3, 0)).window == 9


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (masking_utils.bidirectional_mask_function, "bidirectional"),
        (masking_utils.chunked_causal_mask_function(4, torch.zeros(1)), "chunked_overlay"),
        (masking_utils.or_masks(masking_utils.causal_mask_function, masking_utils.causal_mask_function), "or_masks"),
        (lambda batch, head, query, key: query >= key, "lambda|test"),
    ],
)
def test_a_mask_of_another_meaning_is_refused(function, problem):
    with pytest.raises(TraceError, match=rf"attention mask: the model asks for .*({problem}).*; supported are causal masks and sliding windows"):
        parse_mask(function)
