"""The ops, each declared once. Importing this package declares them all."""

from tilewright.ir.ops import core, paged, semantic

__all__ = ["core", "paged", "semantic"]
