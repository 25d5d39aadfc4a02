"""Builds a transformers model without weights: parameters on the meta device, buffers with their real values. Knows nothing of tracing.

Position-dependent rotary scalings (dynamic, longrope) are frozen for one maximal length, because a graph cannot switch frequencies by prompt length.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tilewright.ir.errors import TraceError

LENGTH_DEPENDENT_ROTARY = ("dynamic", "longrope")


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A model on the meta device, and the values of its buffers."""

    model: PreTrainedModel
    buffers: dict[str, Tensor]  # by name, real values as the constructor computed them
    constants: frozenset[str]  # names of the buffers that no checkpoint holds
    tied: dict[str, str]  # name of a parameter that is another one -> the name under which it is kept
    dtype: torch.dtype  # of activations


def find_model_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The causal language model class of a config. Raises TraceError."""
    mapping = AutoModelForCausalLM._model_mapping
    if type(config) not in mapping:
        raise TraceError(
            f"model type {config.model_type!r}", "has no causal language model class in transformers", "pass a decoder-only language model"
        )
    found = mapping[type(config)]
    return found[0] if isinstance(found, tuple) else found  # type: ignore[return-value]  # the mapping's values are classes


def uses_attention_interface(cls: type) -> bool:
    """Whether the class asks transformers' registry for its attention function; the others write it out and need the matcher."""
    return "ALL_ATTENTION_FUNCTIONS.get_interface(" in inspect.getsource(sys.modules[cls.__module__])


def build_skeleton(
    cls: type[PreTrainedModel], config: PretrainedConfig, dtype: torch.dtype, *, attention: str | None, max_model_len: int
) -> Skeleton:
    """Builds `cls(config)` in `dtype` without allocating weights. `attention` names a registered attention function; None: the model's default."""
    _drop_quantization(config)
    options: dict[str, Any] = {"attn_implementation": attention} if attention else {}
    with _parameters_on_meta():
        model = cls._from_config(config, dtype=dtype, **options)
    model.eval()
    _keep_in_fp32(model, dtype)
    freeze_rotary(model, max_model_len)
    buffers = {name: tensor.detach().clone() for name, tensor in model.named_buffers()}
    constants = frozenset(_non_persistent_names(model))
    tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
    nn.Module.to(model, "meta")  # in place
    return Skeleton(model, buffers, constants, tied, dtype)


def freeze_rotary(model: nn.Module, max_model_len: int) -> None:
    """Fixes frequencies that depend on the length to those of `max_model_len` tokens.

    Equals transformers for every prompt in the same regime: longrope uses its long factors iff max_model_len exceeds the original length.
    """
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        if isinstance(kinds, str) and kinds in LENGTH_DEPENDENT_ROTARY:
            _freeze_frequencies(module, kinds, None, max_model_len)
            module.rope_type = "default"  # type: ignore[assignment]  # a plain attribute of the rotary module
        elif isinstance(kinds, dict):
            for layer_type, kind in kinds.items():
                if kind in LENGTH_DEPENDENT_ROTARY:
                    _freeze_frequencies(module, kind, layer_type, max_model_len)
            module.rope_type = {name: "default" if kind in LENGTH_DEPENDENT_ROTARY else kind for name, kind in kinds.items()}  # type: ignore[assignment]  # as above


def _freeze_frequencies(module: nn.Module, kind: str, layer_type: str | None, max_model_len: int) -> None:
    extra = {"layer_type": layer_type} if layer_type else {}
    frequencies, scaling = ROPE_INIT_FUNCTIONS[kind](module.config, torch.device("cpu"), seq_len=max_model_len, **extra)  # type: ignore[arg-type]  # module attribute
    prefix = f"{layer_type}_" if layer_type else ""
    module.register_buffer(f"{prefix}inv_freq", frequencies, persistent=False)
    setattr(module, f"{prefix}attention_scaling", scaling)


def _drop_quantization(config: PretrainedConfig) -> None:
    if getattr(config, "quantization_config", None) is not None:
        raise TraceError(
            f"model type {config.model_type!r}",
            "its checkpoint is already quantized (quantization_config in config.json)",
            "pass the unquantized checkpoint and ask for quantize='int8'",
        )


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Every parameter registered inside becomes a meta tensor; buffers stay real. Tied parameters stay one object."""
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.to("meta"), requires_grad=False)
        register(module, name, param)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign]  # for the length of this context
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def _keep_in_fp32(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """What from_pretrained does and from_config leaves out: some parameters stay f32 in a half-precision model."""
    kept: set[str] = set()
    if dtype in (torch.float16, torch.bfloat16):
        kept |= set(model._keep_in_fp32_modules_strict or ())
    if dtype == torch.float16:
        kept |= set(model._keep_in_fp32_modules or ())
    if not kept:
        return
    pattern = re.compile("|".join(rf"(?:^|\.){re.escape(name)}(?:$|\.)" for name in sorted(kept)))
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if pattern.search(name) and tensor.is_floating_point():
            tensor.data = tensor.data.float()


def _non_persistent_names(model: nn.Module) -> Iterator[str]:
    for path, module in model.named_modules():
        for name in module._non_persistent_buffers_set:
            yield f"{path}.{name}" if path else name
