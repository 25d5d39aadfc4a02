"""An ONNX decoder as a Graph with the weights behind it. Which operators are read is in the tables onnx_pointwise, onnx_layout, onnx_products, …

Control flow, sequences and caches are not read: a model that keeps keys and values is exported without them first. Attention over one request,
causal, becomes the IR's attention, which an engine can page; any other is written out. Token ids may not be negative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright.ir.errors import TraceError
from tilewright.ir.extras import require
from tilewright.ir.fold import fold_text
from tilewright.ir.graph import Graph
from tilewright.ir.weights import Weights

if TYPE_CHECKING:
    from onnx import ModelProto



@dataclass(frozen=True, slots=True)
class OnnxModel:
    """What `optimize` and `export_onnx` take beside a Trace. `str()` is the graph as text."""

    graph: Graph
    weights: Weights
    info: None = None  # an ONNX file does not say what a tokenizer or a sampler must know
    tokenizer_files: tuple[Path, ...] = ()

    def __str__(self) -> str:
        return fold_text(self.graph)

    def __repr__(self) -> str:
        return f"<{self.graph.name} as {len(self.graph)} ops>"


def import_onnx(
    model: str | Path | ModelProto, *, dims: Mapping[str, int | str] | None = None, known: Mapping[str, Sequence[int]] | None = None
) -> OnnxModel:
    """Reads a file, or a model in memory. Weights stay where they are until they are loaded one by one.

    dims: sizes for named axes, as in {"batch": 1}, or other names for them; the only axis without a size is T, the tokens of a step.
    known: values of inputs that decide shapes. Raises TraceError naming the node where an operator is not read.
    """
    require("onnx", extra="onnx")
    from tilewright.frontend.onnx_importer import Importer

    proto, folder = _read(model)
    importer = Importer(proto, folder, dict(dims or {}), known or {})
    return OnnxModel(importer.run(), importer.weights())


def _read(model: str | Path | ModelProto) -> tuple[ModelProto, Path]:
    """The model without its outside data. Functions are written out, but for those that stand for one op of the IR."""
    import onnx
    from google.protobuf.message import DecodeError
    from onnx import inliner

    if not isinstance(model, str | Path):
        proto, folder = model, Path()
    else:
        folder = Path(model).parent
        try:
            proto = onnx.load(str(model), load_external_data=False)
        except OSError as error:
            raise TraceError(str(model), f"cannot be read ({error.strerror or error})", "pass an ONNX file") from error
        except DecodeError as error:
            raise TraceError(str(model), "is not an ONNX file", "pass a .onnx file that is complete") from error
    if not proto.HasField("graph") or not proto.graph.output:
        raise TraceError(str(model), "holds no graph", "pass a .onnx file that is complete")
    foreign = [(f.domain, f.name) for f in proto.functions if stands_for(f) is None]
    return (inliner.inline_selected_functions(proto, foreign) if foreign else proto), folder


def stands_for(function: Any) -> str | None:
    """The op of the IR that a model-local function of ours is."""
    from tilewright.ir.opdef import OPS

    told = {p.key: p.value for p in function.metadata_props}.get("tilewright.op")
    return told if function.domain == "tilewright" and told in OPS else None
