"""Interpreted kernels against plain torch: rounding of every type, the language, and the faults that checked mode finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl

from tilewright.ir.errors import EngineError
from tilewright.runtime.triton_interpreter import launch, load_kernel
from tilewright.runtime.triton_language import bind
from tilewright.runtime.triton_memory import MemoryFault
from tilewright.runtime.triton_operators import shorten
from tilewright.runtime.triton_tiles import BUILDER, SEMANTIC, Tile, make_tile

HEAD = "import triton\nimport triton.language as tl\n"


def run(body: str, args: list, constants: dict | None = None, grid: tuple[int, int, int] = (1, 1, 1), *, checked: bool = True) -> None:
    """Runs a kernel whose text is its parameters on the first line, then its body."""
    parameters, *lines = body.strip().splitlines()
    source = HEAD + f"@triton.jit\ndef kernel({parameters}):\n" + "\n".join("    " + line for line in lines) + "\n"
    launch(load_kernel(source, "k", "kernel"), grid, args, constants or {}, checked)


def apply_binary(expression: str, x: torch.Tensor, y: torch.Tensor, out_dtype: torch.dtype) -> torch.Tensor:
    out = torch.empty(x.shape, dtype=out_dtype)
    body = f"""x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr
i = tl.arange(0, BLOCK)
x = tl.load(x_ptr + i, mask=i < n, other=0)
y = tl.load(y_ptr + i, mask=i < n, other=1)
tl.store(out_ptr + i, ({expression}).to(out_ptr.dtype.element_ty), mask=i < n)"""
    run(body, [x, y, out, x.numel()], {"BLOCK": 128})
    return out


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_store_rounds_to_nearest_even_as_torch_does(dtype: torch.dtype) -> None:
    x = torch.cat([torch.randn(97) * 3, torch.tensor([0.0, -0.0, 1e-5, -7.5, 1.00390625, 1.01171875, 300.0])])
    out = torch.empty(x.shape, dtype=dtype)
    run(
        "x_ptr, out_ptr\ni = tl.arange(0, 128)\nm = i < 104\ntl.store(out_ptr + i, tl.load(x_ptr + i, mask=m).to(out_ptr.dtype.element_ty), mask=m)",
        [x, out],
    )
    assert torch.equal(out.float(), x.to(dtype).float())


def test_a_bf16_store_keeps_nan_and_infinity() -> None:
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 3.4e38])
    out = torch.empty(4, dtype=torch.bfloat16)
    run("x_ptr, out_ptr\ni = tl.arange(0, 4)\ntl.store(out_ptr + i, tl.load(x_ptr + i).to(tl.bfloat16))", [x, out])
    assert torch.equal(out.view(torch.int16), x.to(torch.bfloat16).view(torch.int16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("expression", ["x + y", "x - y", "x * y", "-x", "x * 0.3", "tl.maximum(x, y)", "tl.where(x < y, x, y)"])
def test_arithmetic_in_a_short_type_rounds_each_result_once(expression: str, dtype: torch.dtype) -> None:
    x, y = torch.randn(101).to(dtype), torch.randn(101).to(dtype)
    scalar = torch.tensor(0.3).to(dtype).float()  # a literal takes the tile's type first
    names = {"x": x.float(), "y": y.float(), "tl": torch}
    expected = x.float() * scalar if "0.3" in expression else eval(expression, names)
    assert torch.equal(apply_binary(expression, x, y, dtype), expected.to(dtype))


def test_integers_divide_toward_zero_and_shift_by_sign() -> None:
    x, y = torch.randint(-100, 100, (101,), dtype=torch.int32), torch.randint(1, 17, (101,), dtype=torch.int32)
    assert torch.equal(apply_binary("x // y", x, y, torch.int32), torch.div(x, y, rounding_mode="trunc"))
    assert torch.equal(apply_binary("x % y", x, y, torch.int32), torch.fmod(x, y))
    assert torch.equal(apply_binary("x >> 2", x, y, torch.int32), x >> 2)
    assert torch.equal(apply_binary("(x.to(tl.uint32, bitcast=True) >> 28).to(tl.int32)", x, y, torch.int32), (x >> 28) & 15)


def test_unsigned_bytes_widen_without_sign() -> None:
    x = torch.arange(0, 256, 3, dtype=torch.int64).to(torch.uint8)
    assert torch.equal(apply_binary("(x & 15).to(tl.int32) * 2 + (x >> 4)", x, x, torch.int32), (x.int() & 15) * 2 + (x.int() >> 4))
    assert torch.equal(apply_binary("x.to(tl.float32)", x, x, torch.float32), x.float())


def test_integer_arithmetic_wraps_as_on_the_gpu() -> None:
    x = torch.tensor([2**31 - 1, -(2**31)], dtype=torch.int32)
    out = torch.empty_like(x)
    run("x_ptr, out_ptr\ni = tl.arange(0, 2)\ntl.store(out_ptr + i, tl.load(x_ptr + i) * 2)", [x, out], checked=False)
    assert out.tolist() == [-2, 0]


def test_checked_mode_reports_i32_overflow() -> None:
    x = torch.tensor([2**31 - 1, 1], dtype=torch.int32)
    with pytest.raises(AssertionError, match="int32 overflow"):
        run("x_ptr\ni = tl.arange(0, 2)\ntl.store(x_ptr + i, tl.load(x_ptr + i) + 1)", [x])


OPERATORS = [
    f"__{reflected}{name}__"
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "and", "or", "xor", "lt", "le", "gt", "ge", "eq", "ne")
    for reflected in (("", "r") if name not in ("lt", "le", "gt", "ge", "eq", "ne") else ("",))
]
DTYPES = (tl.int1, tl.int8, tl.uint8, tl.int16, tl.int32, tl.int64, tl.float16, tl.bfloat16, tl.float32, tl.float64)


def draw_tile(dtype: Any, dims: tuple[int, ...]) -> Tile:
    """Small numbers, some of them equal, some zero."""
    numbers = np.asarray(torch.randint(0 if dtype is tl.uint8 else -1, 5, dims, dtype=torch.int32).numpy())
    return SEMANTIC.cast(make_tile(numbers, tl.int32), dtype)


def describe(operate: Callable[..., Any], *operands: Any) -> Any:
    """All that can be seen of a result, or of the refusal."""
    try:
        with np.errstate(all="ignore"):
            tile = operate(*operands)
    except Exception as refusal:
        return type(refusal)
    return str(tile.type), tile.dims, np.shape(tile.handle.data), tile.handle.element.name, np.asarray(tile.handle.data).tobytes()


@pytest.mark.parametrize("member", OPERATORS)
def test_the_short_way_to_a_result_gives_what_triton_s_rules_give(member: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BUILDER.options, "sanitize_overflow", False)
    whole = bind(getattr(tl.tensor, member))
    short = shorten(member, whole)
    for left, other in zip(DTYPES, (*DTYPES[3:], *DTYPES[:3])):
        for dims in (((), ()), ((8,), (8,)), ((8, 1), (1, 8)), ((4, 1), (1, 8)), ((2, 4), ()), ((8,), (2, 8)), ((4,), (8,))):
            operands = draw_tile(left, dims[0]), draw_tile(other if dims[0] == (8, 1) else left, dims[1])
            assert describe(short, *operands) == describe(whole, *operands), (left, dims)
        tile = draw_tile(left, (8,))
        for number in (3, 0, -2, True, 300, 2**40, 0.5, 0.1, -0.0, 1e300, float("inf")):
            assert describe(short, tile, number) == describe(whole, tile, number), (left, number)


def test_hints_that_triton_does_not_know_are_refused_each_time() -> None:
    x = torch.randn(8)
    for access in ("tl.load(x_ptr + i, cache_modifier='.no')", "tl.store(x_ptr + i, i, eviction_policy='never')"):
        for _ in range(2):
            with pytest.raises(ValueError, match=r"no|never"):
                run(f"x_ptr\ni = tl.arange(0, 8)\n{access}", [x])


DOT = """a_ptr, b_ptr, c_ptr, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr
m = tl.program_id(0) * BM + tl.arange(0, BM)
n = tl.program_id(1) * BN + tl.arange(0, BN)
acc = tl.zeros((BM, BN), dtype=tl.float32)
for k in range(0, K, BK):
    kk = k + tl.arange(0, BK)
    a = tl.load(a_ptr + m[:, None] * K + kk[None, :], mask=(m[:, None] < M) & (kk[None, :] < K), other=0.0)
    b = tl.load(b_ptr + n[None, :] * K + kk[:, None], mask=(n[None, :] < N) & (kk[:, None] < K), other=0.0)
    acc = tl.dot(a, b.to(a.dtype), acc, input_precision=PRECISION)
tl.store(c_ptr + m[:, None] * N + n[None, :], acc.to(c_ptr.dtype.element_ty), mask=(m[:, None] < M) & (n[None, :] < N))"""


@pytest.mark.parametrize("weight", [torch.bfloat16, torch.int8])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_tiled_product_with_tails_equals_torch(dtype: torch.dtype, weight: torch.dtype) -> None:
    M, N, K = 19, 37, 53
    a = torch.randn(M, K).to(dtype)
    b = torch.randint(-127, 128, (N, K)).to(torch.int8) if weight is torch.int8 else torch.randn(N, K).to(weight).to(dtype)
    c = torch.empty(M, N, dtype=dtype)
    run(DOT, [a, b, c, M, N, K], {"BM": 16, "BN": 16, "BK": 16, "PRECISION": "ieee"}, (2, 3, 1))
    expected = (a.double() @ b.double().T).to(dtype)
    torch.testing.assert_close(c, expected, rtol={torch.bfloat16: 8e-3, torch.float16: 1e-3}.get(dtype, 1e-6), atol=1e-5 * K)


def test_an_f32_product_loses_bits_to_tf32_unless_told_otherwise() -> None:
    a, b = torch.randn(16, 64), torch.randn(16, 64)
    errors = {}
    for precision in ("tf32", "ieee"):
        c = torch.empty(16, 16)
        run(DOT, [a, b, c, 16, 16, 64], {"BM": 16, "BN": 16, "BK": 32, "PRECISION": precision})
        errors[precision] = (c - a.double() @ b.double().T).abs().max().item()
    assert errors["ieee"] < 1e-5 < 1e-4 < errors["tf32"] < 2e-2


def test_an_int8_product_is_exact_in_int32() -> None:
    a, b = (torch.randint(-128, 128, (16, 32)).to(torch.int8) for _ in range(2))
    c = torch.empty(16, 16, dtype=torch.int32)
    run(
        """a_ptr, b_ptr, c_ptr
i, k = tl.arange(0, 16), tl.arange(0, 32)
a = tl.load(a_ptr + i[:, None] * 32 + k[None, :])
b = tl.load(b_ptr + i[:, None] * 32 + k[None, :])
tl.store(c_ptr + i[:, None] * 16 + i[None, :], tl.dot(a, tl.trans(b)))""",
        [a, b, c],
    )
    assert torch.equal(c, a.int() @ b.int().T)


def test_a_dot_too_narrow_for_the_tensor_core_is_refused() -> None:
    x = torch.zeros(64)
    with pytest.raises(AssertionError, match="K >= 16"):
        run("x_ptr\ni = tl.arange(0, 8)\nx = tl.load(x_ptr + i[:, None] * 8 + i[None, :])\nx = tl.dot(x, x)", [x])


REDUCTIONS = {
    "tl.sum(x, axis=1)": lambda x: x.sum(1),
    "tl.max(x, axis=1)": lambda x: x.amax(1),
    "tl.min(x, 1)": lambda x: x.amin(1),
    "tl.argmax(x, 1).to(tl.float32)": lambda x: x.argmax(1).float(),
    "tl.max(x, 1, return_indices=True)[0]": lambda x: x.amax(1),
    "tl.sum(tl.softmax(x.trans(), dim=0) * x.trans(), axis=0)": lambda x: (x.softmax(1) * x).sum(1),
    "tl.sum(tl.cumsum(x, axis=1), axis=1)": lambda x: x.cumsum(1).sum(1),
    "tl.sum(tl.cumsum(x, axis=1, reverse=True) * x, axis=1)": lambda x: (x.flip(1).cumsum(1).flip(1) * x).sum(1),
    "tl.sum(tl.associative_scan(x, 1, product) * j[None, :], axis=1)": lambda x: (x.cumprod(1) * torch.arange(16)).sum(1),
    "tl.sum(tl.associative_scan(x, 1, earlier) * j[None, :], axis=1)": lambda x: 120 * x[:, 0],
    "tl.sum(tl.associative_scan(x, 1, earlier, reverse=True) * j[None, :], axis=1)": lambda x: 120 * x[:, 15],
    "tl.sum(tl.associative_scan((x, x * 2), 1, add_two)[1] * x, axis=1)": lambda x: (2 * x.cumsum(1) * x).sum(1),
    "tl.sum(tl.flip(x, 1) * x, axis=1)": lambda x: (x.flip(1) * x).sum(1),
    "tl.sum(tl.sort(x, dim=1) * j[None, :], axis=1)": lambda x: (x.sort(1).values * torch.arange(16)).sum(1),
    "x.sum(1, keep_dims=True).reshape(4)": lambda x: x.sum(1),
    "tl.reduce(x, 1, product)": lambda x: x.prod(1),
    "tl.sum(tl.sigmoid(x) + tl.exp2(x) + tl.math.rsqrt(x * x + 1), axis=1)": lambda x: (x.sigmoid() + x.exp2() + (x * x + 1).rsqrt()).sum(1),
    "tl.sum(x.T * 2, axis=0)": lambda x: 2 * x.sum(1),
    "tl.sum(tl.broadcast(x, tl.sum(x, 1)[:, None])[1], 1)": lambda x: 16 * x.sum(1),
    "tl.sum(tl.interleave(x, x), axis=1)": lambda x: 2 * x.sum(1),
    "tl.sum(tl.reshape(x, (4, 2, 8)), axis=2).sum(1)": lambda x: x.sum(1),
    "tl.sum(tl.extra.cuda.libdevice.tanh(x), axis=1)": lambda x: x.tanh().sum(1),
}


@pytest.mark.parametrize("expression", REDUCTIONS)
def test_library_functions_equal_torch(expression: str) -> None:
    x, out = torch.randn(4, 16), torch.empty(4)
    source = HEAD + (
        "@triton.jit\ndef product(a, b):\n    return a * b\n\n"
        "@triton.jit\ndef earlier(a, b):\n    return a\n\n"
        "@triton.jit\ndef add_two(a, b, x, y):\n    return a + x, b + y\n\n"
        "@triton.jit\ndef kernel(x_ptr, out_ptr):\n    i, j = tl.arange(0, 4), tl.arange(0, 16)\n"
        f"    x = tl.load(x_ptr + i[:, None] * 16 + j[None, :])\n    tl.store(out_ptr + i, {expression})\n"
    )
    launch(load_kernel(source, "k", "kernel"), (1, 1, 1), [x, out], {}, checked=True)
    torch.testing.assert_close(out, REDUCTIONS[expression](x), rtol=1e-5, atol=1e-5)


def test_a_bf16_sum_rounds_no_worse_than_adding_in_bf16() -> None:
    x, out = torch.randn(64).to(torch.bfloat16), torch.empty(1, dtype=torch.bfloat16)
    run("x_ptr, out_ptr\ntl.store(out_ptr, tl.sum(tl.load(x_ptr + tl.arange(0, 64)), axis=0))", [x, out])
    assert abs(out.item() - x.double().sum().item()) < 6 * 2**-8 * x.double().abs().sum().item() / 4


def test_control_flow_on_scalars_follows_loaded_values() -> None:
    lengths, out = torch.tensor([0, 3, 7], dtype=torch.int32), torch.full((3,), -1, dtype=torch.int32)
    body = """len_ptr, out_ptr
pid = tl.program_id(0)
n = tl.load(len_ptr + pid)
total = 0
if n > 0 and not (n == 3):
    for i in tl.range(0, n, num_stages=2):
        total += i
elif n == 3 or n > 100:
    while total < 10:
        total += n
tl.store(out_ptr + pid, total if n > 0 else -5)"""
    run(body, [lengths, out], grid=(3, 1, 1))
    assert out.tolist() == [-5, 12, 21]


def test_program_ids_cover_the_grid() -> None:
    out = torch.zeros(2, 3, 4, dtype=torch.int32)
    body = """out_ptr
x, y, z = tl.program_id(0), tl.program_id(1), tl.program_id(2)
tl.store(out_ptr + (x * 3 + y) * 4 + z, x * 100 + y * 10 + tl.num_programs(2))"""
    run(body, [out], grid=(2, 3, 4))
    assert out[:, :, 0].tolist() == [[4, 14, 24], [104, 114, 124]]


def test_dependent_launch_calls_and_hints_do_nothing() -> None:
    x = torch.arange(8.0)
    body = """x_ptr
tl.extra.cuda.gdc_wait()
i = tl.max_contiguous(tl.multiple_of(tl.arange(0, 8), 8), 8)
x = tl.load(x_ptr + i, eviction_policy="evict_first", cache_modifier=".cg")
tl.extra.cuda.gdc_launch_dependents()
tl.debug_barrier()
tl.store(x_ptr + i, x * 2)"""
    run(body, [x])
    assert x.tolist() == [0, 2, 4, 6, 8, 10, 12, 14]


def test_names_imported_from_the_language_work_too() -> None:
    source = (
        "import triton\nimport triton.language as tl\nfrom triton.language.extra.cuda import gdc_wait\nfrom triton.language import sum as total\n"
    )
    source += "@triton.jit\ndef kernel(x_ptr):\n    gdc_wait()\n    tl.store(x_ptr, total(tl.load(x_ptr + tl.arange(0, 4)), axis=0))\n"
    x = torch.ones(4)
    launch(load_kernel(source, "k", "kernel"), (1, 1, 1), [x], {})
    assert x[0] == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32])
def test_atomic_add_sums_over_programs_and_duplicate_lanes(dtype: torch.dtype) -> None:
    out = torch.zeros(2, dtype=dtype)
    run("out_ptr\ni = tl.arange(0, 8)\ntl.atomic_add(out_ptr + i % 2, tl.full((8,), 1, out_ptr.dtype.element_ty))", [out], grid=(5, 1, 1))
    assert out.tolist() == [20, 20]


def test_the_last_program_to_take_a_ticket_may_read_the_others_results() -> None:
    ticket, partial, out = torch.zeros(1, dtype=torch.int32), torch.zeros(4), torch.zeros(1)
    body = """ticket_ptr, partial_ptr, out_ptr
pid = tl.program_id(0)
tl.store(partial_ptr + pid, pid * 1.5)
if tl.atomic_add(ticket_ptr, 1) == tl.num_programs(0) - 1:
    tl.store(out_ptr, tl.sum(tl.load(partial_ptr + tl.arange(0, 4)), axis=0))"""
    run(body, [ticket, partial, out], grid=(4, 1, 1))
    assert out.item() == 9.0


def test_an_access_beyond_its_tensor_is_named() -> None:
    arena = torch.zeros(32)
    with pytest.raises(MemoryFault, match=r"program \(1, 0, 0\): load at byte 32 of 'x_ptr', which has 32 bytes \(4 of 4 lanes\)"):
        run("x_ptr\ni = tl.arange(0, 4)\nx = tl.load(x_ptr + tl.program_id(0) * 8 + i)", [arena[:8]], grid=(2, 1, 1), checked=False)


def test_a_masked_lane_may_point_anywhere() -> None:
    x, out = torch.arange(5.0), torch.empty(8)
    run("x_ptr, out_ptr\ni = tl.arange(0, 8)\ntl.store(out_ptr + i, tl.load(x_ptr + i * 10, mask=i < 1, other=7.0))", [x, out])
    assert out.tolist() == [0, 7, 7, 7, 7, 7, 7, 7]


def test_a_masked_scalar_load_takes_its_other_value() -> None:
    x, out = torch.ones(1), torch.empty(1)
    run("x_ptr, out_ptr\npid = tl.program_id(0)\ntl.store(out_ptr, tl.load(x_ptr + pid, mask=pid > 0, other=0.0))", [x, out])
    assert out.item() == 0


def test_checked_mode_poisons_masked_lanes_without_other() -> None:
    x, out = torch.ones(4), torch.empty(4)
    body = "x_ptr, out_ptr\ni = tl.arange(0, 4)\ntl.store(out_ptr + i, tl.load(x_ptr + i, mask=i < 3))"
    run(body, [x, out])
    assert out[:3].tolist() == [1, 1, 1] and out[3].isnan()
    run(body, [x, out], checked=False)
    assert out[3] == 0


def test_checked_mode_finds_two_programs_writing_one_element() -> None:
    body = "x_ptr\ni = tl.arange(0, 4)\ntl.store(x_ptr + tl.program_id(0) * 3 + i, 1.0)"
    with pytest.raises(MemoryFault, match=r"program \(1, 0, 0\): writes what program number 0 wrote in 'x_ptr': a race"):
        run(body, [torch.zeros(16)], grid=(2, 1, 1))
    run(body, [torch.zeros(16)], grid=(2, 1, 1), checked=False)


def test_checked_mode_finds_a_read_of_what_another_program_wrote() -> None:
    body = "x_ptr\npid = tl.program_id(0)\ntl.store(x_ptr + pid, 1.0)\ny = tl.load(x_ptr)"
    with pytest.raises(MemoryFault, match="reads what program number 0 wrote"):
        run(body, [torch.zeros(4)], grid=(2, 1, 1))


def test_checked_mode_finds_lanes_that_disagree_about_one_element() -> None:
    with pytest.raises(MemoryFault, match="two lanes store different values"):
        run("x_ptr\ni = tl.arange(0, 4)\ntl.store(x_ptr + i // 2, i.to(tl.float32))", [torch.zeros(4)])


def test_a_strided_view_may_be_used_up_to_its_last_element() -> None:
    whole = torch.zeros(3, 8)
    run("x_ptr\ni, j = tl.arange(0, 2), tl.arange(0, 4)\ntl.store(x_ptr + i[:, None] * 8 + j[None, :], 1.0)", [whole[1:, 2:6]])
    assert whole.sum() == 8 and whole[0].sum() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_descriptor_moves_blocks_whose_outside_is_zero_and_is_not_written(dtype: torch.dtype) -> None:
    x, out = torch.randn(13, 40).to(dtype), torch.full((13, 40), 7.0).to(dtype)
    body = """x_ptr, out_ptr, row, column
source = tl.make_tensor_descriptor(x_ptr, [13, 40], [40, 1], [8, 16])
target = tl.make_tensor_descriptor(out_ptr, [13, 40], [40, 1], [8, 16])
block = source.load([row, column])
target.store([row, column], block * 2)"""
    for row, column in ((0, 0), (8, 16), (8, 32), (3, 32)):
        run(body, [x, out, row, column])
    assert torch.equal(out[8:, 16:], x[8:, 16:] * 2) and torch.equal(out[3:11, 32:], x[3:11, 32:] * 2) and torch.equal(out[:8, :16], x[:8, :16] * 2)
    assert (out[:8, 16:32] == 7).all() and (out[:3, 32:] == 7).all() and (out[8:, :16] == 7).all()


@pytest.mark.parametrize("strides, block", [("[36, 2]", "[8, 16]"), ("[36, 1]", "[8, 16]"), ("[40, 1]", "[8, 4]")])
def test_a_descriptor_that_a_gpu_would_refuse_is_refused(strides: str, block: str) -> None:
    with pytest.raises(ValueError, match="16"):
        run(f"x_ptr\nd = tl.make_tensor_descriptor(x_ptr, [13, 36], {strides}, {block})", [torch.zeros(13, 40, dtype=torch.bfloat16)])


def test_a_chained_comparison_is_refused_as_the_compiler_would() -> None:
    with pytest.raises(EngineError, match="chained comparison '0 <= i < 4'"):
        run("x_ptr\ni = tl.arange(0, 8)\nm = 0 <= i < 4", [torch.zeros(4)])


def test_a_test_of_a_whole_tile_is_refused() -> None:
    with pytest.raises(TypeError, match="only scalars have a truth value"):
        run("x_ptr\nif tl.arange(0, 8) > 3:\n    pass", [torch.zeros(4)])


def test_a_wrong_number_of_arguments_names_both_sides() -> None:
    with pytest.raises(EngineError, match="its parameters are x_ptr, N; got 2 arguments and the constants N"):
        run("x_ptr, N: tl.constexpr\npass", [torch.zeros(4), 3], {"N": 4})


def test_an_error_inside_a_kernel_shows_its_source_line_and_program() -> None:
    with pytest.raises(ValueError) as caught:
        run("x_ptr\nbad = tl.arange(0, 3)", [torch.zeros(4)])
    assert "in kernel k, program (0, 0, 0)" in caught.value.__notes__
    assert any(entry.line == "bad = tl.arange(0, 3)" for entry in __import__("traceback").extract_tb(caught.value.__traceback__))


def test_compiling_after_interpreting_gives_the_same_code() -> None:
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    @triton.jit
    def twice(x_ptr, N: triton.language.constexpr):
        i = triton.language.arange(0, N)
        triton.language.store(x_ptr + i, triton.language.load(x_ptr + i) * 2)

    def compile_once() -> str:
        with triton.knobs.compilation.scope():
            triton.knobs.compilation.always_compile = True
            return triton.compile(ASTSource(twice, {"x_ptr": "*fp32", "N": "constexpr"}, {"N": 64}), target=GPUTarget("cuda", 80, 32)).asm["ptx"]

    before = compile_once()
    x = torch.ones(64)
    run("x_ptr\ni = tl.arange(0, 64)\ntl.store(x_ptr + i, tl.sum(tl.load(x_ptr + i), axis=0))", [x])
    assert x[0] == 64 and compile_once() == before


def test_inline_assembly_runs_instruction_by_instruction() -> None:
    x = torch.tensor([0x04030201, -1], dtype=torch.int32)
    out = torch.empty(4, dtype=torch.int16)
    body = """x_ptr, out_ptr
i = tl.arange(0, 2)
a, b = tl.inline_asm_elementwise("{ .reg .b32 t; prmt.b32 t, $2, 0x77665544, 0x7130; xor.b32 t, t, 0x000000ff; mov.b32 {$0, $1}, t; }", "=h,=h,r",
                                 [tl.load(x_ptr + i)], dtype=(tl.int16, tl.int16), is_pure=True, pack=1)
tl.store(out_ptr + i, a)
tl.store(out_ptr + 2 + i, b)"""
    run(body, [x, out])
    assert [value & 0xFFFF for value in out.tolist()] == [0x04FE, 0xFF00, 0x7702, 0x77FF]
    with pytest.raises(NotImplementedError, match="no model of 'popc"):
        run('x_ptr\ni = tl.arange(0, 2)\ntl.inline_asm_elementwise("popc.b32 $0, $1;", "=r,r", [tl.load(x_ptr + i)], tl.int32, True, 1)', [x])
