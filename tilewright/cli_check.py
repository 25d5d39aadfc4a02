"""Commands that run a build's graphs and kernels and search for what is wrong with them. Each parses, calls one function, and prints."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tilewright import cli_panels
from tilewright.ir.errors import TilewrightError

if TYPE_CHECKING:
    from tilewright.inspect.check import Bench

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="an engine, or a folder of dumps")]
ModelPath = Annotated[str | None, typer.Option("--model", help="the checkpoint (default: the one that the engine was built from)")]
Prompts = Annotated[Path | None, typer.Option("--prompts", help="one prompt a line, token ids or text (default: random ids)")]
GateText = Annotated[str | None, typer.Option("--gate", help='conditions that must hold, such as "kl<1e-3, top1>=0.99"')]


def register(commands: typer.Typer) -> None:
    """Adds the commands of this file."""
    commands.command(rich_help_panel=cli_panels.WRONG)(check)
    commands.command(rich_help_panel=cli_panels.WRONG)(bisect)
    commands.command(rich_help_panel=cli_panels.WRONG)(reduce)
    commands.command(rich_help_panel=cli_panels.WRONG)(replay)


def check(
    run: RunPath,
    model: ModelPath = None,
    prompts: Prompts = None,
    gate: GateText = None,
    seed: Annotated[int, typer.Option(help="of the random prompts")] = 0,
    device: Annotated[str | None, typer.Option(help="where the kernels run: cuda, or cpu for the interpreter")] = None,
    transformers: Annotated[bool, typer.Option("--transformers", help="compare the import with transformers in f32 too")] = False,
    save: Annotated[bool, typer.Option("--save", help="keep the rows in ENGINE/inspect/numerics")] = False,
) -> None:
    """Errors of every pass, value and kernel against the import in wide floats; exit code 1 where a gate fails."""
    from tilewright.inspect import load
    from tilewright.inspect.check import check, read_prompts
    from tilewright.inspect.metrics import Gate

    asked = Gate.parse(gate) if gate is not None else None
    opened = load(run)
    found = check(
        opened, model=model, prompts=read_prompts(prompts, opened) if prompts else None, seed=seed, transformers=transformers, device=device
    )
    print(found)
    if save:
        found.save((run if opened.engine is None else run / "inspect") / "numerics")
    failure = asked.failure(found.metrics) if asked else ""
    if failure:
        print(f"tilewright check: {failure}", file=sys.stderr)
        sys.exit(1)


def bisect(
    run: RunPath,
    command: Annotated[list[str] | None, typer.Argument(metavar="[-- CMD...]", help="exits 0 for a good engine: {engine}, or $ENGINE")] = None,
    gate: GateText = None,
    model: ModelPath = None,
    prompts: Prompts = None,
    out: Annotated[Path, typer.Option("--output", "-o", help="folder for repro.py and the answers so far")] = Path("bisect"),
) -> None:
    """Find the stage, pass, event and op that break a gate (or a command); exit code 1 where something is found."""
    from tilewright.inspect.bisect import Bisection
    from tilewright.inspect.blackbox import BlackBox, judge_by
    from tilewright.inspect.metrics import Gate

    if (gate is None) == (not command):
        raise TilewrightError("bisect", "got a gate and a command" if gate else "got no gate", 'pass --gate "kl<1e-3", or a command after --')
    ladder = Bisection(open_bench(run, model, prompts), Gate.parse(gate) if gate else Gate(()), out, model)
    found = BlackBox(ladder, judge_by(command)).find() if command else ladder.find()
    print(found or "the gate holds: nothing to find")
    sys.exit(0 if found is None else 1)


def reduce(
    run: RunPath,
    gate: Annotated[str, typer.Option("--gate", help='conditions that must hold, such as "kl<1e-3, top1>=0.99"')],
    model: ModelPath = None,
    prompts: Prompts = None,
    out: Annotated[Path, typer.Option("--output", "-o", help="folder for repro.py and best.ir")] = Path("reduced"),
    seconds: Annotated[float, typer.Option(help="after which the best so far is kept")] = 120.0,
) -> None:
    """Find the smallest graph on which the guilty pass still does its fault; exit code 1 where there is one."""
    from tilewright.inspect.bisect import Bisection
    from tilewright.inspect.metrics import Gate
    from tilewright.inspect.reduce import Reduction

    asked = Gate.parse(gate)
    found = Reduction(Bisection(open_bench(run, model, prompts), asked, out, model), seconds).find()
    print(found or "the gate holds: nothing to reduce")
    sys.exit(0 if found is None else 1)


def replay(
    run: RunPath,
    out: Annotated[Path, typer.Option("--output", "-o", help="the engine, or folder of dumps, to write")],
    start: Annotated[str | None, typer.Option("--from", help="the pass to go on after: its number or name; 0 for the import")] = None,
    edit: Annotated[bool, typer.Option("--edit", help="open the graph in $EDITOR first")] = False,
    graph: Annotated[Path | None, typer.Option("--graph", help="a file with the graph, in place of the snapshot")] = None,
    only: Annotated[str, typer.Option("--only", help="run this pass alone; gives dumps, no engine")] = "",
    kernel: Annotated[list[str] | None, typer.Option("--kernel", help="NAME=FILE.py: another source of a kernel; may be repeated")] = None,
    model: ModelPath = None,
) -> None:
    """Go on from the graph after a pass, as it was or edited; or exchange the source of kernels."""
    from tilewright.inspect import load
    from tilewright.inspect.replay import edit as edit_graph
    from tilewright.inspect.replay import read_graph
    from tilewright.inspect.replay import replay as go_on
    from tilewright.inspect.substitute import substitute

    sources = dict(split_kernel(text) for text in kernel or ())
    opened, path = load(run), run
    if start is None and not sources:
        raise TilewrightError("replay", "got neither --from nor --kernel", "pass --from N, or --kernel NAME=FILE.py")
    if start is not None:
        number = 0 if start in ("0", "import") else opened[start].number
        text = graph or out.with_name(f"{out.name}.edited.ir")
        changed = edit_graph(opened.graph(number), text) if edit else read_graph(text) if graph else None
        print(go_on(opened, number, out, graph=changed, only=only, model=model))
        path = out
    if sources:
        print(substitute(path, out, sources).engine)


def split_kernel(text: str) -> tuple[str, Path]:
    name, equals, file = text.partition("=")
    if not equals:
        raise TilewrightError("replay", f"--kernel is {text!r}", "write NAME=FILE.py")
    return name, Path(file)


def open_bench(path: Path, model: str | None, prompts: Path | None) -> Bench:
    from tilewright.inspect import load
    from tilewright.inspect.check import Bench, load_weights, read_prompts
    from tilewright.inspect.references import Sample

    run = load(path)
    sample = Sample(tuple(map(tuple, read_prompts(prompts, run)))) if prompts else None
    return Bench.of(run, load_weights(run, model), sample)
