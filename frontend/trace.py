"""The front of this room: a model or checkpoint becomes a graph, the weights behind it, and what else an engine must know of the model."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from tilewright.frontend.capture import Capture, capture_model
from tilewright.frontend.checkpoint import Checkpoint, ModelWeights, WeightSource, find_model_directory, find_tokenizer_files, read_config
from tilewright.frontend.importer import DTYPES, Imported, import_graph
from tilewright.frontend.legacy_attention import restore_attention
from tilewright.frontend.normalize import normalize
from tilewright.frontend.skeleton import find_model_class
from tilewright.ir.errors import CheckpointError, TraceError
from tilewright.ir.fold import fold_text
from tilewright.ir.graph import Graph
from tilewright.ir.manifest import ModelInfo
from tilewright.ir.verifier import verify

TORCH_DTYPES = {
    "float32": torch.float32, "f32": torch.float32, "fp32": torch.float32, "float16": torch.float16, "f16": torch.float16, "fp16": torch.float16,
    "half": torch.float16, "bfloat16": torch.bfloat16, "bf16": torch.bfloat16,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Trace:
    """A traced model. `str()` is its graph as text, equal layers folded."""

    graph: Graph
    weights: TraceWeights
    info: ModelInfo
    directory: Path | None = None  # where the checkpoint lies; None for a model object
    tokenizer_files: tuple[Path, ...] = ()

    def __str__(self) -> str:
        return fold_text(self.graph)

    def __repr__(self) -> str:
        return f"<{self.info.architecture} as {len(self.graph)} ops>"


class TraceWeights:
    """The tensors behind a graph's parameters, in the dtype that the graph declares: constants of the trace, and the checkpoint's weights."""

    def __init__(self, graph: Graph, source: WeightSource, constants: dict[str, Tensor]) -> None:
        self.source = source
        self.constants = constants
        self._types = {name: value.type for name, value in graph.params.items()}

    def names(self) -> list[str]:
        return list(self._types)

    def load(self, name: str) -> Tensor:
        """Raises CheckpointError where the tensor is missing or has another shape than the model's config says."""
        tensor = self.constants[name] if name in self.constants else self.source.load(name)
        self._check_shape(name, tuple(tensor.shape))
        return tensor.to(_DTYPE_OF_NAME[self._types[name].dtype]) if name in self._types else tensor

    def check_shapes(self) -> None:
        """That every parameter is there with the shape of the graph, from the headers alone. Raises CheckpointError."""
        for name in self._types:
            if name not in self.constants:
                self._check_shape(name, self.source.shape_dtype(name)[0])

    def _check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        declared = self._types[name].shape if name in self._types else shape
        if shape != declared:
            problem = f"the checkpoint holds {list(shape)}, config.json asks for {list(declared)}"
            raise CheckpointError(f"@{name}", problem, "config.json and the weights belong to different models")


_DTYPE_OF_NAME = {name: dtype for dtype, name in DTYPES.items() if dtype != torch.int64}


def trace(model: str | Path | PreTrainedModel, dtype: str | torch.dtype | None = None, max_model_len: int | None = None) -> Trace:
    """Traces a directory, a hub id or a transformers model object. Weights stay where they are until they are loaded one by one.

    dtype: of activations and weights (default: the config's). max_model_len: longest request served, for rotary scalings that depend on the length
    (default: the config's maximum). Raises TraceError and CheckpointError.
    """
    if isinstance(model, PreTrainedModel):
        return _trace_object(model, dtype, max_model_len)
    directory = find_model_directory(model)
    config = read_config(directory)
    capture, imported = trace_config(config, dtype, max_model_len)
    source = Checkpoint(directory, capture.skeleton.model)
    weights = TraceWeights(imported.graph, source, imported.constants)
    weights.check_shapes()
    info = _describe(str(model), capture, imported, _eos_token_ids(config, _generation_config(directory)))
    return Trace(imported.graph, weights, info, directory, find_tokenizer_files(directory))


def _trace_object(model: PreTrainedModel, dtype: str | torch.dtype | None, max_model_len: int | None) -> Trace:
    """The model is built anew from its config without weights; its parameters must be those of its config."""
    capture, imported = trace_config(model.config, dtype or model.dtype, max_model_len, type(model))
    expected = {name: tuple(p.shape) for name, p in capture.skeleton.model.named_parameters()}
    found = {name: tuple(p.shape) for name, p in model.named_parameters()}
    strange = sorted(expected.items() ^ found.items())
    if strange:
        raise TraceError(
            type(model).__name__, f"parameter {strange[0][0]} is not as its config says", "merge adapters first, and pass an unmodified model"
        )
    info = _describe(model.config.name_or_path or type(model).__name__, capture, imported, _eos_token_ids(model.config, model.generation_config))
    files = find_tokenizer_files(Path(model.name_or_path)) if model.name_or_path else ()
    return Trace(imported.graph, TraceWeights(imported.graph, ModelWeights(model), imported.constants), info, tokenizer_files=files)


def trace_config(
    config: PretrainedConfig, dtype: str | torch.dtype | None = None, max_model_len: int | None = None, cls: type[PreTrainedModel] | None = None
) -> tuple[Capture, Imported]:
    """The graph of a config alone, without weights. Raises TraceError."""
    if config.is_encoder_decoder:
        raise TraceError(f"model type {config.model_type!r}", "is an encoder-decoder", "pass a decoder-only language model")
    config = copy.deepcopy(config)
    cls = cls or find_model_class(config)
    length = max_model_len or max_positions(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.export's own
        capture = capture_model(cls, config, _torch_dtype(dtype, config), length)
        capture.program = normalize(capture.program)
    if not capture.through_interface:
        restore_attention(capture)
    imported = import_graph(capture, str(config.model_type))
    _check_attention(config, cls, imported)
    verify(imported.graph, levels=("core",))
    return capture, imported


def max_positions(config: PretrainedConfig) -> int:
    """Positions that the model was made for, by whichever name its config has for them."""
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
    found = (getattr(config, name, None) for name in names)
    return next((int(value) for value in found if value), 2048)


def _torch_dtype(dtype: str | torch.dtype | None, config: PretrainedConfig) -> torch.dtype:
    chosen = dtype if dtype is not None else getattr(config, "dtype", None) or torch.float32
    if isinstance(chosen, torch.dtype):
        if chosen in TORCH_DTYPES.values():
            return chosen
    elif str(chosen).lower() in TORCH_DTYPES:
        return TORCH_DTYPES[str(chosen).lower()]
    raise TraceError("dtype", f"{dtype!r} is not supported", "use float32, float16 or bfloat16")


def _check_attention(config: PretrainedConfig, cls: type, imported: Imported) -> None:
    """Every layer must keep keys and values, or the engine would forget them; positions must matter."""
    layers = int(getattr(config, "num_hidden_layers", imported.num_attentions))
    graph = imported.graph
    if imported.num_attentions != layers or layers == 0:
        found = sorted({module for op in graph.find("attention") for module in op.loc.modules})
        where = f"found in {', '.join(found[:3])}{', …' if len(found) > 3 else ''}" if found else "none was found"
        raise TraceError(
            cls.__name__,
            f"{imported.num_attentions} of {layers} layers produced an attention op ({where})",
            "other mixers of tokens are not supported",
        )
    has_slopes = any(op.operand("slopes") is not None for op in graph.find("attention"))
    if not graph.value("positions").users and not has_slopes:
        raise TraceError(
            cls.__name__,
            "its graph does not use positions, so requests in one batch would see each other's",
            "this architecture is not supported yet",
        )


def _describe(name: str, capture: Capture, imported: Imported, eos_token_ids: tuple[int, ...]) -> ModelInfo:
    config = capture.skeleton.model.config
    bos = getattr(config, "bos_token_id", None)
    return ModelInfo(
        name=name,
        architecture=type(capture.skeleton.model).__name__,
        vocab_size=int(imported.graph.outputs[0].type.shape[-1]),
        dtype=DTYPES[capture.skeleton.dtype],
        quantization="none",
        num_parameters=sum(p.numel() for p in capture.skeleton.model.parameters()),
        max_positions=max_positions(config),
        bos_token_id=bos if isinstance(bos, int) else None,
        eos_token_ids=eos_token_ids,
    )


def _generation_config(directory: Path) -> GenerationConfig | None:
    file = directory / "generation_config.json"
    if not file.is_file():
        return None
    try:
        return GenerationConfig.from_pretrained(directory)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(str(file), f"cannot be read: {reason}", "download the file again, or delete it: config.json has defaults") from error


def _eos_token_ids(config: PretrainedConfig, generation: GenerationConfig | None) -> tuple[int, ...]:
    """What generation stops at: the generation config's ids, or else the model config's."""
    given: Any = getattr(generation, "eos_token_id", None)
    given = given if given is not None else getattr(config, "eos_token_id", None)
    return tuple(given) if isinstance(given, list | tuple) else () if given is None else (int(given),)
