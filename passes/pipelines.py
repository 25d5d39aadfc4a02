"""The default pipeline, one commented list in phases. Text, so that it can be printed, edited and run again."""

from __future__ import annotations

DEFAULT = """
# what the trace leaves
simplify, merge-equal-ops, drop-dead-ops,
# what the model means
raise-bias, raise-rms-norm, raise-gelu, raise-rotary, raise-gated, tabulate-positions{{length={length}}},
simplify, merge-equal-ops, drop-dead-ops,
# fewer, larger products
cut-early, simplify, split-linear, simplify, fuse-qkv, fuse-gate-up, gather-rows-early,
{quantize}
# state in pages
split-attention, simplify, drop-dead-ops
"""

QUANTIZATIONS = {"none": "", "int8": "quantize", "int8-keep-head": "quantize{head=false}"}


def default_pipeline(*, length: int, quantize: str | None = None) -> str:
    """Text of the default pipeline. length: positions that will be served; quantize: a key of QUANTIZATIONS, or the text of a pass."""
    text = QUANTIZATIONS.get(quantize or "none", quantize or "")
    return DEFAULT.format(length=length, quantize=f"# fewer bytes\n{text}," if text else "").strip()
