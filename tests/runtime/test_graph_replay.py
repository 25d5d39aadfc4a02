"""CUDA graphs, lookahead and device sampling on a GPU, with torch operations where an engine has compiled kernels."""

import dataclasses
import math

import pytest
import test_llm
import torch
import toy_engine

from tilewright.ir.manifest import Manifest
from tilewright.runtime import kv_cache
from tilewright.runtime.backend import FixedLaunch
from tilewright.runtime.engine import Engine
from tilewright.runtime.llm import LLM
from tilewright.runtime.sampling_params import SamplingParams

pytestmark = pytest.mark.gpu


def project(x, weight, out):
    torch.mm(x, weight.T, out=out)


def embed(ids, positions, table, places, x):
    torch.add(table.index_select(0, ids), places.index_select(0, positions), out=x)


def write(qkv, slots, k_cache, v_cache):
    """Padding goes to the last cell of the last page, which belongs to no sequence."""
    heads, size, dim = k_cache.shape[1:]
    _, k, v = qkv.view(len(qkv), 3, heads, dim).unbind(1)
    places = torch.where(slots < 0, k_cache.shape[0] * size - 1, slots).long()
    k_cache[places // size, :, places % size] = k
    v_cache[places // size, :, places % size] = v


def attend(qkv, query_start, context_len, block_table, k_cache, v_cache, out):
    """Each row finds its sequence by query_start, on the device."""
    heads, _, dim = k_cache.shape[1:]
    rows = torch.arange(len(qkv), device=qkv.device)
    sequence = (torch.searchsorted(query_start, rows.int(), right=True) - 1).clamp_max(len(context_len) - 1)
    last = context_len[sequence] - (query_start[sequence + 1] - rows)
    pages = block_table[sequence].long()
    keys = k_cache[pages].transpose(2, 3).reshape(len(rows), -1, heads, dim)
    values = v_cache[pages].transpose(2, 3).reshape(len(rows), -1, heads, dim)
    scores = torch.einsum("thd,tkhd->thk", qkv.view(len(qkv), 3, heads, dim)[:, 0], keys) / math.sqrt(dim)
    seen = torch.arange(keys.shape[1], device=qkv.device) <= last[:, None]
    weights = scores.masked_fill(~seen[:, None], -1e30).softmax(-1)
    out.copy_(torch.einsum("thk,tkhd->thd", weights, values).reshape(len(rows), -1))


def head(x, context, rows, weight, logits):
    torch.mm((x + context).index_select(0, rows), weight.T, out=logits)


class DeviceKernel:
    def __init__(self, function):
        self.function = function

    def bind(self, grid, args):
        return FixedLaunch(lambda stream: self.function(*args))


class DeviceBackend:
    def __init__(self):
        self.device = torch.device("cuda", 0)
        self.uses_graphs = True

    def load(self, kernel, directory):
        return DeviceKernel(globals()[kernel.entry])


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    directory = tmp_path_factory.mktemp("engine") / "toy"
    weights = toy_engine.write_engine(directory, test_llm.LIMITS, seed=11)
    backend = DeviceBackend()
    manifest = Manifest.read(directory)
    kernels = {kernel.name: backend.load(kernel, directory) for kernel in manifest.kernels}
    engine = Engine(directory, manifest, backend, {name: w.cuda() for name, w in weights.items()}, kernels)
    return engine, weights


@pytest.fixture(autouse=True)
def exact():
    torch.backends.cuda.matmul.allow_tf32 = False


def make_llm(monkeypatch, engine, max_cache_tokens=None):
    allocate = kv_cache.allocate
    monkeypatch.setattr(kv_cache, "allocate", lambda cache, limits, num_pages, device: allocate(cache, limits, num_pages + 1, device))
    monkeypatch.setattr(Engine, "from_files", staticmethod(lambda *args, **kwargs: engine))
    return LLM(engine.directory, max_cache_tokens=max_cache_tokens)


def test_graphs_give_the_tokens_of_a_full_forward(toy, monkeypatch):
    engine, weights = toy
    prompts = test_llm.make_prompts(21, 40)
    llm = make_llm(monkeypatch, engine, 88)
    for _ in range(2):
        results = llm.generate(prompts, SamplingParams(max_tokens=25, temperature=0))
        for prompt, result in zip(prompts, results):
            assert result.token_ids == toy_engine.greedy(weights, prompt, 25)
    assert llm.core.scheduler.num_preemptions > 0 and len(llm.runner._graphs) >= 3
    llm.core.scheduler.check()


def test_every_sampling_parameter_replays_alike_on_both_devices(toy, monkeypatch, tmp_path):
    engine, _ = toy
    toy_engine.write_engine(tmp_path, test_llm.LIMITS, seed=11)
    prompts = test_llm.make_prompts(22, 12)
    kinds = [
        SamplingParams(temperature=0.8),
        SamplingParams(top_p=0.8, top_k=20),
        SamplingParams(min_p=0.05, repetition_penalty=1.2, frequency_penalty=0.3),
        SamplingParams(temperature=0, presence_penalty=1.0, logit_bias={5: 2.0}),
        SamplingParams(min_tokens=8, logprobs=4),
    ]
    params = [dataclasses.replace(kinds[i % 5], seed=i, max_tokens=20) for i in range(12)]
    llm = make_llm(monkeypatch, engine)
    runs = [llm.generate(prompts, params) for _ in range(3)]
    monkeypatch.undo()
    runs.append(LLM(tmp_path).generate(prompts, params))
    for run in runs[1:]:
        assert [r.token_ids for r in run] == [r.token_ids for r in runs[0]]
    for ours, host in zip(runs[0], runs[-1]):
        for mine, other in zip(ours.logprobs or [], host.logprobs or []):
            assert set(mine) == set(other)
            assert all(mine[t].logprob == pytest.approx(other[t].logprob, abs=1e-3) for t in mine)


def test_solo_runs_equal_runs_in_flight(toy, monkeypatch):
    engine, _ = toy
    prompts = test_llm.make_prompts(23, 10)
    params = [SamplingParams(temperature=0.9, top_p=0.9, seed=i, max_tokens=15, ignore_eos=True) for i in range(10)]
    llm = make_llm(monkeypatch, engine, 100)
    together = llm.generate(prompts, params)
    for prompt, param, result in zip(prompts, params, together):
        assert llm.generate(prompt, param)[0].token_ids == result.token_ids
