"""Engines of the zoo's models, built once a process, and what they generate: shared by the tests of every target."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import zoo

import tilewright as tw

NEW_TOKENS = 10
LIMITS = {"max_batch_size": 6, "max_input_len": 48, "max_output_len": 16, "max_tokens": 24, "page_size": 8}  # prompts of up to 40: chunked prefill
SMALL_POOL = 88  # tokens; six sequences of up to 50 do not fit, so some are preempted
GREEDY = tw.SamplingParams(max_tokens=NEW_TOKENS, temperature=0.0)
_FOLDER = TemporaryDirectory(prefix="tilewright-tests-")


@cache
def model_of(name, dtype=torch.float32):
    return zoo.build(name, dtype)


@cache
def checkpoint_of(name, dtype=torch.float32):
    return zoo.save(name, Path(_FOLDER.name) / f"{name}-{dtype}", dtype)


@cache
def engine_of(name, target="cpu", dtype=torch.float32, quantize=None):
    out = Path(_FOLDER.name) / f"{name}-{target}-{dtype}-{quantize}"
    return tw.compile(checkpoint_of(name, dtype), out, target=target, quantize=quantize, **LIMITS)


def serve(engine, prompts, device=None, **options):
    """Token ids that each prompt gives, all of them in flight together; and how many times a sequence was preempted."""
    llm = tw.LLM(engine.path, device=device, **options)
    outputs = [output.token_ids for output in llm.generate(prompts, GREEDY, use_progress=False)]
    return outputs, llm.core.scheduler.num_preemptions


def recorded_logits(llm, prompt, num_tokens):
    """Tokens that the engine generates for one prompt, and the logits f32[num_tokens, vocab] that it chose them from."""
    rows = []
    llm.runner.uses_graphs = False  # what a graph replays does not come by here
    sample = llm.runner.sampler.sample

    def record(logits, *others):
        rows.append(logits.float().clone())
        return sample(logits, *others)

    llm.runner.sampler.sample = record
    (output,) = llm.generate([prompt], tw.SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True), use_progress=False)
    llm.runner.sampler.sample = sample
    return output.token_ids, torch.cat(rows[-num_tokens:]).cpu()


def relative_error(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())
