"""The pattern engine and the rewriter: what matches, what is refused and why, and what a rewrite leaves behind."""

import pytest

from tilewright.ir.errors import PassError
from tilewright.ir.events import EventLog
from tilewright.ir.graph import Graph
from tilewright.ir.parser import parse_graph
from tilewright.passes.manager import PassManager
from tilewright.passes.pattern import Match, match, parse_pattern
from tilewright.passes.registry import rewrite
from tilewright.passes.rewriter import Rewriter


def graph_of(body: str, out: str = "%y", params: str = "") -> Graph:
    lines = [line.strip() for line in f"{params}\n{body}".strip().splitlines() if line.strip()]
    return parse_graph("\n".join(["graph @g(%x: f32[T, 4], %z: f32[T, 4]) dims(T in 1..8) {", *lines, f"return {out}", "}"]))


def find(pattern: str, graph: Graph, root: str = "%y") -> Match | None:
    return match(parse_pattern(pattern), graph.value(root))


SUM = """%a = silu(%x) : f32[T, 4]
         %b = mul(%a) {scalar=0.5} : f32[T, 4]
         %y = add(%z, %b) : f32[T, 4]"""


# -- matching -------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("pattern", ["add(mul{scalar=half}(silu(v)), other)", "add(other, mul{scalar=half}(silu(v)))"])
def test_operands_of_a_commutative_op_match_in_both_orders(pattern):
    graph = graph_of(SUM)
    found = find(pattern, graph)
    assert found is not None and (found.v, found.other, found.half) == (graph.value("x"), graph.value("z"), 0.5)
    assert [op.name for op in found.ops] == ["add", "mul", "silu"]


def test_orders_are_tried_at_every_level():
    graph = graph_of("%a = mul(%x, %z) : f32[T, 4]\n%b = relu(%z) : f32[T, 4]\n%y = add(%b, %a) : f32[T, 4]")
    found = find("add(mul(v, w), relu(v))", graph)
    assert found is not None and (found.v, found.w) == (graph.value("z"), graph.value("x"))


def test_operands_of_other_ops_match_in_their_order_only():
    graph = graph_of("%a = silu(%x) : f32[T, 4]\n%y = sub(%a, %z) : f32[T, 4]")
    assert find("sub(silu(v), w)", graph) is not None
    assert find("sub(w, silu(v))", graph) is None


def test_the_same_word_is_the_same_value_and_an_underscore_is_any():
    graph = graph_of("%y = add(%x, %z) : f32[T, 4]")
    assert find("add(v, v)", graph) is None
    assert find("add(_, _)", graph) is not None
    assert find("add(v, v)", graph_of("%y = add(%x, %x) : f32[T, 4]")) is not None


@pytest.mark.parametrize("attrs, is_found", [("scalar=0.5", True), ("scalar=0.50000001", True), ("scalar=0.51", False), ("scalar=s", True)])
def test_an_attribute_is_demanded_up_to_rounding_or_captured(attrs, is_found):
    assert (find(f"mul{{{attrs}}}(v)", graph_of(SUM), "%b") is not None) is is_found


def test_the_same_word_is_the_same_attribute():
    body = "%a = mul(%x) {{scalar=2.0}} : f32[T, 4]\n%y = mul(%a) {{scalar={}}} : f32[T, 4]"
    assert find("mul{scalar=s}(mul{scalar=s}(v))", graph_of(body.format("2.0"))) is not None
    assert find("mul{scalar=s}(mul{scalar=s}(v))", graph_of(body.format("3.0"))) is None


def test_an_attribute_that_is_absent_matches_no_word():
    assert find("mul{scalar=s}(v)", graph_of("%y = mul(%x, %z) : f32[T, 4]")) is None


def test_an_optional_op_matches_with_and_without():
    for body in ("%a = relu(%x) : f32[T, 4]\n%y = neg(%a) : f32[T, 4]", "%y = neg(%x) : f32[T, 4]"):
        graph = graph_of(body)
        found = find("neg(relu?(v))", graph)
        assert found is not None and found.v is graph.value("x")


def test_a_word_that_the_pattern_lacks_is_refused_with_those_it_has():
    found = find("add(left, _)", graph_of(SUM))
    assert found is not None
    with pytest.raises(AttributeError, match="captures no 'right'; it has left"):
        _ = found.right


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "expected 'a word' at its end"),
        ("x", "its root is a capture; start with an op"),
        ("mul(x, y", "expected ',' at its end"),
        ("mul(x y)", "expected ',' at `y)`"),
        ("mul((x), y)", "expected an op or a capture at `(x), y)`"),
        ("mul(0.5, x)", "expected an op or a capture at `0.5, x)`; a number belongs in braces, as in mul{scalar=0.5}(x)"),
        ("mul(x, y) z", "cannot read `z`"),
        ("mul(x, y))", "cannot read `)`"),
        ("mul[x]", "cannot read `[x]`"),
        ("mul{scalar=}(x)", "expected a value at `}(x)`"),
        ("mul{scalar}(x)", "expected '=' at `}(x)`"),
        ("mul{factor=2.0}(x)", "mul has no attribute 'factor'; it has scalar"),
        ("mul{scalar=2.0}", "mul has attributes or `?` but no operands"),
        ("mull(x, y)", "no op named 'mull'; did you mean 'mul'?"),
        ("silu(x, y)", "silu has 2 operands, takes 1 to 1: x"),
        ("mul?(x, y)", "mul has 2 operands, takes 1 where it is optional"),
    ],
)
def test_a_malformed_pattern_is_refused_where_it_cannot_be_read(text, said):
    with pytest.raises(PassError) as caught:
        parse_pattern(text)
    assert str(caught.value).startswith("pattern `") and said in str(caught.value)


# -- rewriting ------------------------------------------------------------------------------------------------------------------
@rewrite("test-raise-gate", "mul(silu(gate), up)")
def raise_gate(m: Match, rw: Rewriter) -> str | None:
    """silu(gate) * up -> gated(gate, up)"""
    rw.replace(m.root, "gated", [m.gate, m.up], {"activation": "silu"}, removed=m.ops)
    return None


@rewrite("test-merge-scale", "linear(x, mul{scalar=s}(weight))")
def merge_scale(m: Match, rw: Rewriter) -> str | None:
    """linear(x, s W) -> s linear(x, W)"""
    with rw.change(m.root, m.ops) as change:
        product = change.emit("linear", [m.x, m.weight], name=f"{m.root.name}.unscaled")
        change.take_over(change.emit("mul", [product], {"scalar": m.s}), m.root)
    return None


def run(pipeline: str, graph: Graph) -> EventLog:
    manager = PassManager.of(pipeline)
    manager.run(graph)
    return manager.log


GATE = "%a = silu(%x) : f32[T, 4]  loc(mlp.act)\n{}%y = mul({}, %a) : f32[T, 4]  loc(mlp, mlp.mul)\n"


def test_a_rewrite_keeps_the_name_and_joins_locs():
    graph = graph_of(GATE.format("", "%z"))
    (event,) = run("test-raise-gate", graph).events
    (op,) = graph.ops
    assert op.result.name == "y" and op.loc.modules == ("mlp", "mlp.mul", "mlp.act") and op.loc.rules == ("test-raise-gate",)
    assert (event.removed, event.added, event.keeps, event.modules) == (("mul", "silu"), ("gated",), ("y",), op.loc.modules)
    assert (event.number, event.pass_name, event.rule, event.anchor) == (1, "test-raise-gate", "test-raise-gate", "y")


@pytest.mark.parametrize(
    "graph, reason",
    [
        (graph_of(GATE.format("", "%z") + "%n = neg(%a) : f32[T, 4]", "%y, %n"), "%a is read elsewhere too, by %n"),
        (graph_of(GATE.format("", "%z"), "%y, %a"), "%a is returned by the graph too"),
        (graph_of(GATE.format("%n = neg(%a) : f32[T, 4]\n", "%n")), "%a is read elsewhere too, by %n"),  # not convex: %n lies between
    ],
)
def test_a_match_that_leaks_is_refused_with_the_reader(graph, reason):
    before = [op.name for op in graph.ops]
    log = run("test-raise-gate", graph)
    assert [op.name for op in graph.ops] == before and not log.events
    assert [(miss.anchor, miss.reason, miss.modules) for miss in log.misses] == [("y", reason, ("mlp", "mlp.mul"))]


def test_a_constant_inside_may_be_read_elsewhere():
    params = "param @w : f32[4, 4]\n@s = mul(@w) {scalar=2.0} : f32[4, 4]"
    graph = graph_of("%a = linear(%x, @s) : f32[T, 4]\n%y = linear(%a, @s) : f32[T, 4]", params=params)
    assert len(run("test-merge-scale", graph).events) == 2
    assert [op.name for op in graph.ops] == ["linear", "mul", "linear", "mul"]
    assert {"a", "y", "a.unscaled", "y.unscaled"} <= {value.name for value in graph.values()}


def test_a_name_that_is_gone_is_not_given_again():
    graph = graph_of("%a = relu(%x) : f32[T, 4]\n%y = relu(%a) : f32[T, 4]")
    rw = Rewriter(graph, EventLog(), "test")
    (first, second) = graph.ops
    rw.forward(second.result, first.result)
    with rw.change(first.result, []) as change:
        assert change.emit("relu", [first.result], name="y").name == "y.1"


@pytest.mark.parametrize("by", ["forward", "replace"])
def test_a_value_is_not_replaced_by_one_of_another_type(by):
    graph = graph_of("%a = cast(%x) {dtype=f16} : f16[T, 4]\n%y = cast(%a) {dtype=f32} : f32[T, 4]")
    rw = Rewriter(graph, EventLog(), "test")
    with pytest.raises(Exception, match=r"their types differ|is f32\[T, 4\], its replacement is f16\[T, 4\]"):
        rw.forward(graph.value("y"), graph.value("a")) if by == "forward" else rw.replace(graph.value("y"), "relu", [graph.value("a")])


def test_a_rewrite_that_changes_nothing_is_refused():
    graph = graph_of("%y = relu(%x) : f32[T, 4]")
    with pytest.raises(PassError, match="test at %y: the rewrite changed nothing; return the reason instead"):
        Rewriter(graph, EventLog(), "test").erase(graph.ops[0])


def test_a_near_miss_is_remarked_once():
    graph = graph_of("%y = relu(%x) : f32[T, 4]")
    rw = Rewriter(graph, EventLog(), "test")
    for _ in range(3):
        rw.missed(graph.value("y"), "no reason")
    assert len(rw.log.misses) == 1
