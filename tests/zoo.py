"""Tiny random-weight models of every architecture that Tilewright promises, and what transformers says about them.

Knows nothing of Tilewright: the reference is one plain forward over the whole sequence, token by token, without a cache.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

VOCAB = 131
WINDOW = 8
WEIGHT_STD = 0.12
QUIET_STD = 0.05  # embeddings and biases: louder ones drown what the layers compute, and greedy text repeats one token

_SHARED = {"vocab_size": VOCAB, "max_position_embeddings": 256, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
_LLAMA_LIKE = {**_SHARED, "hidden_size": 72, "intermediate_size": 100, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def _config(model_type: str, base: dict[str, object], **changes: object) -> Callable[[], PretrainedConfig]:
    return lambda: AutoConfig.for_model(model_type, **{**base, **changes})


_GPT = {**_SHARED, "n_embd": 48, "n_head": 3, "n_positions": 256}
_FALCON = {**_SHARED, "hidden_size": 96, "num_attention_heads": 4, "ffn_hidden_size": 100}

# Sizes are odd where the architecture allows it; a head has a multiple of 8 columns everywhere.
ARCHITECTURES: dict[str, Callable[[], PretrainedConfig]] = {
    "llama2": _config("llama", _LLAMA_LIKE, num_key_value_heads=4, head_dim=16, rms_norm_eps=1e-5),
    "llama3": _config("llama", _LLAMA_LIKE, tie_word_embeddings=True, rope_parameters=_LLAMA3_ROPE),
    "mistral": _config("mistral", _LLAMA_LIKE, sliding_window=WINDOW, head_dim=16),
    # Qwen2 and Phi-3 have no free head_dim: it is hidden_size / num_attention_heads.
    "qwen2": _config("qwen2", _LLAMA_LIKE, num_attention_heads=3, num_key_value_heads=1),
    "qwen3": _config("qwen3", _LLAMA_LIKE),
    "gemma2": _config(
        "gemma2",
        _LLAMA_LIKE,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=16,
        sliding_window=WINDOW,
        query_pre_attn_scalar=20,
        attn_logit_softcapping=3.0,
        final_logit_softcapping=3.0,
    ),
    "phi3": _config("phi3", _LLAMA_LIKE, num_attention_heads=3, num_key_value_heads=3, sliding_window=WINDOW),
    "gpt2": _config("gpt2", _GPT),
    "gpt_neox": _config(
        "gpt_neox",
        {**_SHARED, "hidden_size": 72, "intermediate_size": 100},
        num_attention_heads=3,
        rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 1 / 3},
    ),
    "gptj": _config("gptj", _GPT, rotary_dim=8, n_inner=100),
    "falcon_7b": _config("falcon", _FALCON, multi_query=True, parallel_attn=True, new_decoder_architecture=False, alibi=False, bias=False),
    "falcon_40b": _config("falcon", _FALCON, num_kv_heads=2, new_decoder_architecture=True, parallel_attn=True, alibi=False, bias=False),
    # transformers rounds ALiBi slopes to bfloat16; four heads have slopes that are powers of two, where nothing is lost.
    "falcon_alibi": _config("falcon", _FALCON, multi_query=False, parallel_attn=False, new_decoder_architecture=False, alibi=True, bias=True),
}


def build(name: str, dtype: torch.dtype = torch.float32, seed: int = 0, layers: int = 2) -> PreTrainedModel:
    """The architecture's model with every parameter random (norm scales and biases too), in eval mode on the CPU.

    The weights are drawn in float32 and then rounded, so that two dtypes are the same model.
    """
    config = ARCHITECTURES[name]()
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[idx % len(config.layer_types)] for idx in range(layers)]
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=_attention_of(name))
    _randomise(model, seed)
    return model.to(dtype).eval()


def save(name: str, directory: str | Path, dtype: torch.dtype = torch.float32, seed: int = 0, layers: int = 2) -> Path:
    """Write `build(name, …)` as an ordinary checkpoint (config.json, model.safetensors; no tokenizer)."""
    build(name, dtype, seed, layers).save_pretrained(directory)
    return Path(directory)


def ragged_prompts(vocab: int = VOCAB, n: int = 16, seed: int = 0) -> list[list[int]]:
    """`n` prompts of 1 to 40 tokens; the first has one token and every second one is longer than the sliding window."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    lengths = [1] + [draw(WINDOW + 1, 41) if idx % 2 else draw(1, WINDOW + 1) for idx in range(1, n)]
    return [torch.randint(0, vocab, (length,), generator=generator).tolist() for length in lengths[:n]]


@torch.no_grad()
def reference_logits(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """What transformers computes for one sequence alone: f32[len(ids), vocab]."""
    tokens = torch.tensor([ids])
    return model(input_ids=tokens, position_ids=torch.arange(len(ids))[None], use_cache=False).logits[0].float()


def reference_greedy(model: PreTrainedModel, ids: list[int], max_new_tokens: int) -> list[int]:
    """The most likely continuation, one full forward a token; no end-of-sequence token stops it."""
    sequence = list(ids)
    for _ in range(max_new_tokens):
        sequence.append(int(reference_logits(model, sequence)[-1].argmax()))
    return sequence[len(ids) :]


def _attention_of(name: str) -> str:
    # Eager Falcon adds ALiBi twice (once in the mask, once in the scores); eager is the only mode that knows Gemma 2's softcap.
    return "sdpa" if name == "falcon_alibi" else "eager"


@torch.no_grad()
def _randomise(model: PreTrainedModel, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        module = model.get_submodule(name.rpartition(".")[0])
        is_bias, is_scale = name.endswith("bias"), name.endswith("weight") and parameter.ndim == 1
        std = QUIET_STD if is_bias or isinstance(module, torch.nn.Embedding) else WEIGHT_STD
        noise = torch.randn(parameter.shape, generator=generator) * std
        parameter.copy_(noise + 1.0 if is_scale else noise)
