"""Matrix product kernels on Triton's interpreter against the reference: every regime, dtype, prologue and epilogue, on sizes that divide nothing."""

import re

import pytest
import torch
from kernel_run import compile_case, compile_whole, emit_case, make_case, relative_error, run_case

from tilewright.codegen import attend_template, linear_template
from tilewright.codegen.emission import HEADER
from tilewright.codegen.tiles import choose_linear, keep_order
from tilewright.codegen.word_weights import DTYPES, ORDER, Arrangement, convert_words
from tilewright.ir.errors import CodegenError
from tilewright.ir.manifest import STEP_FIELDS
from tilewright.ir.opdef import OPS
from tilewright.ir.regions import Regime
from tilewright.runtime.triton_interpreter import launch, load_kernel

TOLERANCE = {"f32": 2e-6, "f16": 2e-3, "bf16": 1.5e-2}


def graph(body, returns, *, n=131, k=72, dtype="f32"):
    """%x [T, k] and %r [T, n] are what earlier kernels made; @w [n, k], @q its int8, @b [n], @g and @c [k]."""
    params = f"""
  param @emb : {dtype}[50, {k}]
  param @emb_r : {dtype}[50, {n}]
  param @emb_h : {dtype}[50, {n // 2}]
  param @w : {dtype}[{n}, {k}]
  param @b : {dtype}[{n}]
  param @g : {dtype}[{k}]
  param @c : {dtype}[{k}]
  %x = embedding(@emb, %ids) : {dtype}[T, {k}]
  %r = embedding(@emb_r, %ids) : {dtype}[T, {n}]
  %h = embedding(@emb_h, %ids) : {dtype}[T, {n // 2}]
  @q = quantize(@w) : i8[{n}, {k}]{{scale=f32}}"""
    lines = "\n".join(f"  {line}" for line in body.format(n=n, k=k, half=n // 2, t=dtype).splitlines())
    return f"graph @g(%ids: i32[T], %rows: i32[S]) dims(T in 1..128, S in 1..128) {{{params}\n{lines}\n  return {returns}\n}}\n"


def run(body, returns, tokens, *, seed=0, rows=1, **options):
    config = {key: options.pop(key) for key in list(options) if key not in ("n", "k", "dtype")}
    text = graph(body, returns, **options)
    generator = torch.Generator().manual_seed(seed)
    inputs = {"ids": torch.randint(0, 50, (tokens,), generator=generator).int(), "rows": torch.randint(0, tokens, (rows,), generator=generator).int()}
    case = make_case(text, "linear", "linear", inputs, seed=seed)
    out = run_case(case, Regime("r", "ragged", tokens), {"T": tokens, "S": rows, "B": tokens}, inputs, **config)
    for name, tensor in out.items():
        assert relative_error(tensor, case.values[case.graph.value(name)]) < TOLERANCE[options.get("dtype", "f32")], name


PLAIN = "%y = linear(%x, @w) : {t}[T, {n}]"
INT8 = "%y = linear(%x, @q, @b) : {t}[T, {n}]"
NORM = "%n = rms_norm(%x, @g) {{eps=1e-05}} : {t}[T, {k}]\n%y = linear(%n, @w) : {t}[T, {n}]"
GEMMA_NORM = "%n = rms_norm(%x, @g) {{eps=1e-05, rounding=after_scale, offset=1.0}} : {t}[T, {k}]\n%y = linear(%n, @q) : {t}[T, {n}]"
LAYER_NORM = "%n = layer_norm(%x, @g, @c) {{eps=1e-05}} : {t}[T, {k}]\n%y = linear(%n, @w, @b) : {t}[T, {n}]"
RESIDUAL = PLAIN + "\n%o = add(%r, %y) : {t}[T, {n}]"
GATED = NORM + "\n%o = gated(%y) {{activation=silu}} : {t}[T, {half}]"
GATED_INT8 = INT8 + "\n%a = gated(%y) {{activation=gelu_tanh}} : {t}[T, {half}]\n%o = mul(%a, %h) : {t}[T, {half}]"
SOFTCAP = (
    PLAIN + "\n%s = mul(%y) {{scalar=0.5}} : {t}[T, {n}]\n%u = tanh(%s) : {t}[T, {n}]\n%v = mul(%u) {{scalar=3.0}} : {t}[T, {n}]\n"
    "%o = cast(%v) {{dtype=f32}} : f32[T, {n}]"
)
HEAD = "%l = gather_rows(%x, %rows) : {t}[S, {k}]\n%n = rms_norm(%l, @g) {{eps=1e-05}} : {t}[S, {k}]\n%y = linear(%n, @w) : {t}[S, {n}]"

CASES = {
    "plain": (PLAIN, "%y"), "int8": (INT8, "%y"), "norm": (NORM, "%y"), "gemma norm": (GEMMA_NORM, "%y"), "layer norm": (LAYER_NORM, "%y"),
    "residual": (RESIDUAL, "%o"), "gated": (GATED, "%o"), "gated int8": (GATED_INT8, "%o"), "softcap": (SOFTCAP, "%o"),
    "two outputs": (RESIDUAL, "%o, %y"),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("name", CASES)
def test_one_token(name, dtype):
    n = 134 if "gated" in name else 131
    run(*CASES[name], 1, dtype=dtype, n=n, block_n=16, seed=1)


@pytest.mark.parametrize("tokens, dtype", [(5, "bf16"), (16, "f16"), (37, "f32")])
@pytest.mark.parametrize("name", CASES)
def test_several_tokens(name, tokens, dtype):
    n = 134 if "gated" in name else 131
    run(*CASES[name], tokens, dtype=dtype, n=n, block_n=32, seed=tokens)


@pytest.mark.parametrize("config", [{"block_m": 16, "group_m": 2}, {"block_m": 16, "group_m": 1}, {"block_m": 16, "weights_left": 1}], ids=str)
@pytest.mark.parametrize("name", ["int8", "gated", "residual"])
def test_tiles_of_tokens_in_groups_and_weights_on_the_left(name, config):
    run(*CASES[name], 37, dtype="bf16", n=134, seed=3, block_n=64, block_k=32, **config)


@pytest.mark.parametrize("config", [{"block_k": 32}, {"block_k": 16, "block_n": 8}, {"biased": 0, "block_k": 32}], ids=str)
@pytest.mark.parametrize("name", ["int8", "norm", "layer norm"])
def test_one_token_runs_over_k_in_steps(name, config):
    run(*CASES[name], 1, dtype="bf16", k=80, seed=4, **{"block_n": 32, **config})


# K = 72 is 5 steps of 16, which 2 and 3 programs share unevenly.
@pytest.mark.parametrize("config", [{"splits": 3}, {"splits": 2, "weights_left": 1}, {"splits": 8, "block_k": 32, "group_m": 2}], ids=str)
@pytest.mark.parametrize("name, tokens", [("int8", 37), ("gated", 16), ("residual", 3), ("two outputs", 20)])
def test_programs_that_share_a_tile_add_up_their_parts(name, tokens, config):
    run(*CASES[name], tokens, dtype="bf16", n=134, seed=tokens, **{"block_m": 16, "block_n": 64, "block_k": 16, **config})


def test_no_program_is_left_without_a_step_of_k():
    case = make_case(graph(PLAIN, "%y", k=96), "linear", "linear")
    for splits, programs in ((1, 1), (2, 2), (3, 3), (4, 3), (9, 6)):  # of the 6 steps, 4 programs would get 2, 2, 2 and 0
        _, _, emission = emit_case(case, Regime("r", "decode", 16), block_n=256, block_k=16, splits=splits)
        assert emission.kernels[0].grid[0]({"T": 16}) == programs, splits


@pytest.mark.parametrize("biased", [0, 1])
@pytest.mark.parametrize("k, block_k", [(70, 32), (72, 32), (72, 128), (128, 32)])
def test_int8_of_any_width_meets_one_token(k, block_k, biased):
    run(*CASES["gemma norm"], 1, dtype="bf16", k=k, seed=k, block_n=8, block_k=block_k, biased=biased)


def test_int8_of_one_token_is_taken_apart_in_registers():
    case = make_case(graph(*CASES["int8"], dtype="bf16", n=64, k=4096), "linear", "linear")
    ((_, binary),) = compile_case(case, Regime("r", "decode", 1), "sm_90")
    assert binary.shared_bytes <= 512, "sums of warps alone; a tile of weights moved between layouts takes thousands"


# Blocks of 64 columns are met in an order of their own: K of one block, of several, and of parts of one.
@pytest.mark.parametrize(
    "k, config",
    [
        (128, {}), (72, {"splits": 2}), (200, {"block_k": 128}), (256, {"splits": 3, "num_warps": 2}),
        (128, {"direct": 1}), (584, {"direct": 1, "block_k": 128, "splits": 2, "block_n": 128}),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("name, tokens, dtype", [("int8", 37, "bf16"), ("gated int8", 16, "f16"), ("gemma norm", 5, "bf16")])
def test_int8_words_on_the_left_meet_their_tokens(name, tokens, dtype, k, config):
    run(*CASES[name], tokens, dtype=dtype, n=134, k=k, seed=k, **{"weights_left": 1, "block_m": 16, "block_n": 64, "block_k": 64, **config})


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_byte_becomes_its_number(dtype):
    name, torch_dtype = {"bf16": ("tl.bfloat16", torch.bfloat16), "f16": ("tl.float16", torch.float16)}[dtype]
    lines = [
        "words = tl.load(weight + tl.arange(0, BLOCK_N)[:, None] * 16 + tl.arange(0, BLOCK_K // 4)[None, :])",
        *convert_words("words", dtype, name, Arrangement(4, 1, 4, False)),
        "tl.store(out + tl.arange(0, BLOCK_N)[:, None] * 64 + tl.arange(0, BLOCK_K)[None, :], weight_tile)",
    ]
    head = f"{HEADER}\n@triton.jit\ndef convert(weight, out, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):\n"
    kernel = load_kernel(head + "".join(f"    {line}\n" for line in lines), "convert", "convert")
    weight = torch.arange(-128, 128, dtype=torch.int32).to(torch.int8).reshape(4, 64)
    out = torch.empty(4, 64, dtype=torch_dtype)
    launch(kernel, (1, 1, 1), [weight.view(torch.int32), out], {"BLOCK_N": 4, "BLOCK_K": 64})
    columns = torch.tensor([eval(ORDER, {"lane": lane}) for lane in range(64)])
    assert sorted(columns.tolist()) == list(range(64))
    assert torch.equal(out, weight[:, columns].to(torch_dtype))


@pytest.mark.parametrize("dtype, direct", [("bf16", 0), ("bf16", 1), ("f16", 1)])
def test_int8_goes_to_the_tensor_core_from_the_registers_that_it_is_converted_in(dtype, direct):
    case = make_case(graph(*CASES["int8"], dtype=dtype, n=512, k=4096), "linear", "linear")
    config = {"weights_left": 1, "block_m": 32, "block_n": 128, "block_k": 128, "num_warps": 4, "splits": 4, "direct": direct}
    ((_, compiled),) = compile_whole(case, Regime("r", "decode", 32), "sm_90", dependent_launch=1, **config)
    before, after = compiled.ptx.split("griddepcontrol.wait")
    loop, _, _ = after.rpartition("wgmma.mma_async")
    assert re.search(r"wgmma.mma_async.sync.aligned.m64n32k16.f32.b?f16.b?f16 \{[^}]*\}, \{[^}]*\}, %rd", loop), "its left operand is four registers"
    assert loop.count("prmt.b32 low") == 128 * 128 // 4 // 128, "each thread converts its own words, once"
    assert "st.shared" not in loop and "cvt.rn" not in loop
    assert len(re.findall(r"ld\.global\S*\.v4\.b32", before)) == (8 if direct else 0), "the first step is on its way before the wait"
    assert len(re.findall(r"ld\.shared\S*\.v4\.b32|ldmatrix", loop)) == (0 if direct else 8), "all others come straight from memory"
    assert compiled.binary.stack_bytes == 0 and (3 - (not direct)) * compiled.binary.shared_bytes <= 227 * 1024, "as many blocks share a core"


def test_sizes_that_fit_need_no_masks():
    text = graph(GATED, "%o", n=64, k=64)
    case = make_case(text, "linear", "linear")
    for tokens in (1, 16):
        _, _, emission = emit_case(case, Regime("r", "decode", tokens), block_n=32, block_k=32)
        source = emission.kernels[0].source
        assert "n_inside" not in source and "depth_inside" not in source


@pytest.mark.parametrize("tokens, rows", [(1, 1), (20, 3), (100, 70)])
def test_logits_of_the_rows_asked_for(tokens, rows):
    run(HEAD, "%y", tokens, rows=rows, dtype="bf16", n=70, block_n=64)


def test_the_norm_is_computed_before_the_loop_over_k():
    case = make_case(graph(HEAD, "%y"), "linear", "linear")
    _, _, emission = emit_case(case, Regime("r", "ragged", 16))
    before, loop = emission.kernels[0].source.split("for start in")
    assert "rsqrt" in before and "picked" in before and "rsqrt" not in loop and "picked =" not in loop


def test_no_parameter_can_have_a_name_that_a_template_gives():
    words = {word for op in OPS.values() for word in op.operands} | set(STEP_FIELDS) | {"k_cache", "v_cache", "out", "partial", "level"}
    assert words.isdisjoint(linear_template.LOCALS) and words.isdisjoint(attend_template.LOCALS)


def test_early_launch_waits_before_it_reads_what_others_made():
    case = make_case(graph(RESIDUAL, "%o"), "linear", "linear")
    _, _, emission = emit_case(case, Regime("r", "decode", 1), dependent_launch=1)
    text = emission.kernels[0]
    before, after = text.source.split("gdc_wait()")
    assert text.dependent_launch and "tl.load(weight_rows" in before and "tl.load(x" not in before and "tl.load(x" in after
    run(RESIDUAL, "%o", 1, dependent_launch=1, block_n=32)


@pytest.mark.parametrize("case, tokens, tile", [("gated int8", 1, {}), ("layer norm", 1, {}), ("gated int8", 16, {"block_m": 16, "block_n": 64})])
def test_what_no_kernel_writes_is_loaded_before_the_wait(case, tokens, tile):
    _, _, emission = emit_case(make_case(graph(*CASES[case], n=134), "linear", "linear"), Regime("r", "decode", tokens), dependent_launch=1, **tile)
    text = emission.kernels[0]
    before, after = text.source.split("gdc_wait()")
    early = {"weight_scale", "bias", "layer_norm_weight", "layer_norm_bias"}.intersection(text.parameters)
    assert len(early) >= 2 and all(f"tl.load({name}" in before and f"tl.load({name}" not in after for name in early)
    assert "tl.load(x " in after and "tl.load(x " not in before


@pytest.mark.parametrize("name", ["norm", "layer norm", "gemma norm", "gated int8"])
def test_one_step_over_k_reads_a_row_once(name):
    case = make_case(graph(*CASES[name], n=134, k=200), "linear", "linear")
    _, _, emission = emit_case(case, Regime("r", "decode", 1), block_k=256)
    source = emission.kernels[0].source
    assert source.count("tl.load(x ") == 1 and "for " not in source
    run(*CASES[name], 1, dtype="bf16", n=134, k=200, seed=4, block_k=256, block_n=8)


def test_an_output_that_does_not_depend_on_the_product_is_refused():
    stray = graph("%e = exp(%x) : {t}[T, {k}]\n%y = linear(%e, @w) : {t}[T, {n}]", "%y, %e")
    with pytest.raises(CodegenError, match="does not depend on the product"):
        emit_case(make_case(stray, "linear", "linear"), Regime("r", "ragged", 2))


@pytest.mark.parametrize("block_k", [32, 128])
def test_the_row_of_a_norm_may_be_wider_than_what_is_taken_of_it(block_k):
    body = (
        "%two = concat(%x, %x) {{axis=1}} : {t}[T, 144]\n%all = rms_norm(%two) {{eps=1e-05}} : {t}[T, 144]\n"
        "%n = slice(%all) {{axis=1, start=72, stop=144}} : {t}[T, {k}]\n%y = linear(%n, @w) : {t}[T, {n}]"
    )
    run(body, "%y", 1, dtype="bf16", block_k=block_k, block_n=8)


def test_a_weight_that_the_cores_hold_at_once_is_read_in_one_step():
    held = choose_linear(1, 2048, 2048, 2, "bf16", 90)
    assert (held.block_n, held.block_k, held.num_warps) == (2, 2048, 4)
    assert choose_linear(1, 2048, 3072, 1, "bf16", 90).block_k == 4096
    for n, k, weight_bytes in ((16384, 2048, 2), (4096, 4096, 2), (2048, 2100, 1), (2048, 2048, 4)):
        assert choose_linear(1, n, k, weight_bytes, "bf16", 90).block_k < k, (n, k)


def test_small_steps_stream_the_weight_and_large_ones_use_large_tiles():
    assert choose_linear(1, 4096, 4096, 2, "bf16", 90).block_m == 1
    few = choose_linear(16, 4096, 4096, 2, "bf16", 90)
    assert few.block_m == 16 and -(-4096 // few.block_n) * few.splits >= 118
    assert choose_linear(16, 128256, 4096, 2, "bf16", 90).splits == 1
    assert [choose_linear(16, 4096, 4096, 1, "bf16", arch).weights_left for arch in (80, 90, 100)] == [False, True, False]
    assert choose_linear(2048, 28672, 4096, 2, "bf16", 90).block_n == 256
    assert choose_linear(2048, 28672, 4096, 2, "bf16", 80).block_n == 128


@pytest.mark.parametrize("weight_bytes", [1, 2])
def test_kernels_that_keep_their_order_fill_the_machine_with_columns(weight_bytes):
    tile = keep_order(choose_linear(64, 4096, 4096, weight_bytes, "bf16", 90), weight_bytes)
    assert (tile.block_n, tile.splits, tile.weights_left) == (64, 1, False)


def test_the_weight_streams_from_shared_memory_into_the_tensor_core():
    case = make_case(graph(RESIDUAL, "%o", n=512, k=4096, dtype="bf16"), "linear", "linear")
    ((_, compiled),) = compile_whole(case, Regime("r", "decode", 16), "sm_90", dependent_launch=1, splits=4)
    before, after = compiled.ptx.split("griddepcontrol.wait")
    assert "cp.async" not in before
    assert "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16" in after and "atom.global.gpu.acq_rel.add" in after.replace("atom.acq_rel", "atom")
    assert compiled.binary.stack_bytes == 0 and 2 * compiled.binary.shared_bytes <= 227 * 1024, "two blocks share a core"


# name -> (N, K, body, result): Llama-3-8B, Llama-3.2-1B, GPT-J-6B
SHAPES = {
    "8b gate_up": (28672, 4096, GATED, "%o"),
    "8b down": (4096, 14336, RESIDUAL, "%o"),
    "1b qkv int8": (3072, 2048, GEMMA_NORM, "%y"),
    "gpt-j fc_in": (16384, 4096, LAYER_NORM + "\n%o = gelu(%y) {{approximate=tanh}} : {t}[T, {n}]", "%o"),
}


@pytest.mark.parametrize("name, arch", [("8b gate_up", "sm_90"), ("8b down", "sm_100"), ("1b qkv int8", "sm_80"), ("gpt-j fc_in", "sm_90")])
def test_kernels_of_real_shapes_compile_without_spills(name, arch):
    n, k, body, result = SHAPES[name]
    case = make_case(graph(body, result, n=n, k=k, dtype="bf16"), "linear", "linear")
    for tokens in (1, 16, 2048):
        for _, binary in compile_case(case, Regime("r", "ragged", tokens), arch):
            assert binary.stack_bytes <= (16 if arch == "sm_100" else 0), (tokens, binary)
            assert binary.num_registers <= (128 if tokens <= 16 else 255), (tokens, binary)
