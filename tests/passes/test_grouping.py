"""Which ops share a kernel: small graphs, one decision each, for a step of one token."""

import pytest
from schedule_checks import check_schedule

from tilewright.ir.parser import parse_graph
from tilewright.ir.regions import Regime
from tilewright.passes.regions import build_schedule

ONE, MANY = Regime("decode_1", "decode", 1), Regime("ragged_64", "ragged", 64)
LINEAR = "linear(%x, @w) : f32[T, 8]"


def kernels(body, out="%y", regime=ONE):
    """What each kernel computes, in order, views left out; and why it was cut there."""
    head = "graph @g(%x: f32[T, 8], %z: f32[T, 8], %rows: i32[S]) dims(T in 1..64, S in 1..8) {\nparam @w : f32[8, 8]\nparam @n : f32[8]\n"
    graph = parse_graph(f"{head}{body}\nreturn {out}\n}}")
    graph.sort()
    schedule = build_schedule(graph, regime)
    check_schedule(graph, schedule)
    return [(" ".join(op.name for op in r.ops if op.name not in ("reshape", "slice")), r.reason) for r in schedule.regions]


def test_a_product_takes_pointwise_readers_as_epilogue():
    found = kernels(f"%a = {LINEAR}\n%b = tanh(%a) : f32[T, 8]\n%y = add(%z, %b) : f32[T, 8]")
    assert found == [("linear tanh add", "epilogue tanh → add: needs no other row")]


@pytest.mark.parametrize(
    "body, out",
    [
        (f"%a = {LINEAR}\n%b = tanh(%a) : f32[T, 8]\n%y = add(%a, %b) : f32[T, 8]", "%y"),  # read twice
        (f"%a = {LINEAR}\n%y = tanh(%a) : f32[T, 8]", "%y, %a"),  # returned
        (f"%a = {LINEAR}\n%y = softmax(%a) : f32[T, 8]", "%y"),  # needs whole rows
        (f"%a = {LINEAR}\n%h = reshape(%a) {{shape=[T, 2, 4]}} : f32[T, 2, 4]\n%y = tanh(%h) : f32[T, 2, 4]", "%y"),  # read through a view
    ],
)
def test_an_epilogue_ends_where_the_product_is_needed_as_it_is(body, out):
    (first, reason), *others = kernels(body, out)
    assert first == "linear" and reason == "the next reader needs whole rows of the product" and len(others) == 1


def test_of_two_products_the_later_kernel_takes_their_sum():
    found = kernels(f"%a = {LINEAR}\n%b = linear(%z, @w) : f32[T, 8]\n%y = add(%a, %b) : f32[T, 8]")
    assert [what for what, _ in found] == ["linear", "linear add"]


NORM = "%m = rms_norm(%x, @n) {eps=1e-05} : f32[T, 8]\n"


def readers(count):
    return NORM + "".join(f"%y.{i} = linear(%m, @w) : f32[T, 8]\n" for i in range(count)), ", ".join(f"%y.{i}" for i in range(count))


@pytest.mark.parametrize("count", [1, 3])
def test_a_norm_is_recomputed_by_up_to_three_products_of_one_token(count):
    assert [what for what, _ in kernels(*readers(count))] == ["rms_norm linear"] * count
    assert [what for what, _ in kernels(*readers(count), regime=MANY)] == ["rms_norm"] + ["linear"] * count


def test_a_norm_that_four_products_read_stands_alone():
    assert [what for what, _ in kernels(*readers(4))] == ["rms_norm"] + ["linear"] * 4


@pytest.mark.parametrize("out, more", [("%y, %m", ""), ("%y, %t", "%t = tanh(%m) : f32[T, 8]")])
def test_a_norm_that_something_else_needs_stands_alone(out, more):
    found = kernels(f"{NORM}%y = linear(%m, @w) : f32[T, 8]\n{more}", out)
    assert found[0] == (f"rms_norm{' tanh' if more else ''}", "the norm needs whole rows")


def test_rows_of_a_product_join_until_another_kernel_lies_between():
    body = f"%a = {LINEAR}\n%m = rms_norm(%a, @n) {{eps=1e-05}} : f32[T, 8]\n%t = tanh(%m) : f32[T, 8]\n%b = linear(%t, @w) : f32[T, 8]\n"
    found = kernels(f"{body}%s = softmax(%b) : f32[T, 8]\n%y = add(%t, %s) : f32[T, 8]")
    assert [what for what, _ in found] == ["linear", "rms_norm tanh", "linear", "softmax add"]


def test_a_gather_of_rows_starts_a_kernel():
    found = kernels("%m = tanh(%x) : f32[T, 8]\n%r = gather_rows(%m, %rows) : f32[S, 8]\n%y = tanh(%r) : f32[S, 8]")
    assert [what for what, _ in found] == ["tanh", "gather_rows tanh"]


def test_rows_kernels_that_read_one_activation_are_one_launch():
    body = f"%a = {LINEAR}\n%p = rms_norm(%a, @n) {{eps=1e-05}} : f32[T, 8]\n%q = softmax(%a) : f32[T, 8]"
    assert [what for what, _ in kernels(body, "%p, %q")] == ["linear", "rms_norm softmax"]


def test_kernels_that_would_wait_for_each_other_are_cut_with_the_reason():
    body = f"""%a = {LINEAR}
    %b = linear(%z, @w) : f32[T, 8]
    %early = rms_norm(%a) {{eps=1e-05}} : f32[T, 8]
    %other = rms_norm(%b) {{eps=1e-05}} : f32[T, 8]
    %between = linear(%early, @w) : f32[T, 8]
    %late = mul(%other, %between) : f32[T, 8]
    %y = add(%early, %other) : f32[T, 8]"""
    found = kernels(body, "%y, %late, %between")
    assert [what for what, _ in found] == ["linear", "linear", "rms_norm", "linear", "rms_norm mul", "add"]
    assert found[-1][1] == "reads %other, which is made after %early"


# -- attention ------------------------------------------------------------------------------------------------------------------
DECODE, RAGGED = Regime("decode_8", "decode", 8), Regime("ragged_8", "ragged", 8)
FED = """%q = tanh(%x) : f32[T, 8]
    %k = tanh(%z) : f32[T, 8]
    %kv = write_kv(%k, %z) {kv_heads=2, layer=0} : kv[2, 4, 4]
    %y = attend(%q, %kv) {heads=2, scale=0.5, layer=0} : f32[T, 8]
"""


def test_in_decode_attention_makes_and_writes_its_own_key():
    assert kernels(FED, regime=DECODE) == [
        ("tanh tanh write_kv attend", "reads other tokens' keys and values; with one token a sequence it makes and writes the newest itself")
    ]
    assert [what for what, _ in kernels(FED, regime=RAGGED)] == ["tanh", "tanh", "write_kv", "attend"]


def test_what_others_read_too_stands_before_attention():
    found = kernels(f"{FED}%other = add(%k, %z) : f32[T, 8]", "%y, %other", regime=DECODE)
    assert sorted(what for what, _ in found) == ["tanh add", "tanh write_kv attend"]


def test_of_two_that_read_the_same_pages_the_first_writes_them():
    found = kernels(f"{FED}%again = attend(%y, %kv) {{heads=2, scale=0.5, layer=0}} : f32[T, 8]", "%again", regime=DECODE)
    assert [what for what, _ in found] == ["tanh tanh write_kv attend", "attend"]
    assert found[1][1] == "reads other tokens' keys and values, its own token's among them: %y wrote them"


def test_products_are_computed_before_attention():
    found = kernels(f"%l = {LINEAR}\n{FED.replace('tanh(%x)', 'tanh(%l)')}", regime=DECODE)
    assert [what for what, _ in found] == ["linear tanh", "tanh write_kv attend"]


def test_tables_that_are_read_at_the_same_places_are_read_by_one_kernel():
    looked_up = "%c = gather_rows(@w, %rows) : f32[S, 8]\n%s = gather_rows(@v, %rows) : f32[S, 8]\n%o = gather_rows(@w, %others) : f32[S, 8]"
    text = (
        "graph @g(%rows: i32[S], %others: i32[S]) dims(S in 1..8) {\nparam @w : f32[8, 8]\nparam @v : f32[9, 8]\n"
        f"{looked_up}\nreturn %c, %s, %o\n}}"
    )
    for regime in (ONE, MANY):
        schedule = build_schedule(parse_graph(text), regime)
        assert [[v.display for v in region.outputs] for region in schedule.regions] == [["%c", "%s"], ["%o"]]
