"""`check`: one sample of prompts through every snapshot of a run, its kernels and the whole engine, against the import in wide floats."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tilewright.inspect.engine_steps import EngineSteps
from tilewright.inspect.launches import LaunchProbe, LaunchRow
from tilewright.inspect.metrics import LogitsError, compare_logits, relative_error
from tilewright.inspect.numerics import PassNumerics, Study, ValueRow, value_metrics
from tilewright.inspect.references import References, Sample, compute_dtype
from tilewright.inspect.rows import Rows
from tilewright.inspect.run import Run
from tilewright.inspect.text import Readable
from tilewright.ir.errors import EngineError, TilewrightError
from tilewright.ir.graph import Graph
from tilewright.ir.weights import Weights
from tilewright.runtime.engine import Engine as LoadedEngine
from tilewright.runtime.tokenizer import encode, load_tokenizer

LENGTHS = (17, 5, 9)  # of random prompts: one crosses pages, a step of the engine may have to cut it
MOST_IDS = 1000  # random ids are drawn below it, and below the vocabulary


@dataclass(frozen=True)
class Numerics(Readable):
    """What `check` found."""

    run: Run
    sample: Sample
    dtype: str
    passes: tuple[PassNumerics, ...]  # the import first
    values: tuple[ValueRow, ...]  # of the final graph
    launches: tuple[LaunchRow, ...] = ()
    engine: LogitsError | None = None  # all of its kernels, one after the other
    transformers: float | None = None  # relative error of the import's wide logits against those of transformers in f32

    def by_pass(self) -> Rows[PassNumerics]:
        return Rows(self.passes)

    def worst(self, count: int = 10) -> Rows[ValueRow | LaunchRow]:
        """Values and launches by how much worse they are than what they may be."""
        return Rows(sorted([*self.values, *self.launches], key=lambda row: -row.severity)[:count])

    @property
    def red(self) -> list[ValueRow | LaunchRow]:
        return [row for row in self.worst(len(self.values) + len(self.launches)) if row.severity > 1]

    @property
    def metrics(self) -> dict[str, float]:
        """Of the engine, or of the final graph where there is none; by the names of METRICS."""
        found = (self.engine or self.passes[-1].logits).as_dict() | value_metrics(self.values)
        launched = max(self.launches, key=lambda row: row.ratio, default=None)
        if launched is not None and launched.ratio > found["ratio"]:
            found |= {"ratio": launched.ratio, "isolated": max(found["isolated"], launched.isolated)}
        return found | {"red": float(len(self.red))}

    def records(self) -> dict[str, list[dict[str, Any]]]:
        """Rows as plain data, by kind: for files and for the report."""
        values = [dataclasses.asdict(row) | {"ratio": row.ratio, "level": row.level} for row in self.values]
        return {
            "passes": [dataclasses.asdict(row) for row in self.passes],
            "values": values,
            "launches": [dataclasses.asdict(row) | {"ratio": row.ratio} for row in self.launches],
        }

    def save(self, folder: Path) -> None:
        """`passes.jsonl`, `values.jsonl` and `launches.jsonl`. No weights and no tokens."""
        folder.mkdir(parents=True, exist_ok=True)
        for kind, rows in self.records().items():
            (folder / f"{kind}.jsonl").write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows), encoding="utf-8")

    def __str__(self) -> str:
        from tilewright.inspect.numerics_text import describe

        return describe(self)


@dataclass(frozen=True)
class Bench:
    """A run with its weights, a sample and the references: what `check`, `bisect` and `reduce` work on."""

    run: Run
    study: Study
    steps: EngineSteps | None

    @staticmethod
    def of(run: Run, weights: Weights, sample: Sample | None = None, *, device: str | None = None) -> Bench:
        graph = run.graph(0)
        sample = sample or default_sample(run)
        study = Study.of(run, References(sample, weights, compute_dtype(graph)))
        engine = LoadedEngine.load(run.engine.path, choose_device(run.engine.manifest.target, device)) if run.engine else None
        return Bench(run, study, EngineSteps(engine, sample) if engine else None)

    def engine_logits(self) -> LogitsError | None:
        return compare_logits(self.steps.logits(), self.study.expected) if self.steps else None

    def launches(self) -> tuple[LaunchRow, ...]:
        return tuple(LaunchProbe(self.steps, self.run.final, self.study.references).rows()) if self.steps else ()

    def check(self) -> Numerics:
        study = self.study
        values = tuple(study.values(self.run.final))
        dtype = study.references.dtype
        return Numerics(self.run, study.references.sample, dtype, tuple(study.passes()), values, self.launches(), self.engine_logits())


def check(
    run: Run, *, model: str | Path | None = None, weights: Weights | None = None, prompts: list[list[int]] | None = None, seed: int = 0,
    transformers: bool = False, device: str | None = None,
) -> Numerics:  # fmt: skip
    """model: the checkpoint, by default the one that the engine names. Raises TilewrightError."""
    model = model or (find_model(run) if transformers else None)
    sample = Sample(tuple(map(tuple, prompts))) if prompts else default_sample(run, seed)
    bench = Bench.of(run, weights or load_weights(run, model), sample, device=device)
    found = bench.check()
    if transformers:
        error = relative_error(bench.study.expected, transformers_logits(Path(str(model)), sample))
        found = dataclasses.replace(found, transformers=error)
    return found


def find_model(run: Run) -> str:
    """The checkpoint that the engine was built from, as it was named then. Raises EngineError."""
    if run.engine is None:
        raise EngineError(f"run {run.path}", "is a folder of dumps, which names no checkpoint", "pass --model DIR")
    return run.engine.manifest.model.name


def load_weights(run: Run, model: str | Path | None = None) -> Weights:
    """Raises TilewrightError where the checkpoint does not belong to the run's graph."""
    from tilewright.compiler import trace

    model = model or find_model(run)
    graph = run.graph(0)
    length = run.engine.manifest.limits.max_sequence_len if run.engine else None
    dtype = run.engine.manifest.model.dtype if run.engine else compute_dtype(graph)
    try:
        traced = trace(str(model), dtype, length)
    except TilewrightError as error:
        error.add_note("the reference needs the checkpoint that the run was built from: pass --model DIR")
        raise
    types = {name: value.type for name, value in traced.graph.params.items()}
    strange = [name for name, value in graph.params.items() if types.get(name) != value.type]
    if strange:
        problem = f"@{strange[0]} is {graph.params[strange[0]].type}, {model} has {types.get(strange[0]) or 'none'}"
        raise EngineError(f"run {run.path}", problem, "pass --model DIR")
    return traced.weights


def default_sample(run: Run, seed: int = 0) -> Sample:
    graph = run.graph(0)
    embedding = next((op.inputs[0] for op in graph.find("embedding") if op.inputs[0].is_const), None)
    vocab = int(embedding.type.shape[0]) if embedding else MOST_IDS
    most = min((int(table.type.shape[0]) for table in position_tables(run.final)), default=max(LENGTHS))
    if run.engine:
        most = min(most, run.engine.manifest.limits.max_sequence_len)
    return Sample.random([min(length, most) for length in LENGTHS], min(vocab, MOST_IDS), seed)


def position_tables(graph: Graph) -> list[Any]:
    return [op.inputs[0] for op in graph.find("gather_rows") if op.inputs[0].is_const and op.inputs[1].name == "positions"]


def read_prompts(file: Path, run: Run) -> list[list[int]]:
    """One prompt a line: token ids, or text for the engine's tokenizer. Raises TilewrightError."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise TilewrightError(str(file), f"cannot be read ({error})", "pass a text file with one prompt a line") from error
    tokenizer = load_tokenizer(run.engine.path) if run.engine else None
    found: list[list[int]] = []
    for number, line in enumerate(lines, 1):
        words = line.replace(",", " ").strip("[]").split()
        ids = [int(word) for word in words] if all(word.isdigit() for word in words) else line
        found.append(encode(ids, tokenizer, f"{file}:{number}"))
    return found


def choose_device(target: str, asked: str | None) -> str | None:
    """Kernels for a GPU run on the interpreter where there is none."""
    return "cpu" if asked is None and target != "cpu" and not torch.cuda.is_available() else asked


def transformers_logits(model: Path, sample: Sample) -> Tensor:
    """f32[T, vocab], one prompt at a time, without a cache."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, trust_remote_code=False).eval()
    with torch.no_grad():
        rows = [loaded(input_ids=torch.tensor([prompt]), use_cache=False).logits[0].float() for prompt in sample.prompts]
    return torch.cat(rows)
