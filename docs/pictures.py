"""Draws the pictures of these pages anew: `python docs/pictures.py`. Screens come from headless Chromium, terminals from rich."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright
from rich.console import Console

from tilewright.show import colour_text

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "pictures"
CHROMIUM = "/usr/bin/chromium"
SIZE, TALL = {"width": 1440, "height": 800}, {"width": 1440, "height": 1160}
LIMITS = "--max-batch-size 4 --max-input-len 64 --max-output-len 64"
LOUD = '''
import tilewright as tw

@tw.register_pass("loud-layer")
def loud_layer(graph, rw):
    """A fault on purpose: the result of one layer's MLP is 5 % too large."""
    for op in rw.each("linear"):
        if op.result.name == "model.layers.3.mlp.down_proj":
            rw.insert_after(op.result, "mul", {"scalar": 1.05})
'''
COMMANDS = [  # prepared in this order
    f"build examples/demo_model engine --target cpu --quantize int8 {LIMITS}",
    "profile engine --batch 4 --context 48",  # on the machine that draws: the page says which
    "report engine --no-lints -o engine.html",
    f'--load loud.py build examples/demo_model loud --target cpu --dtype float32 --pipeline "default, loud-layer" {LIMITS}',
    "--load loud.py check loud --save",
    "--load loud.py report loud --no-lints -o loud.html",
    f"build examples/demo_model gpu --target sm_90 --dtype bfloat16 --quantize int8 {LIMITS}",
    "report gpu -o gpu.html",
]
SCREENS = {  # name: page, fragment; KERNEL stands for the kernel of the MLP's first products
    "passes": ("engine.html", "passes?pass=17&tensor=model.layers.3.self_attn.q_proj"),
    "accuracy": ("loud.html", "accuracy"),
    "kernels": ("gpu.html", "kernels?kernel=KERNEL"),
    "time": ("engine.html", "time"),
}
TERMINALS = {
    "blame": "blame engine model.layers.2.self_attn.k_proj",
    "check": "--load loud.py check loud",
    "test-pass": "--load examples/gallery/fold_norm_scale.py test-pass fold-norm-scale --cases examples/gallery/fold-norm-scale.ir",
}
MAX_LINES = 34
# rich's frame, without fonts from elsewhere
FRAME = """<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg"><style>
.{unique_id}-matrix {{ font-family: Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: {char_height}px; line-height: {line_height}px; }}
{styles}</style><defs>{lines}</defs><rect width="{width}" height="{height}" rx="8" fill="#1b1d22"/>
<g transform="translate(9, 14)">{backgrounds}<g class="{unique_id}-matrix">{matrix}</g></g></svg>
"""


def run(words: str, folder: Path) -> str:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(f"{sys.executable} -m tilewright {words}", shell=True, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"tilewright {words}\n{done.stderr}")
    return done.stdout


def draw_terminal(name: str, words: str, folder: Path) -> None:
    lines = run(words, folder).splitlines()
    shown = [f"$ tilewright {words}", *lines[:MAX_LINES], *(["…"] if len(lines) > MAX_LINES else [])]
    console = Console(record=True, width=min(150, max(map(len, shown)) + 1), file=open(os.devnull, "w"), color_system="truecolor")  # noqa: SIM115
    for line in shown:
        console.print(colour_text(line), no_wrap=True, overflow="ellipsis", highlight=False)
    (PICTURES / f"{name}.svg").write_text(console.export_svg(code_format=FRAME, unique_id=name), encoding="utf-8")


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as driver:
        folder = Path(scratch)
        (folder / "examples").symlink_to(ROOT / "examples")
        (folder / "loud.py").write_text(LOUD)
        for words in COMMANDS:
            run(words, folder)
        kernel = next(file.stem for file in sorted((folder / "gpu" / "kernels").glob("gate_up*.py")))
        for name, words in TERMINALS.items():
            draw_terminal(name, words, folder)
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--disable-gpu"])
        for name, (file, fragment) in SCREENS.items():
            page = browser.new_page(viewport=TALL if name == "time" else SIZE)
            page.goto(f"file://{folder / file}#{fragment.replace('KERNEL', kernel)}")
            page.wait_for_selector("html[data-ready]")
            page.screenshot(path=PICTURES / f"{name}.png")


if __name__ == "__main__":
    main()
