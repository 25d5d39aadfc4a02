"""The HTML file: a page, its style and its scripts from `assets`, and the data inside it. Equal runs give equal bytes."""

from __future__ import annotations

import dataclasses
import html
import json
from importlib.resources import files
from pathlib import Path

from tilewright.inspect.report.data import Report, collect
from tilewright.inspect.run import Run

SCRIPTS = (
    "base", "names", "lanes", "virtual", "ledger", "neighbours", "card", "passes", "tables", "kernels", "overview", "modules", "time", "accuracy",
    "search", "app",
)  # fmt: skip
CSP = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"


def write_report(run: Run, path: str | Path, vs: Run | None = None, *, lints: bool = True) -> Path:
    """Raises EngineError for a run that cannot be read."""
    path = Path(path)
    text = render(collect(run, vs, lints=lints))
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.writing")
    aside.write_text(text, encoding="utf-8")
    return aside.replace(path)


def render(report: Report, start: str = "") -> str:
    """start: the fragment that an address without one stands for."""
    assets = files("tilewright.inspect.report") / "assets"

    def read(name: str) -> str:
        return (assets / name).read_text(encoding="utf-8")

    scripts = "\n".join(read(f"{name}.js").strip() for name in SCRIPTS)
    parts = {
        "csp": CSP,
        "title": html.escape(f"{report.title} · tilewright report"),
        "style": read("style.css"),
        "summary": html.escape(summarize(report)),
        "data": embed(report),
        "start": html.escape(start),
        "script": f"'use strict';\n(() => {{\n{scripts}\n}})();",
    }
    pieces = read("page.html").split("@@")  # text, name of a part, text, ...
    return "".join(parts[piece] if at % 2 else piece for at, piece in enumerate(pieces))


def embed(report: Report) -> str:
    """JSON that no tag can end."""
    text = json.dumps(dataclasses.asdict(report), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def summarize(report: Report) -> str:
    """What a reader without JavaScript gets."""
    lines = [f"{name}: {value}" for name, value in report.facts.items()] + ["", *report.sentences, ""]
    lines += [f"warning: {warning.text}" for warning in report.warnings]
    lines += [f"{p.number:02d} {p.title}: {p.status}, ops {p.ops_before} -> {p.ops_after}, events {p.num_events}" for p in report.passes]
    lines += ["", *(f"kernel {k.name}: " + ", ".join(f"{p} x{n}" for p, n in k.launches.items()) for k in report.kernels)]
    return "\n".join(lines)
