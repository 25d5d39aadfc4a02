"""The paged keys and values of all layers in one allocation, and how many pages of them fit. Knows no sequence."""

from __future__ import annotations

import torch

from tilewright.ir.errors import EngineError
from tilewright.ir.manifest import KVCache, Limits, Manifest
from tilewright.runtime.dtypes import TORCH_DTYPES

HOST_CACHE_BYTES = 2 << 30  # pages taken on the CPU at most, where max_cache_tokens does not say otherwise
FREE_SHARE = 0.9  # of the device memory left after weights and arena


def page_bytes(cache: KVCache, page_size: int) -> int:
    """Bytes of one page over all layers."""
    item = TORCH_DTYPES[cache.dtype].itemsize
    return sum(layer.num_heads * page_size * (layer.head_dim + layer.value_dim) * item for layer in cache.layers)


def choose_num_pages(manifest: Manifest, device: torch.device, max_cache_tokens: int | None, reserved_bytes: int) -> int:
    """What the limits can use, or less: max_cache_tokens if given, else what memory allows. Raises EngineError if that is nothing."""
    limits = manifest.limits
    most = limits.max_batch_size * limits.max_pages_per_sequence
    if max_cache_tokens is not None:
        if not isinstance(max_cache_tokens, int) or isinstance(max_cache_tokens, bool) or max_cache_tokens < 1:
            raise EngineError("max_cache_tokens", f"is {max_cache_tokens!r}", "pass at least the tokens of one request, or None")
        return min(most, -(-max_cache_tokens // limits.page_size))
    if not manifest.cache.layers:
        return most
    available = HOST_CACHE_BYTES
    if device.type == "cuda":
        available = int(torch.cuda.mem_get_info(device)[0] * FREE_SHARE) - reserved_bytes
    fitting = available // page_bytes(manifest.cache, limits.page_size)
    if fitting < 1:
        problem = f"{available / 2**20:.0f} MiB are free, one page of {limits.page_size} tokens needs more"
        raise EngineError("KV cache", problem, "free device memory, or build with a smaller page_size or a quantized model")
    return min(most, fitting)


def allocate(cache: KVCache, limits: Limits, num_pages: int, device: torch.device) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Per layer k[pages, heads, page_size, head_dim] and v[pages, heads, page_size, value_dim], zeroed views of one allocation."""
    dtype = TORCH_DTYPES[cache.dtype]
    shapes = [
        (num_pages, layer.num_heads, limits.page_size, size) for layer in cache.layers for size in (layer.head_dim, layer.value_dim)
    ]
    sizes = [_align(torch.Size(shape).numel() * dtype.itemsize) for shape in shapes]
    try:
        block = torch.zeros(sum(sizes), dtype=torch.int8, device=device)
    except RuntimeError as error:  # torch.OutOfMemoryError among them
        problem = f"{num_pages} pages of {limits.page_size} tokens need {sum(sizes) / 2**30:.3g} GiB, which {device} does not have"
        raise EngineError("KV cache", problem, "pass a smaller max_cache_tokens") from error
    views, offset = [], 0
    for shape, size in zip(shapes, sizes):
        views.append(block[offset : offset + torch.Size(shape).numel() * dtype.itemsize].view(dtype).view(shape))
        offset += size
    return list(zip(views[0::2], views[1::2]))


def _align(num_bytes: int) -> int:
    return -(-num_bytes // 256) * 256
