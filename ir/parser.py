"""Text to graph. Every type is inferred again and compared with the one written; errors give file:line:column and the line."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from tilewright.ir.errors import GraphError, ParseError
from tilewright.ir.graph import Graph, Value
from tilewright.ir.opdef import Attr
from tilewright.ir.types import Bounds, Encoding, Loc, TensorType

TOKEN = re.compile(
    r"""(?P<space>\s+) | (?P<string>"(?:[^"\\]|\\.)*") | (?P<value>[%@][\w./<>-]+) | (?P<range>\.\.)
      | (?P<number>-?(?:inf|nan)\b|-?\d+(?:\.\d+(?!\.))?(?:[eE][+-]?\d+)?) | (?P<word>[A-Za-z_][\w./-]*) | (?P<mark>[][(){}=:,])""",
    re.VERBOSE,
)


@dataclass(slots=True)
class Token:
    kind: str
    text: str
    column: int


def parse_graph(text: str, *, file: str = "<text>") -> Graph:
    """Reads what `print_graph` wrote. Raises ParseError with file:line:column."""
    from tilewright.ir.fold import unfold_text

    return _Parser(unfold_text(text, file), file).parse()


class _Line:
    """Tokens of one line and a position in them."""

    def __init__(self, text: str, number: int, file: str) -> None:
        self.text, self.number, self.file = text, number, file
        self.tokens: list[Token] = []
        self.at = 0
        position = 0
        while position < len(text) and not text.startswith("//", position):
            match = TOKEN.match(text, position)
            if match is None:
                raise self.error(f"unexpected {text[position]!r}", position)
            if match.lastgroup != "space":
                self.tokens.append(Token(str(match.lastgroup), match.group(), position))
            position = match.end()

    def error(self, problem: str, column: int | None = None) -> ParseError:
        where = column if column is not None else (self.tokens[self.at].column if self.at < len(self.tokens) else len(self.text))
        return ParseError(f"{self.file}:{self.number}:{where + 1}", f"{problem} in `{self.text.strip()}`")

    def peek(self) -> str:
        return self.tokens[self.at].text if self.at < len(self.tokens) else ""

    def kind(self) -> str:
        return self.tokens[self.at].kind if self.at < len(self.tokens) else "end of line"

    def take(self, *expected: str) -> str:
        """The next token, which must be one of `expected` where given."""
        text = self.peek()
        if not text or (expected and text not in expected):
            raise self.error(f"expected {' or '.join(map(repr, expected)) or 'more'}, found {text or 'end of line'!r}")
        self.at += 1
        return text

    def take_kind(self, *kinds: str) -> str:
        if self.kind() not in kinds:
            raise self.error(f"expected a {' or '.join(kinds)}, found {self.peek() or 'end of line'!r}")
        return self.take()

    def skip(self, text: str) -> bool:
        if self.peek() == text:
            self.at += 1
            return True
        return False

    def end(self) -> None:
        if self.at < len(self.tokens):
            raise self.error(f"unexpected {self.peek()!r} at the end")


class _Parser:
    def __init__(self, lines: list[tuple[int, str]], file: str) -> None:
        self.file = file
        self.lines = [line for number, text in lines if (line := _Line(text, number, file)).tokens]

    def parse(self) -> Graph:
        if not self.lines:
            raise ParseError(f"{self.file}:1:1", "no graph in it", "it starts with `graph @name(...) dims(...) {`")
        graph = self.signature(self.lines[0])
        for line in self.lines[1:]:
            if line.peek() == "}":
                if not graph.outputs:
                    raise line.error("no return before the end of the graph")
                return graph
            try:
                self.statement(graph, line)
            except GraphError as error:
                raise line.error(str(error), 0) from error
        raise self.lines[-1].error("the graph is not closed: `}` is missing")

    def signature(self, line: _Line) -> Graph:
        line.take("graph")
        name = line.take_kind("value")[1:]
        inputs: list[tuple[str, TensorType]] = []
        line.take("(")
        while not line.skip(")"):
            value = line.take_kind("value")[1:]
            line.take(":")
            inputs.append((value, self.type(line)))
            line.skip(",")
        graph = Graph(name, self.dims(line))
        line.take("{")
        line.end()
        for value, type_ in inputs:
            graph.add_input(value, type_)
        return graph

    def dims(self, line: _Line) -> dict[str, Bounds]:
        line.take("dims")
        line.take("(")
        dims: dict[str, Bounds] = {}
        while not line.skip(")"):
            name = line.take_kind("word")
            line.take("in")
            low = int(line.take_kind("number"))
            line.take("..")
            dims[name] = Bounds(low, int(line.take_kind("number")))
            line.skip(",")
        return dims

    def statement(self, graph: Graph, line: _Line) -> None:
        if line.skip("return"):
            graph.outputs = self.values(graph, line)
        elif line.skip("param"):
            name = line.take_kind("value")[1:]
            line.take(":")
            graph.add_param(name, self.type(line))
        else:
            self.op(graph, line)
        line.end()

    def op(self, graph: Graph, line: _Line) -> None:
        results = [line.take_kind("value")]
        while line.skip(","):
            results.append(line.take_kind("value"))
        line.take("=")
        name = line.take_kind("word")
        line.take("(")
        operands = [] if line.peek() == ")" else self.operands(graph, line)
        line.take(")")
        attrs = self.attrs(line) if line.peek() == "{" else {}
        line.take(":")
        types = [self.type(line)]
        while line.skip(","):
            types.append(self.type(line))
        loc = Loc(modules=self.words(line, "loc"), rules=self.words(line, "by"))
        op = graph.emit(name, operands, attrs, names=[r[1:] for r in results], loc=loc)
        for written, type_, value in zip(results, types, op.results):
            if value.type != type_:
                raise line.error(f"{written} is written as {type_}, {name} gives {value.type}", 0)
            if value.display != written:
                raise line.error(f"{written} should be {value.display}: {'constants' if value.is_const else 'values of the step'} are written so", 0)

    def operands(self, graph: Graph, line: _Line) -> list[Value | None]:
        found: list[Value | None] = [self.operand(graph, line)]
        while line.skip(","):
            found.append(self.operand(graph, line))
        return found

    def operand(self, graph: Graph, line: _Line) -> Value | None:
        return None if line.skip("none") else self.lookup(graph, line)

    def values(self, graph: Graph, line: _Line) -> list[Value]:
        found = [self.lookup(graph, line)]
        while line.skip(","):
            found.append(self.lookup(graph, line))
        return found

    def lookup(self, graph: Graph, line: _Line) -> Value:
        column = line.tokens[line.at].column if line.at < len(line.tokens) else len(line.text)
        name = line.take_kind("value")
        try:
            value = graph.value(name)
        except GraphError as error:
            raise line.error(f"{name} is not defined above", column) from error
        if value.display != name:
            raise line.error(f"{name} should be {value.display}", column)
        return value

    def attrs(self, line: _Line) -> dict[str, Attr]:
        line.take("{")
        attrs: dict[str, Attr] = {}
        while not line.skip("}"):
            name = line.take_kind("word")
            line.take("=")
            attrs[name] = self.attr(line)
            line.skip(",")
        return attrs

    def attr(self, line: _Line) -> Attr:
        if line.skip("["):
            items: list[Attr] = []
            while not line.skip("]"):
                items.append(self.attr(line))
                line.skip(",")
            return tuple(items)  # type: ignore[return-value]
        kind, text = line.kind(), line.take()
        if kind == "string":
            return json.loads(text)
        if kind == "number":
            return int(text) if re.fullmatch(r"-?\d+", text) else float(text)
        return {"true": True, "false": False, "none": None}.get(text, text)

    def type(self, line: _Line) -> TensorType:
        dtype = line.take_kind("word")
        line.take("[")
        shape: list[int | str] = []
        while not line.skip("]"):
            kind = line.kind()
            text = line.take_kind("number", "word")
            shape.append(int(text) if kind == "number" else text)
            line.skip(",")
        try:
            return TensorType(dtype, tuple(shape), self.encoding(line) if line.peek() == "{" and line.at + 1 < len(line.tokens) else None)
        except GraphError as error:
            raise line.error(str(error)) from error

    def encoding(self, line: _Line) -> Encoding:
        fields = self.attrs(line)
        group = fields.get("group")
        return Encoding(scale=str(fields["scale"]), group=int(group) if isinstance(group, int) else None)

    def words(self, line: _Line, keyword: str) -> tuple[str, ...]:
        if not line.skip(keyword):
            return ()
        line.take("(")
        found: list[str] = []
        while not line.skip(")"):
            found.append(line.take_kind("word"))
            line.skip(",")
        return tuple(found)
