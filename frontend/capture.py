"""Exports a transformers model over a flattened token batch, with one opaque attention op per layer. Knows nothing of our graph.

Inputs are input_ids, positions: i64[T] and rows: i64[S] (rows of T whose logits are wanted); the output is logits[S, vocab].
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers.masking_utils as masking
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.overrides import TorchFunctionMode
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_utils import AttentionInterface

from tilewright.frontend.skeleton import Skeleton, build_skeleton, uses_attention_interface
from tilewright.ir.errors import TraceError

IMPLEMENTATION = "tilewright"  # our name in transformers' registries
MAX_TOKENS = 65536
ROOT = "hf"  # attribute of the traced root that holds the model; stripped from every module path


@dataclass(frozen=True, slots=True)
class MaskSpec:
    """What a mask means, in place of the tensor. Same-request visibility is not part of it: the engine knows requests."""

    window: int | None = None  # a key is visible iff query - key < window


@dataclass(slots=True)
class Capture:
    """An exported program and what must be known beside it."""

    program: ExportedProgram
    skeleton: Skeleton
    through_interface: bool  # False: attention is still written out and the matcher must find it
    constants: dict[str, Tensor] = field(default_factory=dict)  # found by later steps (ALiBi slopes)


@torch.library.custom_op("tilewright::attention", mutates_args=())
def attention(
    q: Tensor, k: Tensor, v: Tensor, layer: str, scale: float, window: int | None, softcap: float | None,
    sinks: Tensor | None, alibi_slopes: Tensor | None,
) -> Tensor:  # fmt: skip
    """Causal attention inside each request: q[T, heads, d], k[T, kv_heads, d], v[T, kv_heads, e] -> [T, heads, e]. Only ever traced."""
    raise NotImplementedError("tilewright::attention stands for an op of the graph; run the graph instead")


@attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: object) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[1], v.shape[2])


class FlatModel(nn.Module):
    """The traced root: one step's tokens on one axis, logits for the rows asked for."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.hf = model
        self.takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def forward(self, input_ids: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        """input_ids: i64[T], positions: i64[T], rows: i64[S] -> logits[S, vocab]."""
        where = {"position_ids": positions.unsqueeze(0)} if self.takes_positions else {}
        return self.hf(input_ids=input_ids.unsqueeze(0), use_cache=False, logits_to_keep=rows, **where).logits.squeeze(0)


def capture_model(cls: type[PreTrainedModel], config: PretrainedConfig, dtype: torch.dtype, max_model_len: int) -> Capture:
    """Builds the model on the meta device and exports it. Raises TraceError naming the line of the modeling file that stopped it."""
    through_interface = uses_attention_interface(cls)
    paths: dict[nn.Module, str] = {}
    with _registered(paths):
        skeleton = build_skeleton(cls, config, dtype, attention=IMPLEMENTATION if through_interface else None, max_model_len=max_model_len)
        if "logits_to_keep" not in inspect.signature(skeleton.model.forward).parameters:
            problem = "its forward gives no logits for chosen rows (no argument logits_to_keep)"
            raise TraceError(cls.__name__, problem, "pass a causal language model (a class named ...ForCausalLM)")
        paths.update((module, path) for path, module in skeleton.model.named_modules())
        try:
            program = _export(FlatModel(skeleton.model))
        except TraceError:
            raise
        except Exception as error:
            raise _explain(cls, error) from error
    if through_interface:
        _check_token_range(cls, program)
    return Capture(program, skeleton, through_interface)


def parse_mask(function: Callable[..., Any]) -> MaskSpec:
    """Reads a transformers mask function by walking the closures that masking_utils builds. Raises TraceError for any but causal and window."""
    parts = list(_walk_mask(function))
    unknown = [text for kind, text in parts if kind == "unknown"]
    if unknown:
        raise TraceError("attention mask", f"the model asks for {unknown[0]}", "supported are causal masks and sliding windows")
    if ("causal", None) not in parts:
        raise TraceError("attention mask", "the model asks for bidirectional attention", "supported are causal masks and sliding windows")
    windows = [size for kind, size in parts if kind == "window"]
    return MaskSpec(window=min(windows) if windows else None)


def _walk_mask(function: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    name = getattr(function, "__qualname__", repr(function)).split(".")[0]
    code = getattr(function, "__code__", None)
    cells = dict(zip(code.co_freevars, (c.cell_contents for c in function.__closure__ or ()))) if code else {}  # type: ignore[attr-defined]  # functions only
    if function is masking.causal_mask_function:
        yield "causal", None
    elif name == "and_masks":
        for part in cells["mask_functions"]:
            yield from _walk_mask(part)
    elif name == "sliding_window_overlay":
        yield "window", int(cells["sliding_window"])
    elif name == "add_offsets_to_mask_function":
        yield from _walk_mask(cells["mask_function"])
    elif name != "packed_sequence_mask_function":  # the same-request condition, which the engine applies itself
        yield "unknown", name


def _make_mask(*args: object, mask_function: Callable[..., Any] = masking.causal_mask_function, **_: object) -> MaskSpec:
    return parse_mask(mask_function)


# Arguments that models pass along and that change nothing without a cache, in evaluation mode.
_BENIGN = {
    "position_ids", "cache_position", "use_cache", "output_attentions", "is_causal", "head_mask", "position_embeddings", "output_hidden_states",
    "output_router_logits", "return_dict", "labels", "num_items_in_batch", "layer_idx", "logits_to_keep", "dropout",
}  # fmt: skip


def _make_attention(paths: dict[nn.Module, str]) -> Callable[..., tuple[Tensor, None]]:
    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: object, scaling: float | None = None,
        sliding_window: int | None = None, softcap: float | None = None, s_aux: Tensor | None = None, **others: object,
    ) -> tuple[Tensor, None]:  # fmt: skip
        """query[1, heads, T, d], key[1, kv_heads, T, d], value[1, kv_heads, T, e] -> [1, T, heads, e]. The window is the mask's."""
        layer = paths[module]
        if not isinstance(attention_mask, MaskSpec):
            raise TraceError(
                layer, f"{type(module).__name__} hands its attention function a {type(attention_mask).__name__} as mask, not the one it was given"
            )
        strange = [name for name, given in others.items() if name not in _BENIGN and given is not None]
        if strange:
            raise TraceError(layer, f"attention receives the unsupported argument {strange[0]!r}")
        q, k, v = (t.squeeze(0).transpose(0, 1) for t in (query, key, value))
        scale = float(scaling if scaling is not None else query.shape[-1] ** -0.5)
        out = torch.ops.tilewright.attention(q, k, v, layer, scale, attention_mask.window, softcap, s_aux, None)
        return out.unsqueeze(0), None

    return attend


class _ConstantsAsCalls(TorchFunctionMode):
    """Records scalars and one-element index lists as calls that keep the value: lifted as constants, they lose it on the meta device."""

    def __torch_function__(self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and args and isinstance(args[0], bool | int | float):
            return torch.full((), args[0], dtype=kwargs.get("dtype"), device=kwargs.get("device"))
        if func is Tensor.__getitem__ and isinstance(args[1], tuple):
            args = (args[0], tuple(_as_slice(item) for item in args[1]))
        return func(*args, **kwargs)


def _as_slice(item: object) -> object:
    """x[..., [i]] is x[..., i:i+1]."""
    if isinstance(item, list) and len(item) == 1 and isinstance(item[0], int):
        return slice(item[0], item[0] + 1 or None)
    return item


@contextmanager
def _registered(paths: dict[nn.Module, str]) -> Iterator[None]:
    """Our attention and mask functions under our name in transformers' registries, for the time of one trace."""
    registries = (AttentionInterface, masking.AttentionMaskInterface)  # class-wide: transformers looks masks up there only
    for registry, function in zip(registries, (_make_attention(paths), _make_mask)):
        registry.register(IMPLEMENTATION, function)
    try:
        yield
    finally:
        for registry in registries:
            registry._global_mapping.pop(IMPLEMENTATION, None)


def _export(root: FlatModel) -> ExportedProgram:
    """Samples have distinct sizes, neither 0 nor 1, because export specialises those."""
    tokens = torch.empty(7, dtype=torch.long, device="meta")
    rows = torch.empty(3, dtype=torch.long, device="meta")
    size = torch.export.Dim.DYNAMIC(min=1, max=MAX_TOKENS)
    shapes = {"input_ids": {0: size}, "positions": {0: size}, "rows": {0: size}}
    with torch.no_grad(), _ConstantsAsCalls():
        return torch.export.export(root, (tokens, tokens.clone(), rows), dynamic_shapes=shapes, strict=False)


def _check_token_range(cls: type, program: ExportedProgram) -> None:
    for bounds in program.range_constraints.values():
        if bounds.upper < MAX_TOKENS:
            raise TraceError(cls.__name__, f"its graph holds for at most {bounds.upper} tokens of a step, {MAX_TOKENS} are asked for")


def _explain(cls: type, error: Exception) -> TraceError:
    """Names the deepest line of a modeling file on the way to the error."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "modeling_" in Path(f.filename).name and "transformers" in f.filename]
    model_frames = [f for f in frames if Path(f.filename).name not in ("modeling_utils.py", "modeling_rope_utils.py")] or frames
    place = f"{Path(model_frames[-1].filename).name}:{model_frames[-1].lineno}" if model_frames else cls.__name__
    first_line = (str(error).strip().splitlines() or [""])[0]
    if "DataDependent" in type(error).__name__:
        return TraceError(
            f"{cls.__name__} at {place}", f"control flow depends on token values ({first_line})", "this architecture cannot become one graph yet"
        )
    return TraceError(f"{cls.__name__} at {place}", f"does not trace: {type(error).__name__}: {first_line}", "this architecture is not supported yet")
