"""`tilewright export` and `tilewright import-onnx`: any stage of a model to an ONNX file, and an ONNX decoder to a graph."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tilewright import cli_panels
from tilewright.ir.errors import TilewrightError

if TYPE_CHECKING:
    from tilewright.compiler import Optimized
    from tilewright.frontend.trace import Trace
    from tilewright.ir.graph import Graph
    from tilewright.ir.weights import Weights

RAISED = "tabulate-positions"  # the last pass that says what a model means; those after it prepare for kernels


def register(commands: typer.Typer) -> None:
    commands.command(rich_help_panel=cli_panels.PASSES)(export)
    commands.command("import-onnx", rich_help_panel=cli_panels.PASSES)(import_onnx)


def export(
    source: Annotated[str, typer.Argument(metavar="ENGINE_OR_IR_OR_MODEL", help="an engine directory, an .ir file, or a model (directory, hub id)")],
    out: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="file to write; large weights go into OUT.onnx.data beside it")],
    pass_name: Annotated[
        str | None, typer.Option("--pass", help=f"the graph after that pass, or `import` (default: an engine's last, a model's {RAISED})")
    ] = None,
    model: Annotated[str | None, typer.Option(help="checkpoint that the weights come from (default: the one that the engine was built from)")] = None,
    dtype: Annotated[str | None, typer.Option(help="of a model's activations: float32, float16 or bfloat16 (default: the checkpoint's)")] = None,
    quantize: Annotated[str | None, typer.Option(help="of a model: int8, or the text of a pass; its last graph is exported")] = None,
    external: Annotated[bool | None, typer.Option("--external/--inside", help="where the weights go (default: by their size)")] = None,
) -> None:
    """Write a model at any stage as ONNX (opset 23): one step over the tokens of one request, without a cache."""
    from tilewright.codegen.onnx_export import export_onnx

    if out.suffix != ".onnx":
        raise TilewrightError(str(out), "does not end in .onnx", "name the file that is to be written, as in model.onnx")
    graph, weights = choose_stage(source, pass_name, model, dtype, quantize)
    file = export_onnx(graph, weights, out, external=external)
    data = file.with_name(f"{file.name}.data")
    print(f"{file} ({len(graph)} ops){f'; its weights: {data}' if data.exists() else ''}")


def choose_stage(source: str, pass_name: str | None, model: str | None, dtype: str | None, quantize: str | None) -> tuple[Graph, Weights]:
    """Raises TilewrightError."""
    from tilewright.ir.manifest import MANIFEST_FILE

    path = Path(source)
    is_built = path.suffix == ".ir" or (path / MANIFEST_FILE).is_file()
    if is_built and (dtype or quantize):
        raise TilewrightError("export", f"--{'dtype' if dtype else 'quantize'} is given for {source}", "it is for models; what was built is as it is")
    if path.suffix == ".ir":
        return of_text(path, pass_name, model)
    if is_built:
        return of_engine(path, pass_name, model)
    if model is not None:
        raise TilewrightError("export", f"{source} is a model, and --model is {model!r}", "leave --model out")
    return of_model(source, pass_name, dtype, quantize)


def of_text(file: Path, pass_name: str | None, model: str | None) -> tuple[Graph, Weights]:
    from tilewright.show import read_graph

    if pass_name is not None:
        raise TilewrightError(str(file), f"is one graph, so it has no pass {pass_name!r}", "pass an engine directory")
    graph = read_graph(file)
    if model is None:
        raise TilewrightError(str(file), "is a graph without weights", "name the checkpoint that they come from with --model")
    return graph, load_weights(model, dtype_of_params(graph), None)


def dtype_of_params(graph: Graph) -> str:
    """What most of them are in."""
    dtypes = [v.type.dtype for v in graph.params.values() if v.type.rank > 1] or ["f32"]
    return max(dict.fromkeys(dtypes), key=dtypes.count)


def of_engine(path: Path, pass_name: str | None, model: str | None) -> tuple[Graph, Weights]:
    from tilewright.inspect.run import load
    from tilewright.show import choose_stage as choose_pass

    run = load(path)
    graph = run.graph(choose_pass(run, pass_name))
    assert run.engine is not None, "it has a manifest"
    manifest = run.engine.manifest
    named = manifest.model.name
    if model is None and not Path(named).is_dir():
        raise TilewrightError(f"engine {path}", f"was built from {named!r}, which is no directory here", "name the checkpoint with --model")
    return graph, load_weights(model or named, manifest.model.dtype, manifest.limits.max_sequence_len)


def load_weights(model: str, dtype: str, max_model_len: int | None) -> Weights:
    from tilewright.compiler import trace

    return trace(model, dtype, max_model_len).weights


def of_model(model: str, pass_name: str | None, dtype: str | None, quantize: str | None) -> tuple[Graph, Weights]:
    from tilewright.compiler import trace

    traced = trace(model, dtype)
    if pass_name in ("import", "00-import", "0"):
        return traced.graph, traced.weights
    return (optimize_until(traced, pass_name or (None if quantize else RAISED), quantize)), traced.weights


def optimize_until(traced: Trace, pass_name: str | None, quantize: str | None) -> Graph:
    """The graph after the last pass of that name in the default pipeline; after all of them for None."""
    from tilewright.compiler import optimize
    from tilewright.ir.opdef import suggest

    found: dict[str, Graph] = {}

    def keep(name: str, graph: Graph) -> None:
        if bare(name) == pass_name:
            found[bare(name)] = graph.copy()

    optimized: Optimized = optimize(traced, quantize=quantize, after_each=keep)
    if pass_name is None:
        return optimized.graph
    if pass_name not in found:
        names = [bare(row.name) for row in optimized.report.rows]
        raise TilewrightError("export", f"the default pipeline has no pass {pass_name!r}", suggest(pass_name, names))
    return found[pass_name]


def bare(name: str) -> str:
    """The name of a pass without its options."""
    return name.partition("{")[0]


def import_onnx(
    file: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="a decoder without a cache")],
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="OUT.ir", help="write the graph there, not to stdout")] = None,
    dim: Annotated[list[str] | None, typer.Option(help="size or other name of an axis, as in batch=1; may be given more than once")] = None,
    flat: Annotated[bool, typer.Option("--flat", help="every layer, not folded")] = False,
) -> None:
    """Read an ONNX decoder as a graph and print it."""
    from tilewright.frontend.onnx_import import import_onnx as import_file
    from tilewright.ir.fold import fold_text
    from tilewright.ir.printer import print_graph
    from tilewright.show import print_text, write_text

    imported = import_file(file, dims=parse_dims(dim or []))
    text = (print_graph if flat else fold_text)(imported.graph, note=f"from {file.name}")
    if output is None:
        print_text(text)
    else:
        write_text(output, text)


def parse_dims(given: list[str]) -> dict[str, int | str]:
    dims: dict[str, int | str] = {}
    for text in given:
        name, _, size = text.partition("=")
        if not name or not size:
            raise TilewrightError("--dim", f"is {text!r}", "write it as name=size, as in batch=1")
        dims[name] = int(size) if size.isdigit() else size
    return dims
