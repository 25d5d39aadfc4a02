"""Every architecture on a GPU: exact in f32, and in half precision as near to f32 as transformers itself is; then models of real shapes."""

import gc
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
import zoo
from serving import NEW_TOKENS, SMALL_POOL, checkpoint_of, engine_of, model_of, recorded_logits, relative_error, serve
from transformers import AutoModelForCausalLM

import tilewright as tw
from tilewright.ir.interpreter import interpret
from tilewright.ir.reference import Batch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from random_checkpoint import write_checkpoint

pytestmark = pytest.mark.gpu

HALVES = {"bf16": torch.bfloat16, "f16": torch.float16}
ALLOWED = 1.5  # times the error of transformers in the same dtype
ROUNDING = {"bf16": 3e-2, "f16": 4e-3}  # relative difference of two roundings of the same computation

every_architecture = pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in zoo.ARCHITECTURES])
both_halves = pytest.mark.parametrize("dtype", HALVES)


def load(engine, max_cache_tokens=512):
    """Not all of the memory: other tests run on the same GPU."""
    return tw.LLM(engine.path, max_cache_tokens=max_cache_tokens)


@every_architecture
def test_f32_serves_what_transformers_gives_under_preemption_and_graph_replay(name):
    prompts, engine = zoo.ragged_prompts(), engine_of(name, "cuda")
    together, num_preemptions = serve(engine, prompts, max_cache_tokens=SMALL_POOL)
    assert num_preemptions > 0
    assert together == [zoo.reference_greedy(model_of(name), prompt, NEW_TOKENS) for prompt in prompts]
    tokens, logits = recorded_logits(load(engine), prompts[1], 4)
    expected = zoo.reference_logits(model_of(name), prompts[1] + tokens[:-1])[-4:]
    assert relative_error(logits, expected) < 1e-4


@both_halves
@every_architecture
def test_half_precision_is_as_near_to_f32_as_transformers_is(name, dtype):
    engine, prompts = engine_of(name, "cuda", HALVES[dtype]), zoo.ragged_prompts(seed=3)
    together, num_preemptions = serve(engine, prompts, max_cache_tokens=SMALL_POOL)
    assert num_preemptions > 0 and all(len(tokens) == NEW_TOKENS for tokens in together)
    ours, theirs = errors(load(engine), zoo.build(name, HALVES[dtype]).cuda(), prompts, NEW_TOKENS)
    assert ours <= ALLOWED * theirs, f"ours {ours:.2e}, transformers {theirs:.2e}"


@both_halves
@every_architecture
def test_int8_in_half_precision_agrees_with_the_interpreter_on_the_same_quantized_weights(name, dtype):
    optimized = tw.optimize(tw.trace(checkpoint_of(name, HALVES[dtype])), quantize="int8")
    llm, prompts = load(engine_of(name, "cuda", HALVES[dtype], "int8")), zoo.ragged_prompts(n=4, seed=2)
    found = torch.cat([recorded_logits(llm, prompt, 1)[1] for prompt in prompts])
    lengths = [len(prompt) for prompt in prompts]
    batch = Batch.of_lengths(lengths)
    inputs = {
        "ids": torch.cat([torch.tensor(prompt, dtype=torch.int32) for prompt in prompts]),
        "positions": torch.cat([torch.arange(length, dtype=torch.int32) for length in lengths]),
        "rows": torch.tensor(batch.starts[1:], dtype=torch.int32) - 1,
    }
    expected = interpret(optimized.graph, inputs, optimized.weights, batch=batch)[0].float()
    assert difference(found, expected) < ROUNDING[dtype]


@pytest.mark.xdist_group("shapes")
@pytest.mark.parametrize("shape", ["gpt-j-6b", "llama-2-7b", "llama-3.2-1b", "llama-3-8b"])
def test_a_model_of_a_real_shape_builds_loads_and_generates(shape):
    with TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(shape, Path(folder) / "model")
        limits = {"max_batch_size": 4, "max_input_len": 512, "max_output_len": 64}
        engine = tw.compile(checkpoint, Path(folder) / "engine", dtype="bfloat16", target="cuda", **limits)
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16).cuda().eval()
        prompts = [torch.randint(0, model.config.vocab_size, (length,)).tolist() for length in (300, 1, 129)]
        llm = load(engine, 4096)
        outputs = llm.generate(prompts, tw.SamplingParams(max_tokens=16, temperature=0.0, ignore_eos=True), use_progress=False)
        assert [len(output.token_ids) for output in outputs] == [16, 16, 16]
        ours, theirs = errors(llm, model, prompts, 4)
        assert ours <= ALLOWED * theirs, f"ours {ours:.2e}, transformers {theirs:.2e}"
    del llm, model
    gc.collect()
    torch.cuda.empty_cache()


def errors(llm, model, prompts, num_tokens):
    """Relative error of the logits against f32, over all prompts: of the engine, and of transformers. The model is f32 afterwards."""
    runs = [recorded_logits(llm, prompt, num_tokens) for prompt in prompts]
    texts = [prompt + tokens[:-1] for prompt, (tokens, _) in zip(prompts, runs)]
    ours = torch.cat([logits for _, logits in runs])
    theirs = torch.cat([last_logits(model, text, num_tokens) for text in texts])
    model.float()
    expected = torch.cat([last_logits(model, text, num_tokens) for text in texts])
    return difference(ours, expected), difference(theirs, expected)


def difference(found, expected):
    """Frobenius, relative."""
    return float((found - expected).norm() / expected.norm())


@torch.no_grad()
def last_logits(model, ids, count):
    tokens = torch.tensor([ids], device=model.device)
    positions = torch.arange(len(ids), device=model.device)[None]
    return model(input_ids=tokens, position_ids=positions, use_cache=False).logits[0, -count:].float().cpu()
