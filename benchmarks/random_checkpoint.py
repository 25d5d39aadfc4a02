"""Checkpoints of well-known shapes with random weights, written as sharded safetensors one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

SHARD_BYTES = 2 << 30
INDEX = "model.safetensors.index.json"
PERIOD = 16_777_213  # prime, so that rows of a repeated block of noise differ from one another
WEIGHT_STD = 0.02

_LLAMA3_ROPE = {"rope_type": "llama3", "rope_theta": 5e5, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_LLAMA = {"vocab_size": 128256, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "bos_token_id": 128000, "eos_token_id": 128001}

# name -> (model type, config); the names are those under which people know the shapes.
SHAPES: dict[str, tuple[str, dict[str, object]]] = {
    "llama-3-8b": (
        "llama",
        {**_LLAMA, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
         "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    ),
    "llama-3.2-1b": (
        "llama",
        {**_LLAMA, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
         "head_dim": 64, "tie_word_embeddings": True, "max_position_embeddings": 131072, "rope_parameters": {**_LLAMA3_ROPE, "factor": 32.0}},
    ),
    "llama-2-7b": (
        "llama",
        {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
         "num_key_value_heads": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
    ),
    "qwen3-0.6b": (
        "qwen3",
        {"vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
         "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6,
         "bos_token_id": 151643, "eos_token_id": 151645, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ),
    "gpt-j-6b": ("gptj", {"vocab_size": 50400, "n_positions": 2048, "n_embd": 4096, "n_layer": 28, "n_head": 16, "rotary_dim": 64}),
    "tiny": (
        "llama",
        {**_LLAMA, "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 1024, "bos_token_id": 1, "eos_token_id": 2},
    ),
}  # fmt: skip


def shape_config(name: str, layers: int | None = None) -> PretrainedConfig:
    model_type, settings = SHAPES[name]
    config = AutoConfig.for_model(model_type, **settings)
    if layers is not None:
        config.num_hidden_layers = layers
        if kinds := getattr(config, "layer_types", None):
            config.layer_types = kinds[:layers]
    return config


def write_checkpoint(name: str, directory: Path, *, dtype: torch.dtype = torch.bfloat16, layers: int | None = None) -> Path:
    """What save_pretrained would have written for the shape: config.json, shards of at most SHARD_BYTES, and their index, last.

    A directory that is complete is used as it is.
    """
    if (directory / INDEX).exists():
        return directory
    config = shape_config(name, layers)
    config.dtype = dtype
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.architectures = [type(model).__name__]
    directory.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(directory)
    shapes = {key: tuple(parameter.shape) for key, parameter in model.named_parameters()}
    shards = list(_split(shapes, dtype.itemsize))
    noise = torch.randn(PERIOD, generator=torch.Generator().manual_seed(0)).mul_(WEIGHT_STD).to(dtype)
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({key: _fill(key, shapes[key], noise) for key in shard}, directory / file, metadata={"format": "pt"})
        index |= dict.fromkeys(shard, file)
    total = sum(torch.Size(shape).numel() for shape in shapes.values()) * dtype.itemsize
    (directory / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=1))
    return directory


def _split(shapes: dict[str, tuple[int, ...]], itemsize: int) -> Iterator[list[str]]:
    held: list[str] = []
    size = 0
    for key, shape in shapes.items():
        num_bytes = torch.Size(shape).numel() * itemsize
        if held and size + num_bytes > SHARD_BYTES:
            yield held
            held, size = [], 0
        held.append(key)
        size += num_bytes
    yield held


def _fill(key: str, shape: tuple[int, ...], noise: torch.Tensor) -> torch.Tensor:
    """Norm scales are 1; all else is the block of noise, repeated from a place that depends on the name."""
    if len(shape) == 1:
        return (torch.ones if key.endswith("weight") else torch.zeros)(shape, dtype=noise.dtype)
    count = torch.Size(shape).numel()
    start = sum(key.encode()) * 7919 % (PERIOD // 2)
    repeats = -(-(start + count) // PERIOD)
    return noise.repeat(repeats)[start : start + count].reshape(shape).clone()
