"""The compiler's front door: a model becomes an engine in one call, or in the stages trace, optimize and build, each readable as text."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright.destination import choose_destination, leave_as_found
from tilewright.engine import Engine, count
from tilewright.environment import read_environment
from tilewright.inspect.pass_printer import PassPrinter
from tilewright.inspection import inspection_files, keep_dumps, reproduce, stop_build, write_inspection
from tilewright.instruments import current_instrument
from tilewright.ir.errors import EngineError, PassError
from tilewright.ir.fold import fold_text
from tilewright.ir.graph import Graph
from tilewright.ir.manifest import Limits, ModelInfo
from tilewright.ir.types import Bounds
from tilewright.ir.weights import Weights
from tilewright.limits import DEFAULT_PAGE, AskedLimits
from tilewright.passes.manager import PassManager, PassRow, Report
from tilewright.passes.pipelines import QUANTIZATIONS, default_pipeline
from tilewright.passes.registry import Step, load_passes, parse_pipeline
from tilewright.stages import Stages
from tilewright.targets import choose_target

if TYPE_CHECKING:
    from tilewright.codegen.tuning import Timer
    from tilewright.frontend.trace import Trace
    from tilewright.tuning import Tiles

AfterEach = Callable[[str, Graph], None]  # name of a pass, the graph after it


@dataclass(frozen=True, slots=True)
class Optimized:
    """A graph after a pipeline, and what `build` needs beside it. `str()` is the graph as text, equal layers folded."""

    graph: Graph
    report: Report
    weights: Weights | None = None  # None: the graph came from text, it can be looked at but not built
    info: ModelInfo | None = None
    tokenizer_files: tuple[Path, ...] = ()

    def __str__(self) -> str:
        return fold_text(self.graph)

    def __repr__(self) -> str:
        return f"<{len(self.graph)} ops after {self.report.pipeline or 'no pass'}>"


def compile(
    model: Any, out: str | Path, *, dtype: Any = None, quantize: str | None = None, target: str | None = None, pipeline: str | None = None,
    max_batch_size: int = 16, max_input_len: int | None = None, max_output_len: int | None = None, max_tokens: int | None = None,
    page_size: int = DEFAULT_PAGE, deterministic: bool = False, validate: bool | None = None, stages: Stages | None = None,
    tune: bool | Timer = False, tune_seconds: float | None = None, tune_candidates: int | None = None, tuned: str | Path | None = None,
) -> Engine:  # fmt: skip
    """Compiles a directory, a hub id or a transformers model object into an engine directory `out`; an engine that is there is replaced.

    dtype: of activations (default: the checkpoint's). quantize: int8, int8-keep-head, or the text of a pass. target: cpu, cuda (this machine's
    GPU) or sm_<number> (default: cuda where there is one). pipeline: text of the passes; the word `default` in it stands for the default ones.
    deterministic: a request's tokens are the same to the bit whatever else is served with it; costs speed. validate: run the reference
    interpreter around every pass. tune: measure tile sizes on this machine's GPU (or with a Timer of your own), and keep the best for later builds
    too; tune_seconds and tune_candidates (of a kernel) bound it. tuned: a file of measured tiles to use, or "none" for the defaults alone. Raises
    TilewrightError, and then leaves nothing at `out`.
    """
    stages = stages or Stages(bars=True)
    out, target = choose_destination(out), choose_target(target)
    tiles = _open_tiles(target, tune, tuned, seconds=tune_seconds, candidates=tune_candidates)
    asked = AskedLimits(
        max_batch_size=max_batch_size, max_input_len=max_input_len, max_output_len=max_output_len, max_tokens=max_tokens, page_size=page_size
    )
    limits = asked.choose(positions_of(model))
    choose_steps(pipeline, quantize, limits.max_sequence_len)  # a misspelt pass is refused before the work starts
    with stages.stage("trace") as stage:
        traced = trace(model, dtype, limits.max_sequence_len)
        stage.note(f"{traced.info.architecture}, {count(traced.info.num_parameters)} parameters: {len(traced.graph)} ops in one graph")
    bound_dims(traced.graph, limits)
    again = reproduce(model, dtype=dtype, quantize=quantize, target=target, pipeline=pipeline, limits=limits, deterministic=deterministic)
    elsewhere = read_environment().inspect_dir
    with leave_as_found(out), keep_dumps(out, elsewhere, again) as folder:
        with stages.stage("passes") as stage:
            optimized = optimize(traced, pipeline, quantize=quantize, length=limits.max_sequence_len, validate=validate, dump=folder)
            if optimized.report.left:
                raise stop_build(folder, out, optimized.report, stays=bool(elsewhere))
            stage.note(f"{sum(len(row.events) for row in optimized.report.rows)} rewrites: {len(optimized.graph)} ops")
        engine = _write_engine(optimized, out, tiles, limits, stages, target=target, deterministic=deterministic, dump=folder, again=again)
    if read_environment().inspect >= 3:
        from tilewright.inspect.measure_engine import measure_engine

        with stages.stage("measure") as stage:
            stage.note(measure_engine(engine, traced.weights))
    return engine


def trace(model: Any, dtype: Any = None, max_model_len: int | None = None) -> Trace:
    """The model as one graph over a flattened batch; weights stay where they are. Raises TraceError and CheckpointError."""
    from tilewright.frontend.trace import trace as trace_model

    return trace_model(model, dtype, max_model_len)


def optimize(
    source: Trace | Graph, pipeline: str | None = None, *, quantize: str | None = None, length: int | None = None, validate: bool | None = None,
    dump: Path | None = None, after_each: AfterEach | None = None,
) -> Optimized:  # fmt: skip
    """Runs a pipeline on a copy of the graph. length: positions that rotary tables cover (default: all that the model has).

    A Graph comes without weights: passes run, validation does not. dump: folder for the text after each pass. Raises PassError and GraphError.
    """
    switches = read_environment()
    graph = source.copy() if isinstance(source, Graph) else source.graph.copy()
    weights, info, files = (None, None, ()) if isinstance(source, Graph) else (source.weights, source.info, source.tokenizer_files)
    length = length or (info.max_positions if info else min(graph.dims["T"].high if "T" in graph.dims else 1, 8192))
    printer = PassPrinter.of(switches.print, graph) if switches.print else None

    def tell(row: PassRow) -> None:
        if after_each:
            after_each(row.name, graph)
        if printer:
            printer(row, graph)

    steps = choose_steps(pipeline, quantize, length)
    manager = PassManager(steps, dump=dump, limit=switches.opt_limit, stop_after=switches.stop_after, on_pass=tell, instrument=current_instrument())
    if weights is not None and (switches.validate if validate is None else validate):
        from tilewright.validation import make_validator

        manager.validator = make_validator(graph, weights)
    report = manager.run(graph)
    if printer:
        printer.close(report.pipeline)
    if info is not None:
        info = dataclasses.replace(info, quantization=describe_quantization(manager.steps))
    return Optimized(graph, report, weights, info, files)


def build(
    optimized: Optimized, out: str | Path, *, target: str | None = None, max_batch_size: int = 16, max_input_len: int | None = None,
    max_output_len: int | None = None, max_tokens: int | None = None, page_size: int = DEFAULT_PAGE, deterministic: bool = False,
    stages: Stages | None = None, dump: Path | None = None, again: str = "", tune: bool | Timer = False, tune_seconds: float | None = None,
    tune_candidates: int | None = None, tuned: str | Path | None = None,
) -> Engine:  # fmt: skip
    """Kernels and weights of an optimized graph, written as an engine directory. Limits, `deterministic`, `tune` and `tuned` as in `compile`.

    dump: folder with the text after each pass, and `again` the script that makes the same engine, both for ENGINE/inspect. Raises TilewrightError.
    """
    if not isinstance(optimized, Optimized):
        raise PassError("build", f"got a {type(optimized).__name__}", "pass what optimize(trace(model)) returned")
    if optimized.info is None and optimized.weights is not None:
        problem = "it came from an ONNX file, which tells neither its limits nor where pages of a cache go"
        raise PassError("build", problem, "it can be optimized and exported; for an engine compile(...) the checkpoint that it was exported from")
    if optimized.info is None:
        raise PassError("build", "the graph came from text, so it has no weights", "pass what optimize(trace(model)) returned")
    out, target = choose_destination(out), choose_target(target)
    tiles = _open_tiles(target, tune, tuned, seconds=tune_seconds, candidates=tune_candidates)
    asked = AskedLimits(
        max_batch_size=max_batch_size, max_input_len=max_input_len, max_output_len=max_output_len, max_tokens=max_tokens, page_size=page_size
    )
    limits = asked.choose(optimized.info.max_positions)
    bound_dims(optimized.graph, limits)
    return _write_engine(
        optimized, out, tiles, limits, stages or Stages(bars=True), target=target, deterministic=deterministic, dump=dump, again=again
    )


def _write_engine(
    optimized: Optimized, out: Path, tiles: Tiles, limits: Limits, stages: Stages, *, target: str, deterministic: bool, dump: Path | None = None,
    again: str = "",
) -> Engine:  # fmt: skip
    from tilewright.codegen.lower import list_plans, lower
    from tilewright.codegen.pack import pack
    from tilewright.passes.regions import build_schedules, default_regimes

    info, weights = optimized.info, optimized.weights
    assert info is not None and weights is not None, "only what was traced is written"
    check_tables(optimized.graph, limits)
    with stages.stage("regions") as stage:
        sizes = {"max_tokens": limits.max_tokens, "max_batch_size": limits.max_batch_size}
        schedules = build_schedules(optimized.graph, default_regimes(target, **sizes, deterministic=deterministic))
        stage.note(f"{sum(len(schedule.regions) for schedule in schedules)} in {len(schedules)} programs")
    if tiles.timer is not None:
        tiles.measure(list_plans(schedules, target=target, limits=limits, deterministic=deterministic), limits, stages)
    with stages.stage("lower") as stage:
        lowered = lower(optimized.graph, schedules, target=target, limits=limits, deterministic=deterministic, choices=tiles.choices)
        launches = ", ".join(f"{p.name} {len(p.launches)}" for p in lowered.programs)
        stage.note(f"{len(lowered.kernels)} kernels; launches: {launches}")
    files: dict[str, bytes | Path] = {file.name: file for file in optimized.tokenizer_files}
    switches = read_environment()
    with stages.stage("pack") as bar, leave_as_found(out):
        found = inspection_files(switches.inspect, optimized.report, schedules, lowered, dump=dump, again=again, measured=tiles.measured)
        if switches.inspect_dir:
            write_inspection(Path(switches.inspect_dir), found)
        else:
            files |= {f"inspect/{name}": data for name, data in found.items()}
        manifest = pack(
            out, lowered, weights, model=info, limits=limits, producer=f"tilewright {importlib.metadata.version('tilewright')}", files=files,
            progress=lambda stage, done, total, what: bar.advance(done, total, f"{stage}: {what}"),
        )  # fmt: skip
        bar.note(f"kernels {'compiled for ' + target if target != 'cpu' else 'written'}, {len(manifest.weights)} weights packed into {out}")
    return Engine(out, manifest)


def _open_tiles(target: str, tune: bool | Timer, tuned: str | Path | None, **bounds: float | None) -> Tiles:
    """bounds: fields of Budget, None for its default."""
    from tilewright.tuning import Budget, open_tiles

    given: dict[str, Any] = {name: value for name, value in bounds.items() if value is not None}
    if given and tune is False:
        name, value = next(iter(given.items()))
        raise EngineError(f"tune_{name}", f"is {value!r}, and nothing is to be tuned", "pass tune=True (--tune) too")
    return open_tiles(target, tune, tuned, Budget(**given))


# -- choices --------------------------------------------------------------------------------------------------------------------
def positions_of(model: Any) -> int:
    """Positions that the model was made for, from its config alone. Raises CheckpointError."""
    from tilewright.frontend.checkpoint import find_model_directory, read_config
    from tilewright.frontend.trace import max_positions

    if hasattr(model, "config"):
        return max_positions(model.config)
    return max_positions(read_config(find_model_directory(model)))


def bound_dims(graph: Graph, limits: Limits) -> None:
    """T tokens of a step, S rows whose logits are wanted: as many as the engine will see."""
    graph.dims["T"] = Bounds(1, limits.max_tokens)
    graph.dims["S"] = Bounds(1, limits.max_batch_size)


def choose_steps(pipeline: str | None, quantize: str | None, length: int) -> tuple[Step, ...]:
    """The passes to run, after TILEWRIGHT_PASSES has had its say. Raises PassError."""
    if pipeline is not None and not isinstance(pipeline, str):
        raise PassError("pipeline", f"is a {type(pipeline).__name__}", "pass the text of one, as in 'simplify,fuse-qkv'")
    if quantize is not None:
        check_quantization(quantize)
    leaves_out_quantize = "quant" in read_environment().no
    usual = default_pipeline(length=length, quantize=None if leaves_out_quantize else quantize)
    text, has_default = re.subn(r"(?<![\w-])default(?![\w-])", lambda _: usual, pipeline) if pipeline is not None else (usual, 1)
    if quantize is not None and not has_default:
        raise PassError("quantize", f"{quantize!r} is asked for, and the pipeline {pipeline!r} has no `default` to put it in", "name the pass in it")
    steps = tuple(step for step in parse_pipeline(text) if not (leaves_out_quantize and step.info.name.startswith("quantize")))
    for change in filter(None, (word.strip() for word in read_environment().passes.split(","))):
        sign, name = change[0], change[1:]
        if sign == "+":
            steps += parse_pipeline(name)
        elif sign == "-" and any(step.info.name == name for step in steps):
            steps = tuple(step for step in steps if step.info.name != name)
        else:
            raise PassError("TILEWRIGHT_PASSES", f"cannot apply {change!r}", "write -PASS for one of the pipeline, +PASS for another")
    return steps


def check_quantization(quantize: str) -> None:
    """Raises PassError unless it is a name of QUANTIZATIONS or begins with the name of a pass."""
    if quantize in QUANTIZATIONS or str(quantize).partition("{")[0].strip() in load_passes():
        return
    raise PassError("quantize", f"is {quantize!r}", f"use {', '.join(QUANTIZATIONS)} or the text of a pass")


def describe_quantization(steps: Sequence[Step]) -> str:
    return ",".join(str(step) for step in steps if step.info.name.startswith("quantize")) or "none"


def check_tables(graph: Graph, limits: Limits) -> None:
    """Tables read by position must reach as far as the longest request. Raises PassError."""
    for op in graph.find("gather_rows"):
        table, rows = op.inputs
        if rows.name == "positions" and table.is_const and int(table.type.shape[0]) < limits.max_sequence_len:
            problem = f"{table.display} has {table.type.shape[0]} positions, requests may have {limits.max_sequence_len}"
            raise PassError("build", problem, f"optimize with length={limits.max_sequence_len}, or lower max_input_len or max_output_len")
