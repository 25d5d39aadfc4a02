"""The whole runtime on a hand-written engine, compared with a forward without cache."""

import asyncio
import random
import subprocess
import sys

import pytest
import toy_engine

from tilewright.ir.errors import EngineError, RequestError
from tilewright.ir.manifest import SCHEMA, Limits
from tilewright.runtime.llm import LLM
from tilewright.runtime.runner import Runner
from tilewright.runtime.sampling_params import SamplingParams

GREEDY = SamplingParams(max_tokens=12, temperature=0)
LIMITS = Limits(max_batch_size=7, max_input_len=40, max_output_len=30, max_tokens=23, page_size=4)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    directory = tmp_path_factory.mktemp("engine") / "toy"
    return directory, toy_engine.write_engine(directory, LIMITS, seed=11)


def make_prompts(seed, count):
    dice = random.Random(seed)
    return [[dice.randrange(toy_engine.VOCAB - 1) for _ in range(dice.randint(1, 40))] for _ in range(count)]


def test_greedy_tokens_equal_a_full_forward_whatever_is_preempted(toy):
    directory, weights = toy
    prompts = make_prompts(5, 16)
    for lookahead in (0, 1):
        llm = LLM(directory, max_cache_tokens=84)
        llm.core._lookahead = lookahead
        results = llm.generate(prompts, SamplingParams(max_tokens=25, temperature=0))
        assert llm.core.scheduler.num_preemptions > 0
        for prompt, result in zip(prompts, results):
            assert result.token_ids == toy_engine.greedy(weights, prompt, 25)
            assert result.finish_reason == ("stop" if result.token_ids[-1] == toy_engine.EOS else "length")
        llm.core.scheduler.check()
        assert not llm.has_work and llm.core.scheduler.pool.num_used == 0


class Replay:
    """Runs a decode step again where a GPU would replay its graph: the same tensors are read and written."""

    def __init__(self, runner, bound, plan):
        self.run = lambda: runner._run_decode(bound, plan)
        self.sampled = self.run()

    @property
    def graph(self):
        return self

    def replay(self):
        for mine, new in zip(self.sampled.tensors(), self.run().tensors(), strict=True):
            mine.copy_(new)


@pytest.mark.parametrize("params", [GREEDY, SamplingParams(max_tokens=12, temperature=0.8, top_k=9, top_p=0.9, seed=4, ignore_eos=True)])
def test_steps_padded_to_warm_sizes_give_the_same_tokens(toy, monkeypatch, params):
    directory, _ = toy
    prompts = make_prompts(31, 15)
    expected = LLM(directory).generate(prompts, params)
    captured = []

    def capture(runner, bound, plan):
        captured.append((len(bound.step["ids"]), plan))
        return Replay(runner, bound, plan)

    monkeypatch.setattr(Runner, "_capture", capture)
    llm = LLM(directory, max_cache_tokens=120)
    llm.runner.uses_graphs = True
    llm.warm_up(params)
    assert [size for size, _ in captured] == sorted({1, 2, 4, LIMITS.max_batch_size}, reverse=True)
    for _ in range(2):  # what a step leaves behind in the padding must not reach a later one
        assert [r.token_ids for r in llm.generate(prompts, params)] == [r.token_ids for r in expected]
    assert len(captured) == 4
    llm.core.scheduler.check()


def test_an_engine_is_warmed_up_between_requests_only(toy):
    llm = LLM(toy[0], warm_up=True)
    llm.add_request([1, 2, 3])
    with pytest.raises(RequestError, match="warm_up: 1 requests are under way; call it before"):
        llm.warm_up()


def test_loading_an_engine_imports_neither_transformers_nor_triton(toy):
    code = f"""import sys, tilewright as tw
tw.LLM({str(toy[0])!r}).generate([[1, 2]], tw.SamplingParams(max_tokens=2), use_progress=False)
sys.exit(' '.join({{'transformers', 'tokenizers', 'triton', 'tilewright.passes', 'tilewright.codegen'}} & set(sys.modules)) or 0)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_seed_gives_the_same_tokens_alone_and_in_a_batch(toy):
    directory, _ = toy
    prompts = make_prompts(8, 9)
    params = [
        SamplingParams(max_tokens=19, temperature=0.9, top_p=0.95, top_k=40, seed=i, repetition_penalty=1.2, ignore_eos=True) for i in range(9)
    ]
    together = LLM(directory, max_cache_tokens=100).generate(prompts, params)
    llm = LLM(directory)
    for prompt, param, result in zip(prompts, params, together):
        assert llm.generate(prompt, param)[0].token_ids == result.token_ids
    assert len({tuple(r.token_ids[:4]) for r in together}) > 4


def test_a_stream_adds_up_to_the_result(toy):
    directory, _ = toy
    llm = LLM(directory)
    prompts = make_prompts(3, 4)
    params = SamplingParams(max_tokens=9, temperature=0, logprobs=2)
    whole = llm.generate(prompts, params)
    gathered = {i: [] for i in range(4)}
    for output in llm.generate(prompts, params, stream=True):
        gathered[int(output.request_id.rsplit("-", 1)[1])] += output.new_token_ids
    assert [gathered[i] for i in range(4)] == [result.token_ids for result in whole]


def test_logprobs_are_those_of_the_model(toy):
    directory, weights = toy
    prompt = make_prompts(2, 1)[0]
    result = LLM(directory).generate(prompt, SamplingParams(max_tokens=5, temperature=0.7, seed=3, logprobs=3, ignore_eos=True))[0]
    logprobs = toy_engine.forward(weights, prompt + result.token_ids).log_softmax(-1)[len(prompt) - 1 : -1]
    assert result.logprobs is not None and len(result.logprobs) == 5
    for row, token, entry in zip(logprobs, result.token_ids, result.logprobs):
        assert entry[token].logprob == pytest.approx(float(row[token]), abs=1e-4)
        assert entry[token].rank == int((row > row[token]).sum()) + 1
        assert set(row.topk(3).indices.tolist()) <= set(entry)


def test_async_requests_share_steps_and_can_be_left(toy):
    directory, weights = toy
    llm = LLM(directory)
    prompts = make_prompts(4, 6)

    async def consume(prompt, most):
        tokens = []
        async for output in llm.generate_async(prompt, SamplingParams(max_tokens=12, temperature=0)):
            tokens += output.new_token_ids
            if len(tokens) >= most:
                break
        return tokens

    async def run():
        return await asyncio.gather(*(consume(prompt, 3 if i == 2 else 99) for i, prompt in enumerate(prompts)))

    results = asyncio.run(run())
    for i, (prompt, tokens) in enumerate(zip(prompts, results)):
        expected = toy_engine.greedy(weights, prompt, 12)
        assert tokens == (expected[:3] if i == 2 else expected)


def test_one_engine_serves_one_event_loop_after_another(toy):
    directory, weights = toy
    llm = LLM(directory)
    prompts = make_prompts(4, 3)

    async def consume(prompt):
        return [token async for output in llm.generate_async(prompt, GREEDY) for token in output.new_token_ids]

    async def serve():
        cancelled = asyncio.create_task(consume(prompts[0]))
        results = asyncio.gather(*map(consume, prompts))
        await asyncio.sleep(0)
        cancelled.cancel()
        return await results

    async def leave():
        async for _ in llm.generate_async(prompts[0], GREEDY):
            return

    for _ in range(2):
        assert asyncio.run(serve()) == [toy_engine.greedy(weights, prompt, 12) for prompt in prompts]
        asyncio.run(leave())
        assert llm.core.num_requests == 0 and llm.core.scheduler.pool.num_used == 0
        assert llm.generate(prompts[1], GREEDY)[0].token_ids == toy_engine.greedy(weights, prompts[1], 12)


def test_coroutines_and_plain_calls_do_not_take_each_other_s_outputs(toy):
    directory, weights = toy
    llm = LLM(directory)
    prompt = make_prompts(4, 1)[0]

    async def serve():
        tokens = []
        async for output in llm.generate_async(prompt, GREEDY):
            tokens += output.new_token_ids
            for call in (lambda: llm.generate(prompt), lambda: llm.add_request(prompt), llm.step, lambda: llm.abort("r1")):
                if not output.finished:
                    with pytest.raises(RequestError, match="requests of generate_async are under way"):
                        call()
        return tokens

    assert asyncio.run(serve()) == toy_engine.greedy(weights, prompt, 12)
    llm.add_request(prompt, GREEDY)
    with pytest.raises(RequestError, match="requests of generate or add_request are under way"):
        asyncio.run(serve())


def test_aborted_requests_end_with_what_they_have(toy):
    llm = LLM(toy[0])
    prompt = make_prompts(6, 1)[0]
    request = llm.add_request(prompt, SamplingParams(max_tokens=20, temperature=0, ignore_eos=True))
    outputs = []
    while len(outputs) < 3:
        outputs += llm.step()
    llm.abort(request)
    (last,) = llm.step()
    assert last.finish_reason == "abort" and len(last.token_ids) == 3 and not llm.has_work


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([], SamplingParams(), "empty"),
        ([1, 61], SamplingParams(), "token id 61 is outside the vocabulary of 61"),
        ([1, -1], SamplingParams(), "token id -1 is outside"),
        ([1] * 41, SamplingParams(), "41 tokens, this engine takes max_input_len=40"),
        ([1], SamplingParams(max_tokens=31), "max_tokens=31, this engine generates up to max_output_len=30"),
        ("text", SamplingParams(), "this engine has no tokenizer"),
        ([1], SamplingParams(stop="x"), "no tokenizer"),
        ([1], SamplingParams(logit_bias={61: 1.0}), "logit_bias has token id 61"),
    ],
)
def test_requests_that_cannot_be_served_are_refused_in_a_sentence(toy, prompt, params, message):
    llm = LLM(toy[0])
    with pytest.raises(RequestError, match=message):
        llm.generate([prompt], params)
    assert not llm.has_work


def test_a_request_larger_than_the_cache_is_refused(toy):
    with pytest.raises(RequestError, match="need a cache of 44 tokens, this one holds 40"):
        LLM(toy[0], max_cache_tokens=38).generate([[1] * 30], SamplingParams(max_tokens=15))


def test_damaged_and_foreign_engines_are_refused(tmp_path):
    toy_engine.write_engine(tmp_path / "e", LIMITS)
    with pytest.raises(EngineError, match="no such directory"):
        LLM(tmp_path / "none")
    weights = (tmp_path / "e/weights.safetensors").read_bytes()
    (tmp_path / "e/weights.safetensors").write_bytes(weights[:-8])
    with pytest.raises(EngineError, match="changed or cut short"):
        LLM(tmp_path / "e")
    (tmp_path / "e/weights.safetensors").write_bytes(weights)
    with pytest.raises(EngineError, match="made for cpu, asked to run on cuda"):
        LLM(tmp_path / "e", device="cuda")
    toy_engine.edit_manifest(tmp_path / "e", schema=99)
    with pytest.raises(EngineError, match=f"schema 99, this version reads schema {SCHEMA}"):
        LLM(tmp_path / "e")


def test_a_gpu_engine_says_what_to_do_without_a_gpu(tmp_path, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    toy_engine.write_engine(tmp_path / "e", LIMITS)
    toy_engine.edit_manifest(tmp_path / "e", target="sm_90")
    with pytest.raises(EngineError, match=r"made for sm_90, this machine has no NVIDIA GPU.*--target cpu.*TRITON_INTERPRET=1"):
        LLM(tmp_path / "e")
