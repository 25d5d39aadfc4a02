"""A deterministic engine gives a request the same tokens, to the bit of their probabilities, alone and with others, preempted or not."""

import pytest
import torch
import zoo
from serving import LIMITS, NEW_TOKENS, SMALL_POOL, checkpoint_of

import tilewright as tw
from tilewright.ir.errors import TilewrightError

HALF = torch.bfloat16


def generate(llm, prompts, num_tokens):
    """Tokens and log-probabilities of each prompt."""
    params = tw.SamplingParams(max_tokens=num_tokens, temperature=0.0, logprobs=0, ignore_eos=True)
    outputs = llm.generate(prompts, params, use_progress=False)
    return [[(token, step[token].logprob) for token, step in zip(o.token_ids, o.logprobs)] for o in outputs]


def build(tmp_path, name, target, quantize=None):
    engine = tw.compile(checkpoint_of(name, HALF), tmp_path / "engine", target=target, quantize=quantize, deterministic=True, **LIMITS)
    assert {program.kind for program in engine.manifest.programs} == {"ragged"}
    return engine


def test_on_the_interpreter(tmp_path):
    engine, prompts = build(tmp_path, "llama3", "sm_90"), zoo.ragged_prompts(n=9)
    llm = tw.LLM(engine.path, device="cpu", max_cache_tokens=SMALL_POOL)
    together = generate(llm, prompts, NEW_TOKENS)
    assert llm.core.scheduler.num_preemptions > 0
    alone = tw.LLM(engine.path, device="cpu")
    assert together[1::3] == [generate(alone, [prompt], NEW_TOKENS)[0] for prompt in prompts[1::3]]


@pytest.mark.gpu
@pytest.mark.parametrize("quantize", [None, "int8"])
@pytest.mark.parametrize("name", ["llama3", "gemma2", "falcon_alibi"])
def test_on_a_gpu(tmp_path, name, quantize):
    engine, prompts = build(tmp_path, name, "cuda", quantize), zoo.ragged_prompts(n=16, seed=4)
    llm = tw.LLM(engine.path, max_cache_tokens=SMALL_POOL)
    together = generate(llm, prompts, NEW_TOKENS)
    assert llm.core.scheduler.num_preemptions > 0
    alone = tw.LLM(engine.path, max_cache_tokens=512)
    assert together == [generate(alone, [prompt], NEW_TOKENS)[0] for prompt in prompts]


def test_a_cpu_target_cannot_promise_it(tmp_path):
    with pytest.raises(TilewrightError, match="depends on the number of tokens"):
        tw.compile(checkpoint_of("llama3"), tmp_path / "engine", target="cpu", deterministic=True, **LIMITS)
    assert not (tmp_path / "engine").exists()
