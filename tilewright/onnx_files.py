"""The public face of ONNX: a traced or optimized model to a file, and a file to a graph. Needs the extra `onnx`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tilewright.compiler import Optimized
from tilewright.ir.errors import CodegenError

if TYPE_CHECKING:
    from onnx import ModelProto

    from tilewright.frontend.onnx_import import OnnxModel
    from tilewright.frontend.trace import Trace


def import_onnx(model: str | Path | ModelProto, *, dims: Mapping[str, int | str] | None = None) -> OnnxModel:
    """An ONNX decoder as a graph and its weights, for `optimize` and `export_onnx`. dims: sizes of named axes, as in {"batch": 1}.

    Raises TraceError naming the node that is not read.
    """
    from tilewright.frontend.onnx_import import import_onnx as import_file

    return import_file(model, dims=dims)


def export_onnx(source: Trace | Optimized | OnnxModel, out: str | Path, *, external: bool | None = None) -> Path:
    """Writes what `trace` or `optimize` returned as an ONNX model of opset 23: one step over the T tokens of one request, without a cache.

    external: weights in `<out>.data` beside it (default: where they are large). Raises TilewrightError.
    """
    from tilewright.codegen.onnx_export import export_onnx as export_graph

    if source.weights is None:
        raise CodegenError("export", "the graph came from text, so it has no weights", "pass what trace(model) or optimize(trace(model)) returned")
    return export_graph(source.graph, source.weights, out, external=external)
