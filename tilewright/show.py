"""What `tilewright show`, `opt` and `passes` print: graphs from dumps, kernels from the manifest, passes from the registry."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tilewright.engine import Engine
from tilewright.ir.errors import EngineError, ParseError, PassError
from tilewright.ir.fold import fold_text
from tilewright.ir.graph import Graph
from tilewright.ir.manifest import Kernel
from tilewright.ir.opdef import suggest
from tilewright.ir.parser import parse_graph
from tilewright.ir.printer import HEADER, print_graph, print_op
from tilewright.passes.pipelines import default_pipeline
from tilewright.passes.registry import PassInfo, load_passes

DUMPS = Path("inspect") / "passes"


def render(what: Path, stage: str | None, *, layer: int | None, flat: bool) -> str:
    """Text of an .ir file or of a stage of an engine. Raises ParseError and EngineError."""
    if what.is_dir():
        engine = Engine.open(what)
        if stage == "kernels":
            return kernel_table(engine)
        if stage == "passes":
            return str(engine) + "\n" + (what / "inspect" / "passes.txt").read_text(encoding="utf-8")
        file = find_dump(what, stage)
    elif stage is not None:
        raise EngineError(str(what), f"is one file, so it has no stage {stage!r}", "pass an engine directory")
    else:
        file = what
    graph = read_graph(file)
    if layer is not None:
        return layer_text(graph, layer, str(file))
    note = read_note(file)
    return print_graph(graph, note=note) if flat else fold_text(graph, note=note)


def read_graph(file: Path) -> Graph:
    """Raises ParseError with the position of what is wrong."""
    load_passes()  # ops of other packages are declared with their passes
    try:
        return parse_graph(file.read_text(encoding="utf-8"), file=str(file))
    except OSError as error:
        raise ParseError(str(file), f"cannot be read ({error.strerror})", "pass an engine directory or an .ir file") from error
    except UnicodeDecodeError as error:
        raise ParseError(str(file), "is not text", "pass an engine directory or an .ir file") from error


def read_note(file: Path) -> str:
    with file.open(encoding="utf-8") as lines:
        first = lines.readline().strip()
    return first.removeprefix(HEADER).strip() if first.startswith(HEADER) else ""


def dumps(directory: Path) -> list[Path]:
    return sorted((directory / DUMPS).glob("[0-9]*.ir"))


def find_dump(directory: Path, stage: str | None) -> Path:
    """The dump of a stage: `02-fuse-qkv`, `fuse-qkv`, or `2`; the last one by default."""
    found = dumps(directory)
    if not found:
        raise EngineError(f"engine {directory}", f"has no {DUMPS}", "build it again with TILEWRIGHT_INSPECT=1")
    if stage is None:
        return found[-1]
    for file in found:
        number, _, name = file.stem.partition("-")
        if stage in (file.stem, name) or (stage.isdigit() and int(stage) == int(number)):
            return file
    stages = [file.stem for file in found]
    unchanged = [file.stem for file in (directory / DUMPS).glob("*.same")]
    if any(stage in (stem, stem.partition("-")[2]) for stem in unchanged):
        raise EngineError(f"engine {directory}", f"the pass {stage!r} changed nothing", f"show one that did: {', '.join(stages)}")
    raise EngineError(f"engine {directory}", f"no stage {stage!r}", suggest(stage, list(dict.fromkeys(stem.partition("-")[2] for stem in stages))))


def layer_text(graph: Graph, layer: int, where: str) -> str:
    """The ops that compute a layer, by the modules they come from, flat."""
    chosen = [op for op in graph.ops if layer in map(layer_of, op.loc.modules)]
    if not chosen:
        raise EngineError(where, f"no op belongs to layer {layer}", "layers count from 0")
    return "\n".join(print_op(op) for op in chosen) + "\n"


def layer_of(module: str) -> int | None:
    """model.layers.3.mlp -> 3"""
    return next((int(word) for word in module.split(".") if word.isdigit()), None)


# -- kernels --------------------------------------------------------------------------------------------------------------------
def kernel_table(engine: Engine) -> str:
    """One line for each kernel: how often each program launches it, what it costs on the device, and where it comes from."""
    lines = [str(engine)]
    for kernel in engine.manifest.kernels:
        lines.append(f"  {kernel.name:<28} {kernel_uses(engine, kernel)}{kernel_resources(kernel)}")
        launch = next((item for p in engine.manifest.programs for item in p.launches if item.kernel == kernel.name), None)
        if launch is not None:
            modules = ", ".join(launch.modules[:4]) + (", …" if len(launch.modules) > 4 else "")
            lines.append(f"  {'':<28} {launch.region}: {modules}" + (f"; cut: {launch.reason}" if launch.reason else ""))
    return "\n".join(lines) + "\n"


def kernel_uses(engine: Engine, kernel: Kernel) -> str:
    counts = {p.name: sum(launch.kernel == kernel.name for launch in p.launches) for p in engine.manifest.programs}
    return ", ".join(f"{name} x{number}" for name, number in counts.items() if number)


def kernel_resources(kernel: Kernel) -> str:
    return "".join(
        f"   {arch}: {b.num_registers} registers, {b.shared_bytes} B shared" + (f", SPILLS {b.stack_bytes} B" if b.stack_bytes else "")
        for arch, b in sorted(kernel.binaries.items())
    )


# -- passes ---------------------------------------------------------------------------------------------------------------------
def describe_passes() -> str:
    """The default pipeline, then one line for each pass; those of other packages are marked."""
    found = load_passes()
    pipeline = default_pipeline(length=0, quantize="int8").replace("{length=0}", "").replace("# fewer bytes", "# fewer bytes, where asked for")
    width = max(map(len, found))
    lines = [f"  {name:<{width}}  {first_line(info)}{origin(info)}" for name, info in found.items()]
    return "\n".join(["The default pipeline:", *(f"  {line}" for line in pipeline.splitlines()), "", "All passes:", *lines]) + "\n"


def describe_pass(name: str) -> str:
    found = load_passes()
    if name not in found:
        raise PassError("passes", f"no pass named {name!r}", suggest(name, found))
    info = found[name]
    options = [f"  {f.name}: {getattr(f.type, '__name__', f.type)} = {f.default!r}" for f in info.options]
    options = ["options", *options] if options else []
    return "\n".join([f"{name}{origin(info)}", f"  {info.doc}", *options, f"leave it out: TILEWRIGHT_PASSES=-{name}"]) + "\n"


def first_line(info: PassInfo) -> str:
    return info.doc.splitlines()[0] if info.doc else ""


def origin(info: PassInfo) -> str:
    return "" if info.module.startswith("tilewright.") else f"   (yours: {info.module})"


# -- printing -------------------------------------------------------------------------------------------------------------------
COLOURS = (
    (re.compile(r"(//.*)$"), "dim"),
    (re.compile(r"(loc\([^)]*\))"), "dim"),
    (re.compile(r"(by\([^)]*\))"), "magenta"),
    (re.compile(r"(%[\w./{}+-]+)"), "cyan"),
    (re.compile(r"(@[\w./{}+-]+)"), "yellow"),
    (re.compile(r"= ([\w.-]+)\("), "bold"),
)


def print_text(text: str) -> None:
    """Coloured on a terminal, plain when piped."""
    if not sys.stdout.isatty():
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False)
    for line in text.splitlines():
        shown = Text(line)
        for pattern, style in COLOURS:
            for match in pattern.finditer(line):
                shown.stylize(style, match.start(1), match.end(1))
        console.print(shown)
