"""Traced graphs against transformers: the same logits for requests of different lengths in one step, token by token, in f32."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from zoo import ARCHITECTURES, build, ragged_prompts, reference_logits, save

from tilewright.frontend.trace import Trace, trace, trace_config
from tilewright.ir.errors import CheckpointError, TraceError
from tilewright.ir.interpreter import interpret
from tilewright.ir.reference import Batch
from tilewright.ir.verifier import verify

pytestmark = pytest.mark.usefixtures("traced_anew")

PROMPTS = ragged_prompts(n=4, seed=3)


def run(traced: Trace, prompts: list[list[int]]) -> torch.Tensor:
    """Logits of every token of every prompt, all in one step."""
    ids = torch.tensor([token for prompt in prompts for token in prompt], dtype=torch.int32)
    positions = torch.cat([torch.arange(len(prompt)) for prompt in prompts]).int()
    rows = torch.arange(len(ids), dtype=torch.int32)
    inputs = {"ids": ids, "positions": positions, "rows": rows}
    return interpret(traced.graph, inputs, traced.weights, batch=Batch.of_lengths([len(p) for p in prompts]))[0]


def small(name: str):
    config = ARCHITECTURES[name]()
    config.num_hidden_layers = 2
    return config


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_ragged_step_gives_the_logits_of_transformers(name):
    model = build(name, seed=5)
    wanted = torch.cat([reference_logits(model, prompt) for prompt in PROMPTS])
    traced = trace(model)
    verify(traced.graph, levels=("core",))
    assert relative_error(run(traced, PROMPTS), wanted) < 2e-6


OTHERS = {
    "bloom": {"hidden_size": 48, "n_layer": 2, "n_head": 3},
    "mpt": {"d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 96},
    "codegen": {"n_embd": 48, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "n_positions": 96},
    "gpt_neo": {"hidden_size": 48, "num_layers": 2, "num_heads": 3, "attention_types": [[["global", "local"], 1]], "window_size": 7},
    "opt": {
        "hidden_size": 48,
        "ffn_dim": 100,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "word_embed_proj_dim": 24,
        "do_layer_norm_before": False,
    },
    "cohere": {"hidden_size": 48, "intermediate_size": 100, "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1},
}


@pytest.mark.parametrize("model_type", OTHERS)
def test_an_architecture_that_nobody_prepared_traces_too(model_type):
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = AutoConfig.for_model(model_type, **{"vocab_size": 101, **special, **OTHERS[model_type]})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    prompts = [[token % 101 for token in prompt] for prompt in PROMPTS]
    wanted = torch.cat([reference_logits(model, prompt) for prompt in prompts])
    assert relative_error(run(trace(model), prompts), wanted) < 2e-6


def test_a_checkpoint_gives_the_graph_and_the_logits_of_its_model(tmp_path):
    traced = trace(save("llama3", tmp_path, seed=5))
    model = build("llama3", seed=5)
    assert str(traced) == str(trace(model))
    assert relative_error(run(traced, PROMPTS), torch.cat([reference_logits(model, prompt) for prompt in PROMPTS])) < 2e-6


def test_the_choice_of_rows_chooses_the_logits():
    traced = trace(build("gpt2"))
    inputs = {"ids": torch.tensor([4, 9, 2, 7]).int(), "positions": torch.arange(4).int(), "rows": torch.tensor([3, 1]).int()}
    every = run(traced, [[4, 9, 2, 7]])
    assert torch.allclose(interpret(traced.graph, inputs, traced.weights)[0], every[[3, 1]], atol=1e-6)


def test_the_window_and_the_softcap_stand_on_the_attention_op():
    attentions = trace_config(small("gemma2"), "bfloat16")[1].graph.find("attention")
    assert [(op.attrs["layer"], op.attrs["window"], op.attrs["softcap"]) for op in attentions[:2]] == [(0, 8, 3.0), (1, None, 3.0)]


def test_repeated_heads_are_kept_once():
    attention = trace_config(small("falcon_40b"), "float32")[1].graph.find("attention")[0]
    assert (attention.attrs["heads"], attention.attrs["kv_heads"]) == (4, 2)
    attention = trace_config(small("falcon_7b"), "float32")[1].graph.find("attention")[0]
    assert (attention.attrs["heads"], attention.attrs["kv_heads"]) == (4, 1)


def test_alibi_slopes_become_a_constant_of_the_attention_op():
    imported = trace_config(small("falcon_alibi"), "float32")[1]
    (slopes,) = imported.constants.values()
    assert {op.operand("slopes").name for op in imported.graph.find("attention")} == set(imported.constants)
    assert torch.allclose(slopes[:-1] / slopes[1:], torch.tensor(4.0))  # four heads: 1/4, 1/16, 1/64, 1/256, and Falcon's 1/sqrt(d)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_length_dependent_rotary_scaling_is_frozen_for_the_longest_request(kind):
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    sizes = {
        "vocab_size": 131,
        "hidden_size": 48,
        "intermediate_size": 56,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
    }
    longrope = {"rope_type": "longrope", "original_max_position_embeddings": 16, "short_factor": [1.0] * 8, "long_factor": [3.0] * 8}
    scaling = longrope if kind == "longrope" else {"rope_type": "dynamic", "factor": 2.0}
    config = AutoConfig.for_model(
        "llama", **sizes, **special, max_position_embeddings=64 if kind == "longrope" else 16, rope_parameters={"rope_theta": 1e4, **scaling}
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    prompt = [(7 * i) % 131 for i in range(29)]
    wanted = reference_logits(model, prompt)
    assert relative_error(run(trace(model, max_model_len=29), [prompt]), wanted) < 2e-6
    assert relative_error(run(trace(model, max_model_len=15), [prompt]), wanted) > 1e-5


def test_the_model_info_says_what_an_engine_needs():
    info = trace(build("qwen3"), dtype="float16").info
    assert (info.architecture, info.dtype, info.vocab_size, info.max_positions) == ("Qwen3ForCausalLM", "f16", 131, 256)
    assert info.num_parameters == sum(p.numel() for p in build("qwen3").parameters())


def test_tracing_leaves_the_model_and_the_registries_as_they_were():
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model = build("llama2")
    before = (model.config.to_dict(), set(ALL_ATTENTION_FUNCTIONS), set(ALL_MASK_ATTENTION_FUNCTIONS))
    trace(model)
    assert before == (model.config.to_dict(), set(ALL_ATTENTION_FUNCTIONS), set(ALL_MASK_ATTENTION_FUNCTIONS))
    assert not next(model.parameters()).is_meta


def test_a_mixture_of_experts_is_refused_with_op_module_and_line():
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = AutoConfig.for_model("mixtral", **sizes)
    line = r"transformers/models/mixtral/modeling_mixtral\.py:\d+"
    with pytest.raises(TraceError, match=rf"op aten\.\w+ at model\.layers\.0\.mlp\S*, {line}: .*table of supported ops"):
        trace_config(config)


def test_a_recurrent_layer_is_refused():
    config = AutoConfig.for_model("mamba2", vocab_size=64, hidden_size=32, num_hidden_layers=1, num_heads=4, head_dim=16, state_size=8, n_groups=1)
    with pytest.raises(TraceError, match=r"modeling_mamba2\.py:\d+"):
        trace_config(config)


def test_a_bidirectional_model_is_refused():
    config = AutoConfig.for_model("bert", vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(TraceError, match="bidirectional"):
        trace_config(config)


def test_an_encoder_decoder_is_refused():
    config = AutoConfig.for_model("t5", vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=2)
    with pytest.raises(TraceError, match=r"'t5': is an encoder-decoder; pass a decoder-only language model"):
        trace_config(config)
    with pytest.raises(TraceError, match="encoder-decoder"):
        trace(AutoModelForSeq2SeqLM.from_config(config))


def test_a_model_without_a_language_head_is_refused():
    with pytest.raises(TraceError, match=r"LlamaModel: .*pass a causal language model"):
        trace(build("llama2").model)


def test_a_changed_model_object_is_refused():
    model = build("llama2")
    model.model.layers[1].mlp.up_proj.bias = torch.nn.Parameter(torch.zeros(100))
    with pytest.raises(TraceError, match=r"model\.layers\.1\.mlp\.up_proj\.bias is not as its config says"):
        trace(model)


def test_an_unknown_dtype_is_refused():
    with pytest.raises(TraceError, match="dtype: 'int4' is not supported; use float32, float16 or bfloat16"):
        trace(build("gpt2"), dtype="int4")


def test_something_that_is_no_model_is_refused():
    with pytest.raises(CheckpointError, match="is a list; pass a directory, a hub id"):
        trace([1, 2])  # type: ignore[arg-type]
