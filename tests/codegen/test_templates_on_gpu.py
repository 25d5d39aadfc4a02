"""The same comparisons as on the interpreter, compiled and run on a GPU, at sizes that use its tensor cores."""

import pytest
import torch
from kernel_run import make_case, relative_error, run_case
from test_attend_template import DECODES, Setup, attend
from test_attend_template import TOLERANCE as ATTEND_TOLERANCE
from test_linear_template import CASES, TOLERANCE, graph

from tilewright.ir.regions import Regime

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


@pytest.mark.parametrize("tokens, early", [(1, 0), (1, 1), (16, 0), (50, 1), (128, 0)])
@pytest.mark.parametrize("name", ["int8", "norm", "residual", "gated", "softcap", "two outputs"])
@pytest.mark.parametrize("dtype, n, k", [("bf16", 1026, 1032), ("f16", 512, 2048), ("f32", 134, 72)])
def test_products(name, tokens, dtype, n, k, early):
    text = graph(*CASES[name], dtype=dtype, n=n, k=k)
    inputs = {"ids": torch.randint(0, 50, (tokens,)).int(), "rows": torch.zeros(1).int()}
    case = make_case(text, "linear", "linear", inputs, seed=tokens)
    out = run_case(case, Regime("r", "ragged", tokens), {"T": tokens, "S": 1, "B": tokens}, inputs, device="cuda", dependent_launch=early)
    for value, tensor in out.items():
        assert relative_error(tensor, case.values[case.graph.value(value)]) < TOLERANCE[dtype], value


LEFT = {"weights_left": 1, "num_warps": 4}
SHARED = [
    {"splits": 4, **LEFT}, {"splits": 4, **LEFT, "direct": 1}, {"splits": 2, **LEFT, "direct": 1, "block_n": 128, "block_k": 128},
    {"splits": 4, "weights_left": 1, "num_warps": 2}, {"splits": 7}, {"splits": 3, "block_m": 64},
]  # fmt: skip


@pytest.mark.parametrize("config", SHARED, ids=str)
@pytest.mark.parametrize("name, dtype", [("int8", "bf16"), ("int8", "f16"), ("gated", "f16"), ("two outputs", "bf16")])
def test_products_whose_programs_share_tiles(name, dtype, config):
    case_of = {"ids": torch.randint(0, 50, (37,)).int(), "rows": torch.zeros(1).int()}
    case = make_case(graph(*CASES[name], dtype=dtype, n=1026, k=2056), "linear", "linear", case_of, seed=5)
    sizes = {"block_m": 16, "block_n": 64, "block_k": 64, "dependent_launch": 1, **config}
    out = run_case(case, Regime("r", "decode", 64), {"T": 37, "S": 1, "B": 37}, case_of, device="cuda", **sizes)
    for value, tensor in out.items():
        assert relative_error(tensor, case.values[case.graph.value(value)]) < TOLERANCE[dtype], value


LONG = {"num_splits": 2, "long_splits": 5, "long_keys": 32, "block_n": 16}


@pytest.mark.parametrize("setup", [*DECODES, Setup(32, 8, 128, 128, "bf16", 16), Setup(32, 8, 128, 128, "f16", 64)], ids=str)
def test_attention(setup):
    lengths, ones = [37, 1, 101, 90], [1, 1, 1, 1]
    for kind, chunks, config in (("decode", ones, {}), ("decode", ones, {"num_splits": 3}), ("decode", ones, LONG), ("ragged", [37, 1, 50, 9], {})):
        out, expected = attend(setup, kind, lengths, chunks, device="cuda", **config)
        assert relative_error(out, expected) < ATTEND_TOLERANCE[setup.dtype], (kind, config)


@pytest.mark.parametrize("splits", [32, 64, 128])
def test_many_splits_of_wide_heads_are_reduced_right(splits):
    """Some versions of Triton miscompiled such a reduction."""
    out, expected = attend(Setup(8, 1, 128, 128, "f16"), "decode", [128, 77], [1, 1], device="cuda", num_splits=splits, block_n=16)
    assert relative_error(out, expected) < ATTEND_TOLERANCE["f16"]


FUSED = [Setup(32, 8, 128, 128, "bf16", 64), Setup(6, 2, 24, 24, "f16", 16), Setup(8, 1, 64, 32, "f32", 4, window=40, softcap=5.0, alibi=True)]


@pytest.mark.parametrize("early", [0, 1])
@pytest.mark.parametrize("sequences", [1, 3, 32, 257])
@pytest.mark.parametrize("setup", FUSED, ids=str)
def test_decode_writes_its_own_key_and_counts_its_splits_launch_after_launch(setup, sequences, early):
    """Contexts on both sides of every border of a page and a block, one after the other without a pause."""
    lengths = [(1, 2, 16, 17, 64, 65, 127, 128)[i % 8] for i in range(sequences)][::-1]
    config = {"num_splits": 5, "block_n": 16, "dependent_launch": early, "launches": 5}
    out, expected = attend(setup, "decode", lengths, [1] * sequences, padding=2, seed=sequences, writes=True, device="cuda", **config)
    assert relative_error(out, expected) < ATTEND_TOLERANCE[setup.dtype]


def test_the_same_step_gives_the_same_bits_whichever_split_ends_last():
    setup, lengths = FUSED[0], [128, 65, 101] * 20
    runs = [attend(setup, "decode", lengths, [1] * 60, writes=True, device="cuda", num_splits=8, block_n=16, launches=n)[0] for n in (1, 2, 3)]
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])
