"""A graph that many tests start from."""

from pathlib import Path

from tilewright.ir.graph import Graph
from tilewright.ir.parser import parse_graph


def llama() -> Graph:
    """Two small layers with grouped queries, as the frontend imports them."""
    return parse_graph((Path(__file__).parent / "graphs" / "llama.ir").read_text())
