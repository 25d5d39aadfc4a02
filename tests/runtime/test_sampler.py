"""The sampler against transformers' logits processors, and its random stream."""

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tilewright.ir.errors import RequestError
from tilewright.runtime.random_stream import uniforms
from tilewright.runtime.sampler import SamplePlan, Sampler, SampleRows, choose_greedy, draw, filter_threshold, param_row, pick
from tilewright.runtime.sampling_params import SamplingParams

VOCAB = 37


def make_rows(params, uniform, slots=None, num_outputs=None):
    count = len(params)
    return SampleRows(
        torch.arange(count) if slots is None else torch.tensor(slots),
        torch.tensor(num_outputs or [0] * count, dtype=torch.int32),
        torch.tensor([param_row(p) for p in params]),
        torch.as_tensor(uniform, dtype=torch.float64),
    )


def measure(logits, params, points=4000, **tables):
    """f64[vocab]: the share of `points` even steps through [0, 1) that sample each token from logits: f32[vocab]."""
    sampler = Sampler(len(logits), 1, torch.device("cpu"))
    prompt, output = tables.get("prompt", [0]), tables.get("output", [])
    plan = SamplePlan.of(params)
    shares = torch.zeros(len(logits), dtype=torch.float64)
    sampler.assign(0, params, prompt, output, tables.get("stop_ids", frozenset()))
    rows = make_rows([params] * points, (torch.arange(points) + 0.5) / points, [0] * points, [len(output)] * points)
    tokens = sampler.sample(logits.expand(points, -1), rows, plan).tokens.long()
    return shares.scatter_add_(0, tokens, torch.full((points,), 1 / points, dtype=torch.float64))


def expected(logits, processors, tokens=(0,)):
    ids = torch.tensor([list(tokens)])
    return LogitsProcessorList(processors)(ids, logits[None].clone())[0].double().softmax(-1)


@pytest.mark.parametrize(
    ("params", "processors"),
    [
        (SamplingParams(), []),
        (SamplingParams(temperature=0.6), [TemperatureLogitsWarper(0.6)]),
        (SamplingParams(temperature=1.7), [TemperatureLogitsWarper(1.7)]),
        (SamplingParams(top_k=5), [TopKLogitsWarper(5)]),
        (SamplingParams(top_k=1), [TopKLogitsWarper(1)]),
        (SamplingParams(top_k=99), []),
        (SamplingParams(top_k=-1), []),
        (SamplingParams(top_p=0.6), [TopPLogitsWarper(0.6)]),
        (SamplingParams(top_p=0.01), [TopPLogitsWarper(0.01)]),
        (SamplingParams(min_p=0.2), [MinPLogitsWarper(0.2)]),
        (SamplingParams(temperature=0.8, top_k=9, top_p=0.7), [TemperatureLogitsWarper(0.8), TopKLogitsWarper(9), TopPLogitsWarper(0.7)]),
        (SamplingParams(temperature=1.3, min_p=0.1, top_p=0.8), [TemperatureLogitsWarper(1.3), MinPLogitsWarper(0.1), TopPLogitsWarper(0.8)]),
        (SamplingParams(logit_bias={3: 2.5, 11: -4.0}), [SequenceBiasLogitsProcessor({(3,): 2.5, (11,): -4.0})]),
    ],
)
def test_samples_have_the_distribution_that_transformers_gives(params, processors, generator):
    for _ in range(3):
        logits = torch.randn(VOCAB, generator=generator) * 2
        torch.testing.assert_close(measure(logits, params), expected(logits, processors), atol=6e-4, rtol=0)


def test_repetition_penalty_is_that_of_transformers(generator):
    logits = torch.randn(VOCAB, generator=generator) * 2
    params = SamplingParams(repetition_penalty=1.4)
    shares = measure(logits, params, prompt=[1, 4, 4], output=[9, 30])
    wanted = expected(logits, [RepetitionPenaltyLogitsProcessor(1.4)], [1, 4, 4, 9, 30])
    torch.testing.assert_close(shares, wanted, atol=6e-4, rtol=0)


def test_presence_and_frequency_penalties_count_the_output_alone(generator):
    logits = torch.randn(VOCAB, generator=generator)
    shares = measure(logits, SamplingParams(presence_penalty=0.5, frequency_penalty=0.3), prompt=[1, 2], output=[5, 5, 6])
    wanted = logits.clone()
    wanted[5] -= 0.5 + 2 * 0.3
    wanted[6] -= 0.5 + 0.3
    torch.testing.assert_close(shares, wanted.double().softmax(-1), atol=6e-4, rtol=0)


def test_penalties_follow_the_tokens_sampled_since(generator):
    logits = torch.zeros(1, VOCAB)
    logits[0, :6] = torch.tensor([5.0, 4.9, 4.8, 4.7, 4.6, 4.5])
    params = SamplingParams(temperature=0, frequency_penalty=1.0)
    sampler = Sampler(VOCAB, 2, torch.device("cpu"))
    sampler.assign(1, params, [0], [], frozenset())
    rows = make_rows([params], [0.0], slots=[1])
    tokens = [int(sampler.sample(logits, rows, SamplePlan.of(params)).tokens) for _ in range(8)]
    assert tokens == [0, 1, 2, 3, 4, 5, 0, 1]
    assert int(sampler.last_token[1]) == 1


@pytest.mark.parametrize("num_outputs", [0, 2, 3])
def test_stop_ids_wait_for_min_tokens(num_outputs, generator):
    logits = torch.randn(VOCAB, generator=generator)
    logits[8] = 9.0
    params = SamplingParams(min_tokens=3)
    shares = measure(logits, params, output=[1] * num_outputs, stop_ids=frozenset([8, 20]))
    processors = [MinLengthLogitsProcessor(3, [8, 20])]
    wanted = expected(logits, processors, [1] * num_outputs) if num_outputs else logits.index_fill(0, torch.tensor([8, 20]), -torch.inf)
    torch.testing.assert_close(shares, wanted if num_outputs else wanted.double().softmax(-1), atol=6e-4, rtol=0)


def test_a_row_is_sampled_alike_whatever_stands_beside_it(generator):
    many = [
        SamplingParams(temperature=0),
        SamplingParams(temperature=0.7, top_p=0.9),
        SamplingParams(top_k=4, repetition_penalty=1.3),
        SamplingParams(min_p=0.1, presence_penalty=0.4, logit_bias={2: 1.0}),
        SamplingParams(min_tokens=2, logprobs=3),
    ]
    logits = torch.randn(len(many), VOCAB, generator=generator)
    uniform = torch.rand(len(many), generator=generator, dtype=torch.float64).tolist()
    sampler = Sampler(VOCAB, len(many), torch.device("cpu"))
    plans = [SamplePlan.of(p) for p in many]
    union = SamplePlan.from_bits(int(np.bitwise_or.reduce([p.bits for p in plans])))
    for slot, params in enumerate(many):
        sampler.assign(slot, params, [1, 2], [3], frozenset([5]))
    together = sampler.sample(logits, make_rows(many, uniform), union).tokens.tolist()
    for i, params in enumerate(many):
        alone = Sampler(VOCAB, 1, torch.device("cpu"))
        alone.assign(0, params, [1, 2], [3], frozenset([5]))
        assert int(alone.sample(logits[i : i + 1], make_rows([params], uniform[i : i + 1]), plans[i]).tokens) == together[i]


def test_logits_are_left_as_they_are(generator):
    logits = torch.randn(1, VOCAB, generator=generator)
    params = SamplingParams(top_k=4, repetition_penalty=1.3, logit_bias={2: 1.0}, min_tokens=2)
    sampler, before = Sampler(VOCAB, 1, torch.device("cpu")), logits.clone()
    sampler.assign(0, params, [1], [], frozenset([5]))
    sampler.sample(logits, make_rows([params], [0.5]), SamplePlan.of(params))
    assert torch.equal(logits, before)


def test_a_token_without_probability_is_never_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    for uniform in (0.0, 0.4999, 0.5, 1 - 2**-53):
        token = draw(logits, make_rows([SamplingParams()], [uniform]), filters=False, sorts=False)
        assert int(token) == (1 if uniform < 0.5 else 3)


@pytest.mark.parametrize("vocab", [1, 2, 97, 5000, 5120])
def test_vocabularies_of_any_size_are_picked_from_like_a_plain_search(vocab, generator):
    weights = torch.rand(64, vocab, generator=generator) * (torch.rand(64, vocab, generator=generator) < 0.5)
    weights[:, vocab // 2] += 0.1
    uniform = torch.rand(64, generator=generator, dtype=torch.float64)
    sums = weights.double().cumsum(-1)
    assert torch.equal(pick(weights, uniform), (sums <= uniform[:, None] * sums[:, -1:]).sum(-1))
    assert torch.equal(choose_greedy(weights), weights.argmax(-1))


@pytest.mark.parametrize(("top_k", "top_p"), [(1, 1.0), (700, 1.0), (700, 0.8), (40, 0.3), (0, 0.9), (2000, 0.9), (0, 1.0), (9000, 1.0)])
def test_large_vocabularies_are_filtered_as_by_transformers(top_k, top_p, generator):
    logits = torch.randn(3, 5120, generator=generator) * 3
    params = SamplingParams(top_k=top_k, top_p=top_p)
    k, p = torch.tensor(param_row(params))[None, 1:3].expand(3, -1).split(1, dim=-1)
    weights = (logits - logits.amax(-1, keepdim=True)).exp()
    processors = ([TopKLogitsWarper(top_k)] if top_k else []) + ([TopPLogitsWarper(top_p)] if top_p < 1 else [])
    wanted = LogitsProcessorList(processors)(torch.zeros(3, 1, dtype=torch.long), logits.clone()).isfinite()
    assert SamplePlan.of(params).sorts == (top_k > 1024 or (top_k == 0 and top_p < 1))
    num_candidates = 5120 if SamplePlan.of(params).sorts else 1024
    assert torch.equal(weights >= filter_threshold(weights, k, p, num_candidates), wanted)


def test_uniforms_are_even_and_depend_on_seed_and_position_alone():
    seeds = np.arange(2000, dtype=np.uint64)
    by_position = np.stack([uniforms(seeds, np.full(2000, p)) for p in range(20)])
    assert by_position.min() >= 0 and by_position.max() < 1
    counts = np.histogram(by_position, bins=50, range=(0, 1))[0]
    assert ((counts - 800) ** 2 / 800).sum() < 90  # chi-squared, 49 degrees of freedom: one in 3,000 is over 90
    assert abs(np.corrcoef(by_position[:-1].ravel(), by_position[1:].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(by_position[:, :-1].ravel(), by_position[:, 1:].ravel())[0, 1]) < 0.02
    assert uniforms(seeds[7:8], np.array([3]))[0] == by_position[3, 7]


def mix(x):
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


@pytest.mark.parametrize(("seed", "position"), [(0, 0), (1, 17), (2**63 + 5, 100_000)])
def test_the_stream_is_that_of_the_formula_in_whole_numbers(seed, position):
    """Seeds that users keep must go on giving the same text."""
    step = 0x9E3779B97F4A7C15
    wanted = (mix((mix((seed + step) % 2**64) + (position + 1) * step) % 2**64) >> 11) / 2**53
    assert uniforms(np.array([seed], np.uint64), np.array([position]))[0] == wanted


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": float("nan")}, r"temperature=nan; pass a number from 0 to 1e"),
        ({"temperature": -0.5}, "temperature=-0.5"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.01}, "top_p=1.01"),
        ({"top_k": -2}, "top_k=-2"),
        ({"top_k": 2.0}, "top_k=2.0"),
        ({"min_p": 2}, "min_p=2"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"min_tokens": 20}, "pass at most max_tokens=16"),
        ({"repetition_penalty": 0}, "repetition_penalty=0"),
        ({"presence_penalty": 3}, "presence_penalty=3"),
        ({"frequency_penalty": float("inf")}, "frequency_penalty=inf"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"stop": [""]}, "at least one character"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"logprobs": 21}, "from 0 to 20"),
        ({"logit_bias": {-1: 0.5}}, "logit_bias"),
        ({"logit_bias": {1: float("nan")}}, "logit_bias"),
    ],
)
def test_parameters_that_mean_nothing_are_refused(fields, message):
    with pytest.raises(RequestError, match=message):
        SamplingParams(**fields)
