"""The sampling kernels on a GPU: against the filters' definition in f64, from run to run, and inside a CUDA graph."""

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from test_sample_template import may_draw, plan_of, random_params, shapes_of

from tilewright.codegen.aot import compile_all
from tilewright.codegen.sample_template import emit_sampling
from tilewright.runtime.sample_kernels import SampleKernels
from tilewright.runtime.sampler import Sampler, SampleRows, param_row
from tilewright.runtime.sampling_params import SamplingParams

pytestmark = pytest.mark.gpu
SLACK = 1e-5  # the GPU's exponentials are approximate


def make_sampler(vocab, params):
    from tilewright.runtime.cuda_backend import CudaKernel
    from tilewright.runtime.cuda_driver import Module

    major, minor = torch.cuda.get_device_capability()
    arch, device = f"sm_{major}{minor}", torch.device("cuda")
    emitted = emit_sampling(vocab, dependent_launch=major >= 9)
    compiled = compile_all(emitted.sampling.kernels, emitted.sources, [arch])
    loaded = {}
    for kernel in emitted.sampling.kernels:
        result = compiled[kernel.name, arch]
        loaded[kernel.name] = CudaKernel(Module(result.cubin, result.binary.symbol, result.binary.shared_bytes), kernel, result.binary, device)
    sampler = Sampler(vocab, len(params), device, SampleKernels(emitted.sampling, loaded, device, len(params)))
    for slot, p in enumerate(params):
        sampler.assign(slot, p, [0, vocab // 2], [vocab - 1], frozenset([vocab - 1]))
    return sampler


def make_rows(params, uniform):
    rows = torch.tensor([param_row(p) for p in params])
    tensors = torch.arange(len(params)), torch.zeros(len(params), dtype=torch.int32), rows, uniform
    return SampleRows(*(tensor.cuda() for tensor in tensors))


@pytest.mark.parametrize(("vocab", "rows"), [(128256, 1), (128256, 61), (50257, 64), (32000, 257), (257, 33), (5000, 12)])
def test_rows_of_any_parameters_get_a_right_token_each_time(vocab, rows, generator):
    params = [random_params(generator, vocab) for _ in range(rows)]
    plan, uniform = plan_of(params), torch.rand(rows, generator=generator, dtype=torch.float64)
    sampler, on_device = make_sampler(vocab, params), make_rows(params, uniform)
    logits = shapes_of(generator, vocab, rows).cuda()
    adjusted = sampler._biases.apply(logits, on_device) if plan.biases else logits
    adjusted = (sampler._history.penalize(adjusted, on_device) if plan.penalties else adjusted).cpu()
    history = sampler._history.table.clone() if plan.penalties else None
    results = []
    for _ in range(5):
        results.append(sampler.sample(logits, on_device, plan).tokens.cpu().clone())
        if history is not None:
            sampler._history.table.copy_(history)
    assert all(torch.equal(result, results[0]) for result in results)
    for row, p in enumerate(params):
        token = int(results[0][row])
        right = token == int(adjusted[row].argmax()) if p.is_greedy else may_draw(adjusted[row], p, float(uniform[row]), token, SLACK)
        assert right, (row, p, token)


@pytest.mark.parametrize(
    "params", [SamplingParams(top_p=0.9), SamplingParams(top_k=5000), SamplingParams(top_k=50, top_p=0.9), SamplingParams(min_p=0.05)]
)
def test_a_graph_gives_right_tokens_for_logits_that_it_was_not_captured_with(params, generator):
    vocab, rows = 128256, 24
    many, uniform = [params] * rows, torch.rand(rows, generator=generator, dtype=torch.float64)
    sampler, on_device, logits = make_sampler(vocab, many), make_rows(many, uniform), torch.zeros(rows, vocab, device="cuda")
    sampler.sample(logits, on_device, plan_of(many))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens = sampler.sample(logits, on_device, plan_of(many)).tokens
    for scale in (4.0, 1.0, 0.1):
        fresh = torch.randn(rows, vocab, generator=generator) * torch.from_numpy(np.linspace(0.5, 1, rows, dtype=np.float32))[:, None] * scale
        logits.copy_(fresh)
        graph.replay()
        torch.cuda.synchronize()
        wrong = [row for row in range(rows) if not may_draw(fresh[row], params, float(uniform[row]), int(tokens[row]), SLACK)]
        assert not wrong, (scale, wrong)
