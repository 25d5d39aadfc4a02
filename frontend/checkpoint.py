"""Where weights come from: a safetensors checkpoint read one tensor at a time, or a transformers model in memory. Knows no graph.

Names are those of the model's parameters; a checkpoint's own names are brought to them by transformers' conversion mapping.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from tilewright.ir.errors import CheckpointError
from tilewright.ir.opdef import suggest

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", 
    "merges.txt", "chat_template.jinja", "chat_template.json", "generation_config.json",
)  # fmt: skip


class WeightSource(Protocol):
    """Weights by parameter name, in the dtype that they are stored in."""

    def names(self) -> list[str]: ...
    def shape_dtype(self, name: str) -> tuple[tuple[int, ...], torch.dtype]: ...
    def load(self, name: str) -> Tensor: ...


def find_model_directory(model: Any) -> Path:
    """A local directory as it is; else a hub id, downloaded without pickled weights. Raises CheckpointError."""
    if not isinstance(model, str | PathLike):
        raise CheckpointError("model", f"is a {type(model).__name__}", "pass a directory, a hub id, or a transformers causal language model")
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    name = str(model)
    looks_local = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.exists()
    if looks_local:
        raise CheckpointError(
            name, "is a file" if path.exists() else "no such directory", "pass the directory that holds config.json and *.safetensors"
        )
    return _download(name)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, ignore_patterns=[*PICKLED, "*.msgpack", "*.h5", "*.onnx", "*.py"]))
    except Exception as error:  # many kinds: network, offline mode, missing repository, a name that is no repository id
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].removeprefix("Got: ").rstrip(".")
        raise CheckpointError(
            name, f"is neither a local directory nor a model that can be downloaded ({reason})", "check the spelling, or pass a directory"
        ) from error


def read_config(directory: Path) -> PretrainedConfig:
    """The model's config; code that a checkpoint brings along is never run. Raises CheckpointError."""
    from transformers import AutoConfig

    file = directory / "config.json"
    if not file.is_file():
        raise CheckpointError(str(directory), "has no config.json", "pass the directory that save_pretrained wrote")
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(str(file), f"is not JSON: {error}", "download the file again") from error
    if not isinstance(settings, dict) or "model_type" not in settings:
        raise CheckpointError(str(file), "has no model_type", "pass the config.json of a transformers model")
    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=False)
    except (ValueError, KeyError, TypeError, StrictDataclassError) as error:
        reason = " ".join(" ".join(str(error).strip().splitlines()[:2]).split()).rstrip(".")
        raise CheckpointError(
            str(file), f"model_type {settings['model_type']!r} cannot be read: {reason}", "check it; models that need their own code are not run"
        ) from error


def find_tokenizer_files(directory: Path) -> tuple[Path, ...]:
    return tuple(directory / name for name in TOKENIZER_FILES if (directory / name).is_file())


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where a parameter comes from: tensors of the files, and what transformers makes of them."""

    sources: tuple[tuple[str, str | None], ...]  # (name in the files, pattern of the converter)
    converter: WeightConverter | None


@dataclass(frozen=True, slots=True)
class _Stored:
    """A tensor of a file, from its header."""

    file: str
    shape: tuple[int, ...]
    dtype: torch.dtype


class Checkpoint:
    """Sharded safetensors: headers are read when it is opened, one tensor when it is asked for, one shard open at a time."""

    def __init__(self, directory: str | Path, model: PreTrainedModel) -> None:
        """`model`: the same architecture on the meta device, whose parameter names are the names here. Raises CheckpointError."""
        self.directory = Path(directory)
        self._model = model
        self._stored = _read_headers(self.directory)
        self._tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
        self._entries = _plan(model, self._stored)
        self._open_name: str | None = None
        self._open_file: Any = None

    def names(self) -> list[str]:
        return list(self._entries)

    def shape_dtype(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """From the header alone, where no conversion stands between."""
        entry = self._entry(name)
        if entry.converter is not None:
            tensor = self.load(name)
            return tuple(tensor.shape), tensor.dtype
        stored = self._stored[entry.sources[0][0]]
        return stored.shape, stored.dtype

    def load(self, name: str) -> Tensor:
        """The tensor of a parameter, in the dtype of the file. Raises CheckpointError."""
        entry = self._entry(name)
        if entry.converter is None:
            return self._read(entry.sources[0][0])
        converter = deepcopy(entry.converter)
        for key, pattern in entry.sources:
            converter.add_tensor(name, key, pattern or "", self._read(key))  # type: ignore[arg-type]  # a tensor in place of its future
        made = converter.convert(name, model=self._model, config=self._model.config)
        result = made[name]
        return result[0] if isinstance(result, list) else result

    def close(self) -> None:
        self._open_name = self._open_file = None

    def _entry(self, name: str) -> _Entry:
        for alias in (name, self._tied.get(name), *(other for other, kept in self._tied.items() if kept == name)):
            if alias in self._entries:
                return self._entries[alias]
        raise CheckpointError(str(self.directory), f"has no tensor for {name!r}", suggest(name, self._entries) if self._entries else "it is empty")

    def _read(self, key: str) -> Tensor:
        file = self._stored[key].file
        if self._open_name != file:
            self._open_name, self._open_file = file, _open_shard(self.directory / file)
        try:
            return self._open_file.get_tensor(key)
        except SafetensorError as error:
            raise CheckpointError(str(self.directory / file), f"has no readable tensor {key!r}: {error}", "download the file again") from error


_SAFETENSORS_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


def _open_shard(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(str(path), "the shard is missing, the index names it", "download the file again")
    try:
        return safe_open(path, framework="pt", device="cpu").__enter__()
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            str(path), f"is truncated or not a safetensors file ({path.stat().st_size} bytes: {error})", "download the file again"
        ) from error


def _read_headers(directory: Path) -> dict[str, _Stored]:
    """Every tensor of the files. Each file is opened once, so that a truncated one is found before the work starts."""
    named = _read_index(directory)
    single = directory / SINGLE_FILE
    files = sorted(set(named.values())) or ([SINGLE_FILE] if single.is_file() else sorted(p.name for p in directory.glob("*.safetensors")))
    if not files:
        raise _no_weights(directory)
    stored: dict[str, _Stored] = {}
    for name in files:
        shard = _open_shard(directory / name)
        for key in shard.keys():  # noqa: SIM118  # a file, not a dict
            part = shard.get_slice(key)
            stored[key] = _Stored(name, tuple(part.get_shape()), _SAFETENSORS_DTYPES.get(part.get_dtype(), torch.uint8))
    for key, name in named.items():
        if key not in stored:
            raise CheckpointError(str(directory / name), f"lacks {key!r}, which the index says it holds", "download the checkpoint again")
    return stored


def _read_index(directory: Path) -> dict[str, str]:
    """Name of each tensor -> its file, as the index of a sharded checkpoint says; empty where there is none."""
    index = directory / INDEX_FILE
    if not index.is_file():
        return {}
    try:
        return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(str(index), f"is not an index of shards: {error!r}", "download the file again") from error


def _no_weights(directory: Path) -> CheckpointError:
    pickled = sorted(p.name for pattern in PICKLED for p in directory.glob(pattern))
    if pickled:
        hint = f"convert them: AutoModelForCausalLM.from_pretrained({str(directory)!r}).save_pretrained('converted')"
        return CheckpointError(
            str(directory), f"has its weights only as {pickled[0]}, a pickle, which can run code when read; safetensors are needed", hint
        )
    return CheckpointError(str(directory), "has no *.safetensors files", "pass a directory with weights")


def _plan(model: PreTrainedModel, keys: Iterable[str]) -> dict[str, _Entry]:
    """Parameter name -> where it comes from, by transformers' own renaming; a name that needs none stands for itself."""
    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    by_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
    wanted = model.state_dict()
    grouped: dict[str, list[tuple[str, str | None]]] = {}
    for key in sorted(keys, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, wanted)
        if name not in wanted and key in wanted:
            name, pattern = key, None
        grouped.setdefault(name, []).append((key, pattern))
    return {name: _Entry(tuple(sources), by_pattern.get(sources[0][1] or "")) for name, sources in grouped.items()}


class ModelWeights:
    """The weights of a transformers model object."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._tensors: Mapping[str, Tensor] = model.state_dict()
        meta = [name for name, tensor in self._tensors.items() if tensor.is_meta]
        if meta:
            raise CheckpointError(
                type(model).__name__, f"its parameter {meta[0]!r} is on the meta device and has no values", "load the model with its weights"
            )

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape_dtype(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        tensor = self.load(name)
        return tuple(tensor.shape), tensor.dtype

    def load(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise CheckpointError("model", f"has no parameter {name!r}", suggest(name, list(self._tensors)))
        return self._tensors[name].detach().to("cpu")
