"""Every architecture from checkpoint to tokens on the CPU target, held to transformers, to itself alone, and to the reference interpreter."""

import filecmp
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
import zoo

import tilewright as tw
from tilewright.ir.interpreter import interpret
from tilewright.ir.reference import Batch

NEW_TOKENS = 10
LIMITS = {"max_batch_size": 6, "max_input_len": 48, "max_output_len": 16, "max_tokens": 24, "page_size": 8}  # prompts of up to 40: chunked prefill
SMALL_POOL = 88  # tokens; six sequences of up to 50 do not fit, so some are preempted
_FOLDER = TemporaryDirectory(prefix="tilewright-tests-")

every_architecture = pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in zoo.ARCHITECTURES])


@cache
def model_of(name):
    return zoo.build(name)


@cache
def checkpoint_of(name):
    return zoo.save(name, Path(_FOLDER.name) / name)


@cache
def engine_of(name, quantize=None):
    return tw.compile(checkpoint_of(name), Path(_FOLDER.name) / f"{name}-{quantize}", target="cpu", quantize=quantize, **LIMITS)


def greedy(**changes):
    return tw.SamplingParams(max_tokens=NEW_TOKENS, temperature=0.0, **changes)


def recorded_logits(llm, prompt, num_tokens):
    """Tokens that the engine generates for one prompt, and the logits f32[num_tokens, vocab] that it chose them from."""
    rows = []
    sample = llm.runner.sampler.sample

    def record(logits, *others):
        rows.append(logits.float().clone())
        return sample(logits, *others)

    llm.runner.sampler.sample = record
    (output,) = llm.generate([prompt], tw.SamplingParams(max_tokens=num_tokens, temperature=0.0))
    llm.runner.sampler.sample = sample
    return output.token_ids, torch.cat(rows[-num_tokens:])


def relative_error(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@every_architecture
def test_logits_agree_with_transformers(name):
    llm = tw.LLM(engine_of(name).path)
    for prompt in zoo.ragged_prompts(n=3, seed=1):
        tokens, logits = recorded_logits(llm, prompt, 4)
        expected = zoo.reference_logits(model_of(name), prompt + tokens[:-1])[len(prompt) - 1 :]
        assert relative_error(logits, expected) < 1e-4


@every_architecture
def test_prompts_served_together_give_what_each_gives_alone_and_what_transformers_gives(name):
    prompts = zoo.ragged_prompts()
    crowded = tw.LLM(engine_of(name).path, max_cache_tokens=SMALL_POOL)
    together = [output.token_ids for output in crowded.generate(prompts, greedy())]
    assert crowded.core.scheduler.num_preemptions > 0
    roomy = tw.LLM(engine_of(name).path)
    alone = [roomy.generate([prompt], greedy())[0].token_ids for prompt in prompts]
    assert together == alone
    assert together == [zoo.reference_greedy(model_of(name), prompt, NEW_TOKENS) for prompt in prompts]


@every_architecture
def test_int8_engine_agrees_with_the_interpreter_on_the_same_quantized_weights(name):
    optimized = tw.optimize(tw.trace(checkpoint_of(name)), quantize="int8")
    assert any(value.type.dtype == "i8" for value in optimized.graph.values())
    llm = tw.LLM(engine_of(name, "int8").path)
    for prompt in zoo.ragged_prompts(n=3, seed=2):
        _, logits = recorded_logits(llm, prompt, 1)
        inputs = {"ids": prompt, "positions": list(range(len(prompt))), "rows": [len(prompt) - 1]}
        tensors = {key: torch.tensor(value, dtype=torch.int32) for key, value in inputs.items()}
        expected = interpret(optimized.graph, tensors, optimized.weights, batch=Batch.of_lengths([len(prompt)]))[0]
        assert relative_error(logits, expected) < 1e-4


@every_architecture
def test_compiling_twice_gives_the_same_bytes(name, tmp_path):
    first = engine_of(name, "int8").path
    second = tw.compile(checkpoint_of(name), tmp_path / "again", target="cpu", quantize="int8", **LIMITS).path
    files = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(second) for p in second.rglob("*") if p.is_file())
    _, differing, missing = filecmp.cmpfiles(first, second, files, shallow=False)
    assert differing == missing == []
