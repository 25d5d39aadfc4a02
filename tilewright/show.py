"""What `tilewright show`, `opt` and `passes` print: graphs from dumps, kernels from the manifest, passes from the registry."""

from __future__ import annotations

import re
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from tilewright.engine import Engine
from tilewright.inspect.layers import Group, Layers, group
from tilewright.inspect.run import IMPORT, Run, load
from tilewright.inspect.text import align
from tilewright.ir.errors import EngineError, ParseError, PassError, TilewrightError
from tilewright.ir.fold import fold_text
from tilewright.ir.graph import Graph, Op
from tilewright.ir.manifest import SAMPLING, Kernel
from tilewright.ir.opdef import suggest
from tilewright.ir.parser import parse_graph
from tilewright.ir.printer import HEADER, print_graph, print_op
from tilewright.passes.pipelines import default_pipeline
from tilewright.passes.registry import PassInfo, load_passes

if TYPE_CHECKING:
    from rich.text import Text


def render(what: Path, stage: str | None, *, layer: int | None, flat: bool, op: str | None = None) -> str:
    """Text of an .ir file or of a stage of a run. Raises ParseError and EngineError."""
    if what.is_dir():
        if stage == "kernels":
            return kernel_table(Engine.open(what))
        run = load(what)
        if stage == "passes":
            return f"{run.engine}\n{run}" if run.engine else str(run)
        number = choose_stage(run, stage)
        graph, note = run.graph(number), f"after pass {run[number].title}" if number else "import"
    elif stage is not None:
        raise EngineError(str(what), f"is one file, so it has no stage {stage!r}", "pass an engine directory")
    else:
        graph, note = read_graph(what), read_note(what)
    if layer is not None or op is not None:
        return print_chosen(graph, layer, op or "*", str(what), flat=flat)
    return print_graph(graph, note=note) if flat else fold_text(graph, note=note)


def choose_stage(run: Run, stage: str | None) -> int:
    """`02-fuse-qkv`, `fuse-qkv`, or `2`; the last one by default. Raises EngineError."""
    if stage is None:
        return run.last
    return 0 if stage in ("0", "00", "import", IMPORT) else run[int(stage) if stage.isdigit() else stage].number


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


def print_chosen(graph: Graph, layer: int | None, op: str, where: str, *, flat: bool) -> str:
    """The ops of a name (a glob) and of a layer, by the modules they come from. Those of all layers are folded, unless `flat`."""
    layers = Layers.of(graph)
    named = [o for o in graph.ops if fnmatchcase(o.name, op)]
    if not named:
        raise EngineError(where, f"no op is a {op!r}", suggest(op, sorted({o.name for o in graph.ops})))
    chosen = [o for o in named if layer is None or layer in map(layers.layer, o.loc.modules)]
    if not chosen:
        raise EngineError(where, f"no op belongs to layer {layer}" + (f" and is a {op!r}" if op != "*" else ""), "layers count from 0")
    if flat or layer is not None:
        return "\n".join(map(print_op, chosen)) + "\n"
    return "\n".join(align([(g.tag, str(g.key)) for g in fold_ops(chosen, layers)])) + "\n"


def fold_ops(ops: list[Op], layers: Layers) -> list[Group[Op]]:
    """Lines that are equal up to the layer, with `%h` for what comes from another one."""

    def line(o: Op) -> str:
        anchor = o.results[0].name
        text, own = layers.shorten(print_op(o), anchor), layers.split(anchor)
        text = re.sub(r"%([\w./-]+)", lambda m: "%h" if own and layers.split(m[1]) not in (None, own) else m[0], text)
        return re.sub(rf"\blayer={own[1]}\b", "layer={L}", text) if own else text

    return group(ops, line, lambda o: layers.layer(o.results[0].name))


# -- kernels --------------------------------------------------------------------------------------------------------------------
def kernel_table(engine: Engine) -> str:
    """One line for each kernel: how often each program launches it, what it costs on the device, and where it comes from."""
    lines = [str(engine)]
    for kernel in engine.manifest.all_kernels:
        tuned = f"   tuned: {kernel.tuned.gain:.1%} less time than the default" if kernel.tuned else ""
        lines.append(f"  {kernel.name:<28} {kernel_uses(engine, kernel)}{kernel_resources(kernel)}{tuned}")
        launch = next((item for launches in engine.manifest.launch_lists.values() for item in launches if item.kernel == kernel.name), None)
        if launch is not None:
            modules = ", ".join(launch.modules[:4] or [SAMPLING]) + (", …" if len(launch.modules) > 4 else "")
            lines.append(f"  {'':<28} {launch.region}: {modules}" + (f"; cut: {launch.reason}" if launch.reason else ""))
    return "\n".join(lines) + "\n"


def kernel_uses(engine: Engine, kernel: Kernel) -> str:
    counts = {name: sum(launch.kernel == kernel.name for launch in launches) for name, launches in engine.manifest.launch_lists.items()}
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
    (re.compile(r"^ *(\+ (?:x\d|kernel))"), "green"),
    (re.compile(r"^ *(- (?:x\d|kernel))"), "red"),
    (re.compile(r"^ *(~ (?:x\d|dims))"), "yellow"),
    (re.compile(r"^ *(missed x\d+)"), "yellow"),
    (re.compile(r"^ *(event x\d+)"), "green"),
    (re.compile(r"^((?:pass|kernel|module|run|warning:) \S+(?: [\w-]+)?)"), "bold"),
    (re.compile(r"(//.*)$"), "dim"),
    (re.compile(r"(loc\([^)]*\))"), "dim"),
    (re.compile(r"(by\([^)]*\))"), "magenta"),
    (re.compile(r"(%[\w./{}+-]+)"), "cyan"),
    (re.compile(r"(@[\w./{}+-]+)"), "yellow"),
    (re.compile(r"= ([\w.-]+)\("), "bold"),
)


def write_text(file: Path, text: str) -> None:
    """Raises TilewrightError where that cannot be."""
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise TilewrightError(str(file), f"cannot be written ({error.strerror})", "choose another file") from error


def print_text(text: str) -> None:
    """Coloured on a terminal, plain when piped."""
    if not sys.stdout.isatty():
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        return
    from rich.console import Console

    Console(soft_wrap=True, highlight=False).print(colour_text(text.rstrip("\n")))


def colour_text(text: str) -> Text:
    from rich.text import Text

    def colour(line: str) -> Text:
        shown = Text(line)
        for pattern, style in COLOURS:
            for match in pattern.finditer(line):
                shown.stylize(style, match.start(1), match.end(1))
        return shown

    return Text("\n").join(map(colour, text.splitlines()))
