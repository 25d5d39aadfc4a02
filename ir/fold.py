"""Repeated layers as `repeat` blocks, and back. Works on text lines alone, so that any stage folds and every folded text parses.

    repeat L in 0..30 step 2 as model.layers carry(%h = %embed) {     `%.x` is `%model.layers.{L}.x`; the carry is what a turn reads of the one before
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from tilewright.ir.errors import ParseError
from tilewright.ir.graph import Graph
from tilewright.ir.printer import print_graph

MAX_PERIOD = 8
INDENT = "  "
DEFINED = re.compile(r"\s*(?:param )?[%@]([\w./<>-]*?)\.(\d+)(?=[.,\s])")
NAME = re.compile(r"[%@][\w./<>{}+-]+")
OPEN = re.compile(r"\s*repeat L in (\d+)\.\.(\d+)(?: step (\d+))? as ([\w.]+)(?: carry\(([^)]*)\))? \{")
BEFORE = re.compile(r"\{L-(\d+)\}")  # a layer of the turn before
YIELD = re.compile(r"\s*yield (.*)")
_ATTR = "\0"  # ends a part whose number is an attribute, not a piece of a name


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive lines that define values of one layer: `<stem>.<index>.…`; stem is empty outside layers.

    Their text is `parts[0] numbers[0] parts[1] numbers[1] …`, where a number is a layer's: behind `<stem>.`, or behind `layer=` (_ATTR).
    """

    stem: str
    index: int
    lines: tuple[str, ...]
    parts: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()

    def relative(self, base: int, period: int) -> list[str]:
        """The lines with layer indices written relative to `base`: {L}, {L+1}, and {L-1} for the turn before."""
        pieces: list[str] = []
        for part, number in zip(self.parts, self.numbers):
            offset = number - base
            pieces += (part, f"{self.stem}.", _placeholder(offset) if -period <= offset < period else str(number))
        text = "".join(pieces) + self.parts[-1]
        return text.replace(f"{_ATTR}{self.stem}.", "layer=").split("\n")

    def is_same(self, other: Block, base: int, other_base: int, period: int) -> bool:
        """Whether `relative` gives the same for both."""
        if self.parts != other.parts:
            return False
        for number, twin in zip(self.numbers, other.numbers):
            offset, twin_offset = number - base, twin - other_base
            is_near, is_twin_near = -period <= offset < period, -period <= twin_offset < period
            if is_near != is_twin_near or (offset != twin_offset if is_near else number != twin):
                return False
        return True


@dataclass(frozen=True, slots=True)
class Run:
    """Blocks from `start` on that are `turns` times the same `period` blocks, up to the layer's index and the carried values."""

    period: int
    turns: int
    body: tuple[str, ...]
    carry: tuple[tuple[str, str], ...]  # (value of the turn before as {L-k} name, initial value)
    rest: tuple[str, ...] = ()  # lines behind the last turn that stand in its block

    @property
    def num_blocks(self) -> int:
        return self.period * self.turns

    def saved(self) -> int:
        return (self.turns - 1) * len(self.body)


def fold_text(graph: Graph, *, note: str = "") -> str:
    """`print_graph` with runs of equal layers (period 1 to 8) as `repeat` blocks. `parse_graph` reads it back to an equal graph."""
    return fold_flat(print_graph(graph, note=note))


def fold_flat(text: str) -> str:
    """The same of what `print_graph` gave."""
    return "\n".join(fold_lines(text.splitlines())) + "\n"


def fold_lines(lines: list[str]) -> list[str]:
    blocks = list(_blocks(lines))
    folded: list[str] = []
    at = 0
    while at < len(blocks):
        run = _best_run(blocks, at) if blocks[at].stem else None
        if run is None:
            folded += blocks[at].lines
            at += 1
        else:
            folded += (*_print_run(run, blocks[at]), *run.rest)
            at += run.num_blocks
    return folded


def unfold_text(text: str, file: str) -> list[tuple[int, str]]:
    """Lines numbered as in the text, with every `repeat` block written out. Raises ParseError for a block that does not close."""
    unfolded: list[tuple[int, str]] = []
    numbered = iter(enumerate(text.splitlines(), 1))
    for number, line in numbered:
        match = OPEN.match(line)
        if match is None:
            unfolded.append((number, line))
            continue
        body: list[tuple[int, str]] = []
        for inner in numbered:
            if inner[1].strip() == "}":
                break
            body.append(inner)
        else:
            raise ParseError(f"{file}:{number}:1", "the repeat block is not closed: `}` is missing")
        unfolded += _unroll(match, body, f"{file}:{number}:1")
    return unfolded


# -- folding --------------------------------------------------------------------------------------------------------------------
def _blocks(lines: list[str]) -> Iterator[Block]:
    stem, index, held = "", -1, []
    for line in lines:
        match = DEFINED.match(line)
        here = (match[1], int(match[2])) if match and match[1] else ("", -1)
        if here != (stem, index) and held:
            yield _block(stem, index, held)
            held = []
        stem, index = here
        held.append(line)
    if held:
        yield _block(stem, index, held)


def _block(stem: str, index: int, lines: list[str]) -> Block:
    if not stem:
        return Block(stem, index, tuple(lines))
    pieces = _numbers_of(stem).split("\n".join(lines).replace("layer=", f"{_ATTR}{stem}."))
    return Block(stem, index, tuple(lines), tuple(pieces[::2]), tuple(map(int, pieces[1::2])))


@cache
def _numbers_of(stem: str) -> re.Pattern[str]:
    return re.compile(re.escape(stem) + r"\.(\d+)\b")  # begins with what is plain text, which is searched for fast


def _best_run(blocks: list[Block], at: int) -> Run | None:
    best: Run | None = None
    for period in range(1, MAX_PERIOD + 1):
        if best is not None and 2 * period <= best.num_blocks:
            continue  # it would repeat what `best` repeats, and end where that ends
        run = _run(blocks, at, period)
        if run is not None and (best is None or run.saved() > best.saved()):
            best = run
    return best


def _run(blocks: list[Block], at: int, period: int) -> Run | None:
    first, second = _turn(blocks, at, period, 0), _turn(blocks, at, period, 1)
    if first is None or second is None:
        return None
    second, rest = _cut_end(blocks, at + period, second, len(first[-1].lines))
    bases = (first[0].index, second[0].index)
    body = _print_turn(second, period)
    carry = _carried(_print_turn(first, period), body, bases[0])
    if carry is None or not _are_yielded(carry, body, period):
        return None
    turns = 2
    while not rest and (turn := _turn(blocks, at, period, turns)) is not None:
        turn, rest = _cut_end(blocks, at + turns * period, turn, len(second[-1].lines))
        if not all(a.is_same(b, turn[0].index, bases[1], period) for a, b in zip(turn, second)):
            return Run(period, turns, tuple(body), tuple(carry.items()))
        turns += 1
    return Run(period, turns, tuple(body), tuple(carry.items()), rest)


def _cut_end(blocks: list[Block], at: int, turn: list[Block], num_lines: int) -> tuple[list[Block], tuple[str, ...]]:
    """Takes from the last turn of all what stands behind `num_lines` of its last block: the end of the model makes values there too."""
    last, following = turn[-1], at + len(turn)
    if len(last.lines) <= num_lines or (following < len(blocks) and blocks[following].stem == last.stem):
        return turn, ()
    return [*turn[:-1], _block(last.stem, last.index, list(last.lines[:num_lines]))], last.lines[num_lines:]


def _turn(blocks: list[Block], at: int, period: int, turn: int) -> list[Block] | None:
    base = blocks[at].index + turn * period
    chosen = blocks[at + turn * period : at + (turn + 1) * period]
    is_whole = len(chosen) == period and all(b.stem == blocks[at].stem and b.index == base + i for i, b in enumerate(chosen))
    return chosen if is_whole else None


def _print_turn(turn: list[Block], period: int) -> list[str]:
    return [line for block in turn for line in block.relative(turn[0].index, period)]


def _placeholder(offset: int) -> str:
    return "{L}" if offset == 0 else f"{{L{offset:+d}}}"


def _carried(first: list[str], second: list[str], base: int) -> dict[str, str] | None:
    """What the second turn reads of the first, and what the first, of layer `base`, reads in its place; None where they differ otherwise."""
    carry: dict[str, str] = {}
    if len(first) != len(second):
        return None
    for a, b in zip(first, second):
        if NAME.sub("%", a) != NAME.sub("%", b):
            return None
        for x, y in zip(NAME.findall(a), NAME.findall(b)):
            if "{L-" in y:
                start = BEFORE.sub(lambda m: str(base - int(m[1])), x)
                if carry.setdefault(y, start) != start:
                    return None
            elif x != y:
                return None
    return carry


def _are_yielded(carry: dict[str, str], body: list[str], period: int) -> bool:
    """Each carried value is made by the turn before, and the first turn starts with one from outside."""
    made = {name for line in body for name in NAME.findall(line.partition(" = ")[0])}
    return all(_next_turn(previous, period) in made and "{L" not in start for previous, start in carry.items())


def _next_turn(name: str, period: int) -> str:
    return BEFORE.sub(lambda m: _placeholder(period - int(m[1])), name)


def _print_run(run: Run, first: Block) -> Iterator[str]:
    names = {previous: f"%{'h' if i == 0 else f'h{i + 1}'}" for i, (previous, _) in enumerate(run.carry)}
    step = f" step {run.period}" if run.period > 1 else ""
    last = first.index + (run.turns - 1) * run.period
    carry = f" carry({', '.join(f'{names[p]} = {start}' for p, start in run.carry)})" if run.carry else ""
    count = f"{run.turns} equal layers" if run.period == 1 else f"{run.turns} times {run.period} layers"
    yield f"{INDENT}repeat L in {first.index}..{last}{step} as {first.stem}{carry} {{  // {count}"
    for line in run.body:
        yield INDENT + _shorten(NAME.sub(lambda m: names.get(m[0], m[0]), line), first.stem)
    if run.carry:
        yields = ", ".join(_next_turn(previous, run.period) for previous, _ in run.carry)
        yield INDENT * 2 + "yield " + _shorten(yields, first.stem)
    yield INDENT + "}"


def _shorten(line: str, stem: str) -> str:
    body, mark, loc = line.partition("  loc(")
    body = re.sub(rf"([%@]){re.escape(stem)}\.\{{L\}}\.", r"\1.", body)
    return body + mark + re.sub(rf"(^|, ){re.escape(stem)}\.\{{L\}}\.", r"\1.", loc)


# -- unfolding ------------------------------------------------------------------------------------------------------------------
def _unroll(head: re.Match[str], body: list[tuple[int, str]], where: str) -> list[tuple[int, str]]:
    start, stop, step, stem = int(head[1]), int(head[2]), int(head[3] or 1), head[4]
    carry = dict(part.split(" = ") for part in head[5].split(", ")) if head[5] else {}
    lines: list[tuple[int, str]] = []
    for index in range(start, stop + 1, step):
        turn = [(number, _lengthen(text, stem, index)) for number, text in body]
        yielded = next((ending[1].split(", ") for _, line in turn if (ending := YIELD.match(line))), [])
        if len(yielded) != len(carry):
            raise ParseError(where, f"carries {len(carry)} values and yields {len(yielded)}", "end the block with `yield` of as many")
        lines += [(number, _carry_in(line, carry)) for number, line in turn if not YIELD.match(line)]
        carry = dict(zip(carry, yielded))
    return lines


def _carry_in(line: str, carry: Mapping[str, str]) -> str:
    return NAME.sub(lambda m: carry.get(m[0], m[0]), line)


def _lengthen(line: str, stem: str, index: int) -> str:
    body, mark, loc = line.partition("  loc(")
    body = re.sub(r"([%@])\.(?=\w)", rf"\1{stem}.{{L}}.", body)
    loc = re.sub(r"(^|, )\.(?=\w)", rf"\1{stem}.{{L}}.", loc)
    return re.sub(r"\{L([+-]\d+)?\}", lambda m: str(index + int(m[1] or 0)), body + mark + loc)
