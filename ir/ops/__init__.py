"""The ops, each declared once. Importing this package declares them all."""

from tilewright.ir.ops import conditions, core, paged, semantic

__all__ = ["conditions", "core", "paged", "semantic"]
