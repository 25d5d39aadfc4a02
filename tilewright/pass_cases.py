"""Tests of passes as text: `<pass>.ir` holds small graphs, and below each what the pass makes of it, or why it does nothing, or the error.

    //// three products of one activation          a case begins with its title
    // run: fuse-qkv                               the pipeline; left out, it is the pass that the file is named after
    graph @g(...) dims(...) { ... }
    // expect: changed                             or `unchanged`, or the name of an error
    graph @g(...) dims(...) { ... }                the new graph, then a line for each rewrite and for each near miss

`tilewright test-pass NAME --bless` writes what comes out into the file, to be read before it is accepted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import torch

from tilewright.ir.errors import ParseError, TilewrightError
from tilewright.ir.events import Event, EventLog, Miss
from tilewright.ir.fold import fold_text
from tilewright.ir.graph import Graph, Value, is_same_structure
from tilewright.ir.parser import parse_graph
from tilewright.ir.printer import print_graph
from tilewright.ir.reference import TORCH_DTYPES, Batch
from tilewright.passes.manager import PassManager
from tilewright.passes.validation import Validator

REQUESTS = ([1], [3, 2])  # lengths of the requests of a step: a decode of one token, two prompts
MEASURED = re.compile(r"by [\d.e+-]+ \(relative\)")  # an error depends on the data
DECODED = 5  # position of the token of a decode; prompts start at 0


@dataclass(frozen=True)
class Case:
    file: Path
    title: str
    pipeline: str
    graph: str  # text
    expected: str  # text

    def __str__(self) -> str:
        return f"{self.file.stem}: {self.title}"


def read_cases(file: Path, usual: str = "") -> list[Case]:
    """usual: the pipeline of cases that name none."""
    return [_read_case(file, block, usual or file.stem) for block in file.read_text(encoding="utf-8").split("\n//// ")[1:]]


def _read_case(file: Path, block: str, usual: str) -> Case:
    title, _, rest = block.partition("\n")
    graph, mark, expected = rest.partition("// expect:")
    if not mark:
        raise ParseError(f"{file}: {title}", "has no `// expect:`", "write one, and let --bless fill it in")
    run = re.search(r"^// run: (.*)$", graph, re.MULTILINE)
    return Case(file, title.strip(), run[1] if run else usual, graph, expected.strip())


def run_case(case: Case) -> str:
    """What comes out, as the text that a file expects. Every graph goes through text and back, and every change is compared in numbers."""
    outcomes = [_run_once(case, lengths) for lengths in REQUESTS]
    assert outcomes[0] == outcomes[1], "the outcome depends on the data"
    return outcomes[0]


def _run_once(case: Case, lengths: list[int]) -> str:
    graph = parse_graph(case.graph, file=case.file.name)
    graph.sort()
    check_round_trip(graph)
    before, log = print_graph(graph), EventLog()
    try:
        PassManager.of(case.pipeline, log=log, validator=validate_on_fresh_data(graph, lengths)).run(graph)
    except TilewrightError as error:
        return f"{type(error).__name__}\n// {MEASURED.sub('by … (relative)', str(error))}"
    check_round_trip(graph)
    check_records(graph, log)
    text = print_graph(graph)
    is_changed = text != before
    assert is_changed or not log.events, "an event is recorded, and the graph is as before"
    body = ["changed", text.partition("\n")[2].strip()] if is_changed else ["unchanged"]
    return "\n".join([*body, *map(_describe_event, log.events), *map(_describe_miss, log.misses)])


def _describe_event(e: Event) -> str:
    parts = [f"{' '.join(e.removed) or 'nothing'} -> {' '.join(e.added) or 'nothing'}"]
    parts += [f"keeps {', '.join(e.keeps)}"] if e.keeps else []
    parts += [f"{new} = {function}({old})" for new, function, old in e.related]
    parts += [e.reason] if e.reason else []
    return f"// {e.rule} at {e.anchor}: {'; '.join(parts)}"


def _describe_miss(m: Miss) -> str:
    return f"// {m.rule} did not fire at {m.anchor}: {m.reason}"


# -- what holds for every graph and every pass ----------------------------------------------------------------------------------
def check_round_trip(graph: Graph) -> None:
    for text in (print_graph(graph), fold_text(graph)):
        assert is_same_structure(graph, parse_graph(text)), text


def check_records(graph: Graph, log: EventLog) -> None:
    """Events are numbered without gaps; names that are gone stay gone, and names that a rewrite kept are there or went with a later one."""
    assert [e.number for e in log.events] == list(range(1, len(log.events) + 1))
    names = {value.name for value in graph.values()}
    assert not names & graph.retired
    assert all(kept in names | graph.retired for e in log.events for kept in e.keeps)


# -- data -----------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class RandomWeights:
    """Normal values, the same ones each time for the same name."""

    graph: Graph

    def load(self, name: str) -> torch.Tensor:
        type_ = self.graph.params[name].type
        generator = torch.Generator().manual_seed(crc32(name.encode()))
        return torch.randn(tuple(map(int, type_.shape)), generator=generator).to(TORCH_DTYPES[type_.dtype])


def validate_on_fresh_data(graph: Graph, lengths: list[int]) -> Validator:
    """Compares within f32 rounding, whatever the dtype: a pass that keeps every rounding changes no bit of bf16 either."""
    sizes = {"T": sum(lengths), "S": len(lengths)}
    inputs = {value.name: _draw(value, sizes, lengths) for value in graph.inputs}
    return Validator(RandomWeights(graph.copy()), inputs, Batch.of_lengths(lengths))


def _draw(value: Value, sizes: dict[str, int], lengths: list[int]) -> torch.Tensor:
    shape = [sizes[d] if isinstance(d, str) else d for d in value.type.shape]
    dtype = TORCH_DTYPES[value.type.dtype]
    if value.name == "positions":
        starts = [DECODED if length == 1 else 0 for length in lengths]
        return torch.cat([torch.arange(start, start + length, dtype=dtype) for start, length in zip(starts, lengths)]).reshape(shape)
    if value.type.dtype in ("i32", "i64"):
        read = [user.inputs[0].type.shape[0] for user in value.users if user.name in ("embedding", "gather_rows")]
        return torch.randint(0, min((sizes[d] if isinstance(d, str) else d for d in read), default=5), shape, dtype=dtype)
    return torch.randn(shape).to(dtype)


def write_outcomes(file: Path, usual: str = "") -> None:
    head = file.read_text(encoding="utf-8").partition("\n//// ")[0]
    blocks = [f"//// {case.title}\n{case.graph}// expect: {run_case(case)}\n" for case in read_cases(file, usual)]
    file.write_text("\n".join([head + "\n" if head[-1:] != "\n" else head, *blocks]), encoding="utf-8")
