"""Other servers under the same requests: vLLM in this process, where it is installed, and whatever answers OpenAI's completions at a URL."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tilewright.measure import Requests, Throughput

Run = Callable[[], Throughput]


def open_vllm(model: Path, requests: Requests, *, batch: int, max_len: int) -> Run:
    """vLLM at its defaults, but without a tokenizer (random checkpoints have none) and without reuse of prompts (runs are repeated)."""
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]  # the peer need not be installed

    llm = LLM(
        model=str(model), dtype="bfloat16", skip_tokenizer_init=True, max_num_seqs=batch, max_model_len=max_len, enable_prefix_caching=False
    )
    params = [SamplingParams(max_tokens=count, temperature=0.0, ignore_eos=True, detokenize=False) for count in requests.output_lens]
    prompts = [{"prompt_token_ids": prompt} for prompt in requests.prompts]

    def run() -> Throughput:
        started = time.perf_counter()
        results = llm.generate(prompts, params, use_tqdm=False)
        return _sum_up(requests, sum(len(result.outputs[0].token_ids) for result in results), started)

    return run


def open_server(url: str, name: str | None, requests: Requests) -> Run:
    """url: of the server, without /v1. name: of the model; None: the first that the server names."""
    root = url.rstrip("/").removesuffix("/v1")
    model = name or _ask(f"{root}/v1/models")["data"][0]["id"]

    def complete(prompt: list[int], count: int) -> int:
        body = {"model": model, "prompt": prompt, "max_tokens": count, "temperature": 0.0, "ignore_eos": True}
        return _ask(f"{root}/v1/completions", body)["usage"]["completion_tokens"]

    def run() -> Throughput:
        started = time.perf_counter()
        with ThreadPoolExecutor(len(requests.prompts)) as threads:
            counts = list(threads.map(complete, requests.prompts, requests.output_lens))
        return _sum_up(requests, sum(counts), started)

    return run


def _sum_up(requests: Requests, num_tokens: int, started: float) -> Throughput:
    return Throughput(len(requests.prompts), sum(map(len, requests.prompts)), num_tokens, time.perf_counter() - started)


def _ask(url: str, body: dict[str, object] | None = None) -> dict:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)
