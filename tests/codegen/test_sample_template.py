"""The sampling kernels on Triton's interpreter: against the torch sampler, and against the filters' definition in f64."""

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from tilewright.codegen.aot import SHARED_LIMITS, compile_all
from tilewright.codegen.sample_template import CAPACITY, emit_sampling
from tilewright.runtime import triton_interpreter
from tilewright.runtime.backend import FixedLaunch
from tilewright.runtime.sample_kernels import SampleKernels
from tilewright.runtime.sampler import SamplePlan, Sampler, SampleRows, param_row
from tilewright.runtime.sampling_params import SamplingParams

CPU = torch.device("cpu")
SLACK = 2e-6  # what a share of the mass, or a weight beside a threshold, may be off by


class CheckedKernel:
    """Races, accesses outside a tensor and overflows of i32 are errors."""

    def __init__(self, kernel, source):
        self.loaded, self.constants = triton_interpreter.load_kernel(source, kernel.name, kernel.entry), kernel.constants

    def bind(self, grid, args):
        return FixedLaunch(lambda stream: triton_interpreter.launch(self.loaded, grid, args, self.constants, checked=True))


def make_kernels(vocab, max_rows, **options):
    emitted = emit_sampling(vocab, dependent_launch=True, **options)
    loaded = {kernel.name: CheckedKernel(kernel, emitted.sources[kernel.name]) for kernel in emitted.sampling.kernels}
    return SampleKernels(emitted.sampling, loaded, CPU, max_rows)


def make_samplers(vocab, params, kernels=None, histories=None):
    """One with kernels, one with torch, each slot assigned."""
    samplers = [Sampler(vocab, len(params), CPU, kernels or make_kernels(vocab, len(params))), Sampler(vocab, len(params), CPU)]
    for sampler in samplers:
        for slot, p in enumerate(params):
            prompt, output = histories[slot] if histories else ([0], [])
            sampler.assign(slot, p, prompt, output, frozenset([vocab - 1]))
    return samplers


def make_rows(params, uniform, slots=None):
    slots = list(range(len(params))) if slots is None else slots
    rows = torch.tensor([param_row(p) for p in params])
    return SampleRows(torch.tensor(slots), torch.zeros(len(params), dtype=torch.int32), rows, torch.as_tensor(uniform, dtype=torch.float64))


def plan_of(params):
    return SamplePlan.from_bits(int(np.bitwise_or.reduce([SamplePlan.of(p).bits for p in params])))


def adjust(sampler, logits, rows, plan):
    """f32[S, vocab] after biases and penalties, by torch."""
    if plan.biases:
        logits = sampler._biases.apply(logits, rows)
    return sampler._history.penalize(logits, rows) if plan.penalties else logits


def may_draw(x, p, uniform, token, slack=SLACK):
    """Whether `token` is a right draw from x: f32[vocab], after penalties.

    A token whose weight is within slack of a threshold, or before whose weight the mass is within slack of top_p, may be kept or not: `most` is
    the largest set that may be kept, `least` the smallest. A right token is in `most`, and uniform lies in its interval of the running
    sums, where each end may be off by what the sets differ in and by slack.
    """
    w = ((x.double() - x.max()) / p.temperature).exp()
    least = most = torch.ones_like(w, dtype=torch.bool)
    if p.min_p > 0:
        least, most = w >= p.min_p * (1 + slack), w >= p.min_p * (1 - slack)
    w = torch.where(most, w, 0.0)
    limit = min(p.top_k, len(w)) if p.top_k > 0 else len(w)
    ordered = w.sort(descending=True).values
    if p.top_k > 0:
        least, most = least & (w >= ordered[limit - 1] * (1 + slack)), most & (w >= ordered[limit - 1] * (1 - slack))
    if p.top_p < 1:
        sums = ordered[:limit].cumsum(0)
        few, many = (int((sums < share * sums[-1]).sum().clamp_max(limit - 1)) for share in (p.top_p - slack, p.top_p + slack))
        least, most = least & (w >= ordered[few] * (1 + slack)), most & (w >= ordered[many] * (1 - slack))
    least = least | (w >= 1.0)
    smallest, largest = torch.where(least, w, 0.0), torch.where(most, w, 0.0)
    low = smallest[:token].sum() / largest.sum()
    high = largest[: token + 1].sum() / smallest.sum()
    return bool(most[token]) and low - slack <= uniform <= high + slack


def check(vocab, logits, params, uniform, *, kernels=None, histories=None):
    ours, theirs = make_samplers(vocab, params, kernels, histories)
    rows, plan = make_rows(params, uniform), plan_of(params)
    adjusted = adjust(theirs, logits, rows, plan)
    tokens, expected = ours.sample(logits, rows, plan).tokens, theirs.sample(logits, rows, plan).tokens
    for row, p in enumerate(params):
        token, wanted = int(tokens[row]), int(expected[row])
        if p.is_greedy:
            assert token == wanted == int(adjusted[row].argmax()), (row, p)
        else:
            assert may_draw(adjusted[row], p, float(rows.uniform[row]), token), (row, p, token, wanted)
            assert token == wanted or may_draw(adjusted[row], p, float(rows.uniform[row]), wanted), (row, p, token, wanted)
    assert torch.equal(ours.last_token[: len(params)], tokens)
    if plan.penalties:
        penalized = torch.tensor([SamplePlan.of(p).penalties for p in params])
        same = tokens == expected
        assert torch.equal(ours._history.table[:-1][penalized & same], theirs._history.table[:-1][penalized & same])
    return tokens


def random_params(random, vocab):
    """Any mixture of what a request may ask for."""

    def pick(*choices):
        return choices[int(torch.randint(len(choices), (1,), generator=random))]

    return SamplingParams(
        temperature=pick(0, 0.3, 0.8, 1.0, 1.0, 2.5, 100.0), top_k=pick(0, 0, 1, 2, 50, vocab // 2, vocab, 2 * vocab),
        top_p=pick(1.0, 1.0, 1e-30, 0.1, 0.9, 0.999999), min_p=pick(0.0, 0.0, 0.0, 0.1, 1.0), repetition_penalty=pick(1.0, 1.0, 1.3, 0.7),
        presence_penalty=pick(0.0, 0.0, 0.5), frequency_penalty=pick(0.0, 0.0, -0.4),
        logit_bias=pick({}, {}, {}, {3: 4.0, 5: -4.0}), min_tokens=pick(0, 0, 2),
    )  # fmt: skip


def shapes_of(random, vocab, rows):
    """f32[rows, vocab] of several kinds: normal, peaked, flat, stepped (many ties), mostly -inf, ascending."""
    logits = torch.randn(rows, vocab, generator=random) * torch.tensor([0.1, 1.0, 3.0, 10.0])[torch.arange(rows) % 4, None]
    for row in range(rows):
        kind = row % 6
        if kind == 1:
            logits[row] = logits[row].mul(2).round()
        elif kind == 2:
            logits[row, torch.rand(vocab, generator=random) < 0.95] = -torch.inf
            logits[row, vocab // 3] = 0.5
        elif kind == 3:
            logits[row] = logits[row].sort().values
        elif kind == 4:
            logits[row] = 0.25
    return logits


@pytest.mark.parametrize(("vocab", "rows"), [(257, 33), (1, 3), (2, 5), (5000, 12)])
def test_rows_of_any_parameters_get_the_token_of_the_torch_sampler(vocab, rows, generator):
    params = [random_params(generator, vocab) for _ in range(rows)]
    histories = [(torch.randint(vocab, (9,), generator=generator).tolist(), torch.randint(vocab, (5,), generator=generator).tolist()) for _ in params]
    uniform = torch.rand(rows, generator=generator, dtype=torch.float64)
    check(vocab, shapes_of(generator, vocab, rows), params, uniform, histories=histories)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0),
        SamplingParams(),
        SamplingParams(top_k=50),
        SamplingParams(top_p=0.9),
        SamplingParams(top_k=700, top_p=0.8, repetition_penalty=1.1, frequency_penalty=0.2),
        SamplingParams(min_p=0.05),
    ],
)
def test_vocabularies_of_real_models(params, generator):
    for vocab, scale in ((32000, 2.5), (50257, 4.0), (128256, 3.0)):
        logits = torch.randn(1, vocab, generator=generator) * scale
        check(vocab, logits, [params], torch.rand(1, generator=generator, dtype=torch.float64), histories=[([1, 5, 9], [2, 2, vocab - 1])])


def lists_of(kernels):
    return kernels._own["num_found"]


@pytest.mark.parametrize("params", [SamplingParams(top_k=300), SamplingParams(top_k=900, top_p=0.7), SamplingParams(top_p=0.99, temperature=0.35)])
def test_lists_of_hundreds_are_searched(params, generator):
    logits, kernels = torch.randn(4, 9000, generator=generator), make_kernels(9000, 4)
    check(9000, logits, [params] * 4, torch.rand(4, generator=generator, dtype=torch.float64), kernels=kernels)
    assert ((lists_of(kernels) > 256) & (lists_of(kernels) <= CAPACITY)).all()


def is_bracketed(kernels):
    """Whether a row's list leaves out what is over the threshold of the filters for sure."""
    return kernels._own["row_high"].view(torch.float32) <= 1.0


@pytest.mark.parametrize(("params", "ties"), [
    (SamplingParams(top_p=0.9), False), (SamplingParams(top_k=5000), False), (SamplingParams(top_p=0.5, temperature=3.0), True)
])  # fmt: skip
def test_flat_rows_list_what_is_near_the_threshold(params, ties, generator):
    vocab, kernels = 40000, make_kernels(40000, 2)
    logits = torch.randn(2, vocab, generator=generator) + 5
    logits = logits.bfloat16().float() if ties else logits
    check(vocab, logits, [params] * 2, torch.rand(2, generator=generator, dtype=torch.float64), kernels=kernels)
    assert is_bracketed(kernels).all() and (lists_of(kernels) < 8000).all()


@pytest.mark.parametrize("kind", ["flat", "equal", "two levels", "falls off a cliff"])
@pytest.mark.parametrize("capacity", [256, CAPACITY])
def test_rows_that_no_list_holds_are_searched_whole(kind, capacity, generator):
    vocab = 7001
    logits = torch.randn(5, vocab, generator=generator) * 0.01
    if kind == "equal":
        logits[:] = 1.5
    elif kind == "two levels":
        logits = torch.where(torch.rand(5, vocab, generator=generator) < 0.6, 1.0, 0.5)
    elif kind == "falls off a cliff":
        logits[:, :3500] -= 12
    many = [
        SamplingParams(top_p=0.9),
        SamplingParams(top_k=3000),
        SamplingParams(top_k=5000, top_p=0.8),
        SamplingParams(min_p=0.3),
        SamplingParams(top_p=0.5),
    ]
    kernels = make_kernels(vocab, 5, capacity=capacity)
    check(vocab, logits, many, torch.rand(5, generator=generator, dtype=torch.float64), kernels=kernels)
    assert capacity == CAPACITY or kind == "equal" or (lists_of(kernels) > capacity).sum() >= 4


def test_a_cut_that_is_too_high_is_found_out(generator):
    """All that top_p keeps lies between the probes, in many parts, so that nothing tells of it."""
    vocab, kernels = 128256, make_kernels(128256, 1)
    logits = torch.full((1, vocab), -30.0)
    hidden = torch.arange(10240)[torch.arange(10240) % 256 < 100]  # probes are the 8 tokens from 124 on of each 256
    logits[0, hidden] = 4 - torch.arange(len(hidden)) * 1e-4
    check(vocab, logits, [SamplingParams(top_p=0.9)], [0.999], kernels=kernels)
    assert lists_of(kernels)[0] < 0.9 * len(hidden)


@pytest.mark.parametrize("uniform", [0.0, 0.49999, 0.5, 1 - 2**-53])
def test_a_token_without_probability_is_never_drawn(uniform):
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(3, -1).contiguous()
    many = [SamplingParams(), SamplingParams(top_k=4), SamplingParams(top_p=0.999)]
    tokens = check(5, logits, many, [uniform] * 3)
    assert tokens.tolist() == [1 if uniform < 0.5 else 3] * 3


def test_a_row_gets_the_same_token_in_any_batch_and_order(generator):
    """Programs of a grid run in the order of the rows here, so moving a row moves its programs, too."""
    vocab, rows = 2500, 9
    params = [random_params(generator, vocab) for _ in range(rows)]
    logits, uniform = shapes_of(generator, vocab, rows), torch.rand(rows, generator=generator, dtype=torch.float64)
    sampler, _ = make_samplers(vocab, params)
    order = torch.randperm(rows, generator=generator).tolist()
    histories = sampler._history.table.clone() if sampler._history else None
    together = sampler.sample(logits, make_rows(params, uniform), plan_of(params)).tokens
    if histories is not None:
        sampler._history.table.copy_(histories)
    moved = make_rows([params[i] for i in order], uniform[order], order)
    assert torch.equal(sampler.sample(logits[order].contiguous(), moved, plan_of(params)).tokens, together[order])
    if histories is not None:
        sampler._history.table.copy_(histories)
    for i, p in enumerate(params):
        alone = make_rows([p], uniform[i : i + 1], [i])
        assert int(sampler.sample(logits[i : i + 1], alone, SamplePlan.of(p)).tokens) == int(together[i]), p


def test_every_filtered_draw_is_exact_in_whole_numbers(generator):
    """Over many uniforms, each token is drawn as often as its share of the kept mass says, to the last one."""
    vocab, points = 300, 64
    logits = (torch.randn(1, vocab, generator=generator) * 2).expand(points, -1).contiguous()
    params = [SamplingParams(top_k=40, top_p=0.8)] * points
    uniform = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    tokens = check(vocab, logits, params, uniform)
    assert (tokens.diff() >= 0).all(), "a larger uniform draws a later token"
    assert tokens.unique().numel() > 5


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_kernels_compile_within_their_registers(arch):
    emitted = emit_sampling(300, dependent_launch=arch != "sm_80")
    compiled = compile_all(emitted.sampling.kernels, emitted.sources, [arch], jobs=1)
    for (name, _), result in compiled.items():
        assert result.binary.shared_bytes <= SHARED_LIMITS[arch] and result.binary.stack_bytes <= 64, name
    assert compiled["sample_scan_greedy_300", arch].binary.num_registers <= 32
    collect = compiled["sample_collect_300", arch].binary
    assert collect.num_registers <= 64 and collect.shared_bytes <= 1024, "nothing changes threads between its load and its stores"


def test_penalties_count_each_occurrence(generator):
    vocab, rows = 7, 24
    params = [SamplingParams(temperature=0, frequency_penalty=0.3, presence_penalty=0.2, repetition_penalty=1.2)] * rows
    histories = [([1, 2], torch.randint(vocab, (12,), generator=generator).tolist()) for _ in params]
    tokens = check(vocab, torch.randn(rows, vocab, generator=generator), params, [0.0] * rows, histories=histories)
    assert tokens.unique().numel() > 2


def test_of_tokens_that_tie_at_top_k_only_so_many_count_for_top_p():
    """Weights 1 and five of 1/2: top_k=3 has mass 2, of which top_p wants 1.2; so the ties are kept, all five of them."""
    logits = torch.tensor([0.0, -0.6931472, -0.6931472, -0.6931472, -0.6931472, -0.6931472]).expand(7, -1).contiguous()
    uniform = [0.0, 0.28, 0.29, 0.43, 0.58, 0.72, 0.99]
    assert check(6, logits, [SamplingParams(top_k=3, top_p=0.6)] * 7, uniform).tolist() == [0, 0, 1, 2, 3, 4, 5]
