"""The report inside a notebook: an iframe that holds the whole page, so that nothing is served and no widget is needed."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from tilewright.inspect.report.data import collect
from tilewright.inspect.report.page import render
from tilewright.inspect.run import Run


@dataclass(frozen=True)
class View:
    """A tab of the report, with its state."""

    run: Run
    tab: str
    state: Mapping[str, object]
    height: int = 640

    @property
    def fragment(self) -> str:
        query = urlencode({key.rstrip("_"): value for key, value in self.state.items()})
        return f"#{self.tab}{'?' + query if query else ''}"

    def _repr_html_(self) -> str:
        page = render(collect(self.run, lints=False), start=self.fragment)
        style = f"width:100%;height:{self.height}px;border:1px solid #ccc;border-radius:6px"
        return f'<iframe sandbox="allow-scripts allow-downloads" style="{style}" srcdoc="{html.escape(page)}"></iframe>'
