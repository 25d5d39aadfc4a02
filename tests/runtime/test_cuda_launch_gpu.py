"""Kernels compiled ahead of time and launched by our own driver on a GPU, against the interpreter and plain torch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from tilewright.codegen.aot import compile_kernel
from tilewright.ir.manifest import Kernel
from tilewright.runtime.cuda_driver import Module, PreparedLaunch
from tilewright.runtime.triton_interpreter import launch, load_kernel

pytestmark = pytest.mark.gpu

HEAD = "import triton\nimport triton.language as tl\n\n@triton.jit\n"
NORM = (
    HEAD
    + """def norm(x_ptr, residual_ptr, w_ptr, y_ptr, sum_ptr, n, eps, BLOCK: tl.constexpr):
    row, i = tl.program_id(0), tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * n + i, mask=i < n, other=0.0).to(tl.float32)
    h = (x + tl.load(residual_ptr + row * n + i, mask=i < n, other=0.0).to(tl.float32)).to(tl.bfloat16)
    tl.store(sum_ptr + row * n + i, h, mask=i < n)
    h = h.to(tl.float32)
    y = h * tl.rsqrt(tl.sum(h * h, axis=0) / n + eps) * tl.load(w_ptr + i, mask=i < n, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * n + i, y.to(tl.bfloat16), mask=i < n)
"""
)
PRODUCT = (
    HEAD
    + """def product(x_ptr, w_ptr, s_ptr, y_ptr, M, N: tl.constexpr, K: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m, k = tl.arange(0, BM), tl.arange(0, BK)
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, K, BK):
        kk = start + k
        x = tl.load(x_ptr + m[:, None] * K + kk[None, :], mask=(m[:, None] < M) & (kk[None, :] < K), other=0.0)
        w = tl.load(w_ptr + n[None, :] * K + kk[:, None], mask=(n[None, :] < N) & (kk[:, None] < K), other=0)
        acc = tl.dot(x, w.to(tl.bfloat16), acc)
    acc *= tl.load(s_ptr + n, mask=n < N, other=0.0)[None, :]
    tl.store(y_ptr + m[:, None] * N + n[None, :], acc.to(tl.bfloat16), mask=(m[:, None] < M) & (n[None, :] < N))
"""
)
MERGE = (
    HEAD
    + """def merge(partial_ptr, lse_ptr, out_ptr, D: tl.constexpr, SPLITS: tl.constexpr):
    row = tl.program_id(0)
    split, d = tl.arange(0, SPLITS), tl.arange(0, D)
    lse = tl.load(lse_ptr + row * SPLITS + split)
    weight = tl.exp2(lse - tl.max(lse, axis=0))
    partial = tl.load(partial_ptr + (row * SPLITS + split[:, None]) * D + d[None, :])
    out = tl.sum(tl.where(weight[:, None] > 0, partial, 0.0) * weight[:, None], axis=0) / tl.sum(weight, axis=0)
    tl.store(out_ptr + row * D + d, out.to(tl.bfloat16))
"""
)
STEP = (
    HEAD
    + """def step(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.extra.cuda.gdc_wait()
    x = tl.load(x_ptr + (n - 1 - i), mask=i < n, other=0.0)
    tl.extra.cuda.gdc_launch_dependents()
    tl.store(y_ptr + i, x * 0.5 + 1.0, mask=i < n)
"""
)
TYPES = {torch.bfloat16: "*bf16", torch.float32: "*f32", torch.int8: "*i8", torch.int32: "*i32"}


def describe(source: str, args: Sequence[Any], names: Sequence[str], constants: dict[str, int], **options: Any) -> Kernel:
    entry = source.split("def ")[1].split("(")[0]
    types = [TYPES[a.dtype] if isinstance(a, torch.Tensor) else "f32" if isinstance(a, float) else "i32" for a in args]
    return Kernel(f"{entry}_1", "triton", f"kernels/{entry}_1.py", entry, tuple(zip(names, types)), dict(constants), **options)


def load(kernel: Kernel, source: str) -> tuple[Module, int]:
    major, minor = torch.cuda.get_device_capability()
    compiled = compile_kernel(kernel, source, f"sm_{major}{minor}")
    return Module(compiled.cubin, compiled.binary.symbol, compiled.binary.shared_bytes), compiled.binary.num_warps


def prepare(kernel: Kernel, loaded: tuple[Module, int], grid: tuple[int, int, int], args: Sequence[Any]) -> PreparedLaunch:
    module, num_warps = loaded
    addresses = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in args]
    return module.prepare(grid, num_warps, addresses, [type_name for _, type_name in kernel.parameters], kernel.dependent_launch)


def run_both(source: str, names: str, constants: dict[str, int], grid: tuple[int, int, int], args: list[Any], **options: Any) -> tuple[list, list]:
    """The same kernel on the GPU and in the interpreter; the tensors after each."""
    kernel = describe(source, args, names.split(), constants, **options)
    on_gpu = [a.cuda() if isinstance(a, torch.Tensor) else a for a in args]
    prepare(kernel, load(kernel, source), grid, on_gpu).launch(torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    launch(load_kernel(source, kernel.name, kernel.entry), grid, args, kernel.constants)
    return [a.cpu() for a in on_gpu if isinstance(a, torch.Tensor)], [a for a in args if isinstance(a, torch.Tensor)]


def test_a_norm_gives_what_the_interpreter_gives() -> None:
    rows, n = 5, 1000
    x, residual = torch.randn(rows, n).bfloat16(), torch.randn(rows, n).bfloat16()
    args = [x, residual, torch.rand(n).bfloat16(), torch.empty_like(x), torch.empty_like(x), n, 1e-5]
    gpu, cpu = run_both(NORM, "x_ptr residual_ptr w_ptr y_ptr sum_ptr n eps", {"BLOCK": 1024}, (rows, 1, 1), args, num_warps=4)
    assert torch.equal(gpu[4], cpu[4]), "a sum rounded once to bf16 is the same everywhere"
    torch.testing.assert_close(gpu[3], cpu[3], rtol=8e-3, atol=1e-3)


@pytest.mark.parametrize(("block", "stages"), [((16, 64, 128), 3), ((64, 128, 64), 4)])
def test_an_int8_product_gives_what_torch_gives(block: tuple[int, int, int], stages: int) -> None:
    M, N, K = 13, 300, 528  # tiles end within M, N and K; 64 x 128 in four stages needs more than 48 KiB
    x, w, scale = torch.randn(M, K).bfloat16(), torch.randint(-127, 128, (N, K)).to(torch.int8), torch.rand(N)
    args = [x, w, scale, torch.empty(M, N).bfloat16(), M]
    constants = dict(zip(("N", "K", "BM", "BN", "BK"), (N, K, *block)))
    grid = (-(-N // block[1]), 1, 1)
    gpu, cpu = run_both(PRODUCT, "x_ptr w_ptr s_ptr y_ptr M", constants, grid, args, num_stages=stages)
    expected = (x.double() @ w.double().T * scale.double()).bfloat16()
    torch.testing.assert_close(gpu[3], expected, rtol=8e-3, atol=0.5)
    torch.testing.assert_close(gpu[3], cpu[3], rtol=8e-3, atol=0.5)


@pytest.mark.parametrize(("num_warps", "splits"), list(itertools.product([1, 2, 4], [16, 128])))
def test_merging_split_attention_is_right_for_every_number_of_warps(num_warps: int, splits: int) -> None:
    """Triton 3.5 and 3.6 were reported to miscompile this shape at 2 warps and 128 splits."""
    rows, head_dim = 9, 128
    partial, lse = torch.randn(rows, splits, head_dim), torch.randn(rows, splits) * 4
    lse[:, splits // 3 :: 2] = -float("inf")
    partial[:, splits // 3 :: 2] = float("nan")  # a split that saw no key wrote nothing
    args = [partial, lse, torch.empty(rows, head_dim).bfloat16()]
    gpu, cpu = run_both(MERGE, "partial_ptr lse_ptr out_ptr", {"D": head_dim, "SPLITS": splits}, (rows, 1, 1), args, num_warps=num_warps)
    weight = (lse.double() * 0.6931471805599453).softmax(1)
    expected = (partial.double().nan_to_num(0) * weight[..., None]).sum(1)
    torch.testing.assert_close(gpu[2].double(), expected, rtol=8e-3, atol=1e-3)
    torch.testing.assert_close(gpu[2], cpu[2], rtol=8e-3, atol=1e-3)


def make_chain(length: int, n: int, *, dependent: bool) -> tuple[list[PreparedLaunch], list[torch.Tensor]]:
    """Launches that each read what the one before wrote, last element first, so that overtaking shows."""
    buffers = [torch.randn(n, device="cuda"), torch.empty(n, device="cuda"), torch.empty(n, device="cuda")]
    kernel = describe(STEP, [buffers[0], buffers[1], n], ["x_ptr", "y_ptr", "n"], {"BLOCK": 1024}, dependent_launch=dependent)
    grid = (-(-n // 1024), 1, 1)
    route = [(0 if i == 0 else 1 + (i + 1) % 2, 1 + i % 2) for i in range(length)]
    step = load(kernel, STEP)
    return [prepare(kernel, step, grid, [buffers[source], buffers[target], n]) for source, target in route], buffers


@pytest.mark.parametrize("dependent", [False, True])
def test_a_chain_replayed_from_a_graph_keeps_its_order(dependent: bool) -> None:
    if dependent and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("programmatic dependent launch needs sm_90")
    length, n = 40, 1_000_003
    launches, buffers = make_chain(length, n, dependent=dependent)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.graph(graph, stream=stream):
        for prepared in launches:
            prepared.launch(torch.cuda.current_stream().cuda_stream)
    for _ in range(3):
        buffers[0].normal_()
        expected = buffers[0].clone()
        for _ in range(length):
            expected = expected.flip(0) * 0.5 + 1.0
        graph.replay()
        torch.cuda.synchronize()
        torch.testing.assert_close(buffers[1 + (length - 1) % 2], expected, rtol=1e-6, atol=1e-6)


def test_a_changed_integer_takes_effect_in_the_next_launch() -> None:
    (prepared,), buffers = make_chain(1, 3000, dependent=False)
    buffers[1].fill_(-1)
    prepared.resize((2, 1, 1), {2: 2000})
    prepared.launch(torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    torch.testing.assert_close(buffers[1][:2000], buffers[0][:2000].flip(0) * 0.5 + 1.0)
    assert (buffers[1][2000:] == -1).all()
