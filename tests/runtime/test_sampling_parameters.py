"""Every field of SamplingParams through a whole engine, against a forward of the whole sequence and plain Python for each token."""

import dataclasses

import numpy as np
import pytest
import toy_engine

from tilewright.ir.manifest import Limits
from tilewright.runtime.llm import LLM
from tilewright.runtime.random_stream import uniforms
from tilewright.runtime.sampling_params import SamplingParams

LIMITS = Limits(max_batch_size=4, max_input_len=16, max_output_len=24, max_tokens=16, page_size=4)
PROMPT = [5, 9, 2, 9, 31, 7]
PLAIN = SamplingParams(max_tokens=20, temperature=8.0, seed=3)  # the toy's logits are steep: cooler than this, one token takes all
GREEDY = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sampling") / "toy"
    weights = toy_engine.write_engine(directory, LIMITS, seed=21)
    return LLM(directory), weights


def sample_slowly(weights, prompt, params):
    """The tokens and why they ended."""
    output = []
    stops = {*(() if params.ignore_eos else (toy_engine.EOS,)), *(params.stop_token_ids or ())}
    while True:
        logits = dict(enumerate(toy_engine.forward(weights, prompt + output)[-1].double().tolist()))
        output.append(choose(penalize(logits, prompt, output, stops, params), len(prompt) + len(output), params))
        if output[-1] in stops and len(output) >= params.min_tokens:
            return output, "stop"
        if len(output) == params.max_tokens:
            return output, "length"


def penalize(logits, prompt, output, stops, params):
    for token, bias in params.logit_bias.items():
        logits[token] += bias
    for token in stops if len(output) < params.min_tokens else ():
        logits[token] = -np.inf
    for token in {*prompt, *output}:
        logits[token] = logits[token] / params.repetition_penalty if logits[token] > 0 else logits[token] * params.repetition_penalty
    for token in set(output):
        logits[token] -= params.presence_penalty + params.frequency_penalty * output.count(token)
    return logits


def choose(logits, position, params):
    most = max(logits.values())
    if params.temperature == 0:
        return next(token for token, logit in logits.items() if logit == most)
    shares = {token: np.exp((logit - most) / params.temperature) for token, logit in logits.items()}
    kept = sorted((token for token in shares if shares[token] >= params.min_p), key=lambda token: -shares[token])
    kept = kept[: params.top_k] if params.top_k > 0 else kept
    total, held, nucleus = sum(shares[token] for token in kept), 0.0, []
    for token in kept:
        if held >= params.top_p * total:
            break
        nucleus.append(token)
        held += shares[token]
    (uniform,) = uniforms(np.array([params.seed], np.uint64), np.array([position]))
    running = 0.0
    for token in sorted(nucleus):
        running += shares[token]
        if running > uniform * held:
            return token
    return max(nucleus)


@pytest.mark.parametrize(
    ("base", "changes"),
    [
        (GREEDY, {"max_tokens": 7}),
        (GREEDY, {"repetition_penalty": 1.6}),
        (GREEDY, {"presence_penalty": 2.0}),
        (GREEDY, {"frequency_penalty": 1.5}),
        (GREEDY, {"logit_bias": {4: 30.0, 17: -100.0}}),
        (PLAIN, {"temperature": 3.0}),
        (PLAIN, {"top_p": 0.5}),
        (PLAIN, {"top_k": 3}),
        (PLAIN, {"min_p": 0.3}),
        (PLAIN, {"seed": 4}),
        (PLAIN, {"top_k": 20, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.5}),
    ],
)
def test_each_field_acts_as_plain_python_says(toy, base, changes):
    llm, weights = toy
    params = dataclasses.replace(base, **changes)
    (result,) = llm.generate(PROMPT, params)
    assert (result.token_ids, result.finish_reason) == sample_slowly(weights, PROMPT, params)
    assert result.token_ids != llm.generate(PROMPT, base)[0].token_ids


@pytest.mark.parametrize("fields", [{}, {"min_tokens": 9}, {"ignore_eos": True}, {"stop_token_ids": [4]}, {"stop_token_ids": [4], "min_tokens": 9}])
def test_each_way_to_end_is_that_of_plain_python(toy, fields):
    llm, weights = toy
    often = {toy_engine.EOS: 20.0, 4: 20.0}
    for seed in range(6):
        params = dataclasses.replace(PLAIN, seed=seed, logit_bias=often, **fields)
        (result,) = llm.generate(PROMPT, params)
        assert (result.token_ids, result.finish_reason) == sample_slowly(weights, PROMPT, params)
