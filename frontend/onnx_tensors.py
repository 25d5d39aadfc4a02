"""Tensors of an ONNX file, read one at a time when they are asked for, and the IR's names for their types."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from onnx import TensorProto, checker, numpy_helper
from torch import Tensor

from tilewright.ir.errors import CheckpointError, TraceError
from tilewright.ir.reference import TORCH_DTYPES

# Integers that the IR has no type for are held in the next wider one; they do not wrap.
DTYPES = {
    TensorProto.DOUBLE: "f64", TensorProto.FLOAT: "f32", TensorProto.FLOAT16: "f16", TensorProto.BFLOAT16: "bf16", TensorProto.INT64: "i64",
    TensorProto.INT32: "i32", TensorProto.INT8: "i8", TensorProto.BOOL: "i1",
    TensorProto.UINT8: "i32", TensorProto.INT16: "i32", TensorProto.UINT16: "i32", TensorProto.UINT32: "i64", TensorProto.UINT64: "i64",
}  # fmt: skip


def dtype_of(onnx_dtype: Any, where: str) -> str:
    """Raises TraceError for a type that the IR has none for."""
    if onnx_dtype not in DTYPES:
        raise TraceError(where, f"is of the type {TensorProto.DataType.Name(onnx_dtype)}", "the IR has no such type")
    return DTYPES[onnx_dtype]


def read_tensor(proto: TensorProto, folder: Path) -> Tensor:
    """Raises CheckpointError where data that lies outside the file is missing or shorter than the file says."""
    dtype = TORCH_DTYPES[dtype_of(proto.data_type, f"tensor {proto.name}")]
    try:
        array = numpy_helper.to_array(proto, str(folder))
    except (OSError, ValueError, checker.ValidationError) as error:
        problem = f"its data cannot be read: {' '.join(str(error).split())}"
        raise CheckpointError(f"tensor {proto.name}", problem, "keep the .data file beside the model") from error
    if dtype == torch.bfloat16:
        return torch.from_numpy(array.view("uint16").copy()).view(torch.bfloat16)
    return torch.from_numpy(array.astype(str(dtype).removeprefix("torch.")))


class OnnxWeights:
    """The tensors behind an imported graph's parameters."""

    def __init__(self, sources: Mapping[str, TensorProto | Tensor], folder: Path) -> None:
        self._sources, self._folder = dict(sources), folder

    def names(self) -> list[str]:
        return list(self._sources)

    def load(self, name: str) -> Tensor:
        if name not in self._sources:
            raise CheckpointError(f"@{name}", "the ONNX file has no such tensor")
        source = self._sources[name]
        return source if isinstance(source, Tensor) else read_tensor(source, self._folder)
