"""Every architecture from checkpoint to tokens with no GPU, as torch code and as Triton kernels on the interpreter: held to transformers, to itself
alone, and to the reference interpreter."""

import filecmp

import pytest
import torch
import zoo
from serving import LIMITS, NEW_TOKENS, SMALL_POOL, checkpoint_of, engine_of, model_of, recorded_logits, relative_error, serve

import tilewright as tw
from tilewright.ir.interpreter import interpret
from tilewright.ir.reference import Batch

TARGETS = ("cpu", "sm_90")  # an engine for a GPU runs on the interpreter when it is asked to run on the CPU
INTERPRETED_WHOLE = ("llama2", "gptj", "falcon_7b")  # the interpreter is slow: others get half the prompts, and every fourth is run alone too

every_architecture = pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in zoo.ARCHITECTURES])
both_targets = pytest.mark.parametrize("target", TARGETS)


@both_targets
@every_architecture
def test_logits_agree_with_transformers(name, target):
    llm = tw.LLM(engine_of(name, target).path, device="cpu")
    for prompt in zoo.ragged_prompts(n=3, seed=1):
        tokens, logits = recorded_logits(llm, prompt, 4)
        expected = zoo.reference_logits(model_of(name), prompt + tokens[:-1])[len(prompt) - 1 :]
        assert relative_error(logits, expected) < 1e-4


@both_targets
@every_architecture
def test_prompts_served_together_give_what_each_gives_alone_and_what_transformers_gives(name, target):
    is_whole = target == "cpu" or name in INTERPRETED_WHOLE
    prompts, engine = zoo.ragged_prompts(n=16 if is_whole else 8), engine_of(name, target)
    together, num_preemptions = serve(engine, prompts, device="cpu", max_cache_tokens=SMALL_POOL)
    assert num_preemptions > 0
    llm = tw.LLM(engine.path, device="cpu")
    step = 1 if is_whole else 4
    assert together[::step] == [recorded_logits(llm, prompt, NEW_TOKENS)[0] for prompt in prompts[::step]]
    assert together == [zoo.reference_greedy(model_of(name), prompt, NEW_TOKENS) for prompt in prompts]


@both_targets
@every_architecture
def test_int8_engine_agrees_with_the_interpreter_on_the_same_quantized_weights(name, target):
    optimized = tw.optimize(tw.trace(checkpoint_of(name)), quantize="int8")
    assert any(value.type.dtype == "i8" for value in optimized.graph.values())
    llm = tw.LLM(engine_of(name, target, quantize="int8").path, device="cpu")
    for prompt in zoo.ragged_prompts(n=3, seed=2):
        _, logits = recorded_logits(llm, prompt, 1)
        inputs = {"ids": prompt, "positions": list(range(len(prompt))), "rows": [len(prompt) - 1]}
        tensors = {key: torch.tensor(value, dtype=torch.int32) for key, value in inputs.items()}
        expected = interpret(optimized.graph, tensors, optimized.weights, batch=Batch.of_lengths([len(prompt)]))[0]
        assert relative_error(logits, expected) < 1e-4


@both_targets
@every_architecture
def test_compiling_twice_gives_the_same_bytes(name, target, tmp_path, request):
    if target == "cpu":  # the graph that is traced knows no target
        request.getfixturevalue("traced_anew")
    first = engine_of(name, target, quantize="int8").path
    second = tw.compile(checkpoint_of(name), tmp_path / "again", target=target, quantize="int8", **LIMITS).path
    files = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(second) for p in second.rglob("*") if p.is_file())
    _, differing, missing = filecmp.cmpfiles(first, second, files, shallow=False)
    assert differing == missing == []
