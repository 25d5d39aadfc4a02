"""Where an exported model keeps its weights: inside the file, or in a data file beside it, written tensor by tensor."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from onnx import ModelProto, TensorProto
from torch import Tensor

from tilewright.codegen.onnx_body import GraphBody, describe_tensor, make_tensor, tensor_bytes

SMALL_BYTES = 1024  # tensors below stay in the model
ALIGNMENT = 4096  # of a tensor in the data file, so that a runtime can map it


class Inside:
    """Everything in one file."""

    def __init__(self, body: GraphBody) -> None:
        self.body = body

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

    def put(self, name: str, tensor: Tensor) -> None:
        self.body.initializers.append(make_tensor(name, tensor))

    def write(self, out: Path, model: ModelProto) -> None:
        write_whole(out, model)


class DataFile(Inside):
    """Weights in `<out>.data`. It gets its name when the model is written; an export that stops leaves neither."""

    def __init__(self, out: Path, body: GraphBody) -> None:
        super().__init__(body)
        self.name = f"{out.name}.data"
        self.partial = out.with_name(f"{self.name}.partial")
        self._file: BinaryIO = self.partial.open("wb")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        self.partial.unlink(missing_ok=True)

    def put(self, name: str, tensor: Tensor) -> None:
        if tensor.numel() * tensor.element_size() < SMALL_BYTES:
            super().put(name, tensor)
            return
        made = describe_tensor(name, tensor)
        self._file.seek(-(-self._file.tell() // ALIGNMENT) * ALIGNMENT)
        start = self._file.tell()
        self._file.write(tensor_bytes(tensor))
        made.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self.name), ("offset", start), ("length", self._file.tell() - start)):
            made.external_data.add(key=key, value=str(value))
        self.body.initializers.append(made)

    def write(self, out: Path, model: ModelProto) -> None:
        self._file.close()
        os.replace(self.partial, out.with_name(self.name))
        write_whole(out, model)


def write_whole(out: Path, model: ModelProto) -> None:
    """Aside, then renamed."""
    partial = out.with_name(f"{out.name}.partial")
    try:
        partial.write_bytes(model.SerializeToString(deterministic=True))
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
