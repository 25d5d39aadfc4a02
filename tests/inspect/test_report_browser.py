"""The report in a real browser, offline: fast, small, reachable by keys and by address, readable in both themes."""

import json
import shutil
from pathlib import Path

import pytest
from recorded import engine, llama_run
from reported import RED, measured_run, report_file

from tilewright.inspect import load
from tilewright.inspect.report import write_report

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'tilewright[dev]'")

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"needs {CHROMIUM}: apt-get install chromium")

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
TABS = ["overview", "passes", "kernels", "time", "accuracy", "modules"]
SIZE = {"width": 1440, "height": 900}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield browser
        browser.close()


class Opened:
    """A page that remembers what it asked for and what it complained of."""

    def __init__(self, browser, **options):
        self.page = browser.new_page(viewport=SIZE, **options)
        self.requests, self.complaints = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def open(self, name, fragment="", ready=True):
        self.url = f"file://{report_file(name)}"
        self.page.goto(f"{self.url}{fragment and '#' + fragment}")
        if ready:
            self.page.wait_for_selector("html[data-ready]")
        return self.page

    def check(self):
        assert not self.complaints
        assert [url for url in self.requests if url.partition("#")[0] != self.url and not url.startswith("data:")] == []


@pytest.fixture
def opened(browser):
    opened = Opened(browser)
    yield opened
    opened.page.close()


def fragment(page):
    return page.evaluate("location.hash")


def num_nodes(page):
    return page.evaluate("document.querySelectorAll('*').length")


# Sets the address, and waits until that is drawn and laid out; in milliseconds.
SWITCH = """async (hash) => {
  const start = performance.now();
  location.hash = hash;
  await new Promise((done) => addEventListener('hashchange', done, {once: true}));
  document.body.getBoundingClientRect();
  return performance.now() - start;
}"""
# Types a query; in milliseconds until what was found is laid out.
SEARCH = """(query) => {
  const input = document.getElementById('search');
  const start = performance.now();
  input.value = query;
  input.dispatchEvent(new Event('input'));
  document.body.getBoundingClientRect();
  return performance.now() - start;
}"""


# Least room between two marks of the roofline, in its units.
CLOSEST = """(() => {
  const circles = [...document.querySelectorAll('.spot')].map((spot) => [...spot.querySelectorAll('circle')].pop());
  const marks = circles.map((circle) => ['cx', 'cy', 'r'].map((key) => circle[key].baseVal.value));
  return Math.min(...marks.flatMap(([x, y, r], at) => marks.slice(at + 1).map(([u, v, q]) => Math.hypot(x - u, y - v) - r - q)));
})()"""


FOCUS = """(() => {
  const node = document.activeElement;
  return [node.dataset.focus || node.id, getComputedStyle(node).outlineStyle];
})()"""


# -- limits ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["deep", "vs", "sm_90", "dumps", "experts"])
def test_every_view_is_quiet_and_small(opened, name):
    page = opened.open(name)
    passes = page.evaluate("JSON.parse(document.getElementById('data').textContent).passes.map((p) => p.number)")
    for place in [
        *TABS,
        *(f"passes?pass={n}" for n in (0, *passes)),
        "passes?pass=7&show=before",
        "passes?pass=7&weights=1&views=0",
        "passes?pass=vs",
    ]:
        page.evaluate(SWITCH, place) if fragment(page) != f"#{place}" else None
        assert num_nodes(page) <= 3000, place
        assert page.locator("main").inner_text().strip(), place
    opened.check()


@pytest.mark.parametrize(("name", "limit"), [("deep", 1000), ("dumps", 2000), ("experts", 2000)])
def test_it_is_ready_in_time(browser, name, limit):
    times = []
    for _ in range(3):
        opened = Opened(browser)
        page = opened.open(name, "passes?pass=7")
        times.append(page.evaluate("performance.now()"))
        page.close()
    assert min(times) <= limit


@pytest.mark.parametrize(
    ("name", "tensor"), [("deep", "model.layers.1.mlp.mul"), ("dumps", "model.layers.1.mlp.mul"), ("experts", "model.layers.17.mlp.experts.40.out")]
)
def test_passes_switch_in_time(opened, name, tensor):
    page = opened.open(name, "passes?pass=0")
    passes = page.evaluate("JSON.parse(document.getElementById('data').textContent).passes.map((p) => p.number)")
    rounds = [[page.evaluate(SWITCH, f"passes?pass={n}&tensor={tensor}") for n in passes] for _ in range(3)]
    assert max(map(min, zip(*rounds))) <= 100


@pytest.mark.parametrize(
    ("name", "queries"),
    [
        ("deep", ["m", "mlp", "layers.17.mlp up", "qkv", "nothing of the kind"]),
        ("experts", ["m", "experts", "layers.17.mlp.experts.40", "nothing of the kind"]),
    ],
)
def test_search_answers_in_time(browser, name, queries):
    times = []
    for _ in range(2):  # the first query of a page makes the index
        opened = Opened(browser)
        page = opened.open(name)
        times.append([page.evaluate(SEARCH, query) for query in queries])
        page.close()
    assert max(map(min, zip(*times))) <= 100


# -- keys and addresses ---------------------------------------------------------------------------------------------------------
def test_keys_alone_reach_everything(opened):
    page = opened.open("deep")
    for key, tab in zip("123456", TABS):
        page.keyboard.press(key)
        page.wait_for_function("(tab) => document.getElementById('main').className === tab", arg=tab)
    page.keyboard.press("2")
    page.wait_for_selector("div.passes")
    last = page.locator(".pass[aria-current]").inner_text()
    page.keyboard.press("k")
    page.wait_for_function("(last) => document.querySelector('.pass[aria-current]').innerText !== last", arg=last)
    page.keyboard.press("j")
    page.wait_for_function("(last) => document.querySelector('.pass[aria-current]').innerText === last", arg=last)
    page.keyboard.press("/")
    page.keyboard.type("mlp down_proj linear")
    assert page.locator("#found [role=option]").count() > 0
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    page.wait_for_selector(".card h2")
    assert "down_proj" in page.locator(".card h2").inner_text()
    page.evaluate("document.querySelector('.ledger').focus()")
    before = fragment(page)
    page.keyboard.press("ArrowDown")
    page.wait_for_function("(before) => location.hash !== before", arg=before)
    assert page.evaluate("document.activeElement.dataset.focus") == "ledger"
    assert page.locator(".row.selected").count() == 1
    page.keyboard.press("Escape")
    page.wait_for_selector(".card.empty")
    opened.check()


def test_tab_walks_through_everything_with_a_visible_focus(opened):
    page = opened.open("deep", "passes?pass=20&tensor=model.layers.3.mlp.mul")
    seen = []
    for _ in range(80):
        page.keyboard.press("Tab")
        seen.append(
            page.evaluate(
                "[document.activeElement.dataset.focus || document.activeElement.id, getComputedStyle(document.activeElement).outlineStyle]"
            )
        )
    names = {name for name, _ in seen if name}
    assert {
        "tab-overview",
        "tab-modules",
        "search",
        "theme",
        "pass-0",
        "pass-20",
        "show-before",
        "views",
        "weights",
        "events",
        "ledger",
        "card",
    } <= names
    assert {outline for name, outline in seen if name} == {"solid"} or {outline for name, outline in seen if name} == {"solid", "auto"}


def test_the_space_bar_presses_buttons(opened):
    page = opened.open("deep", "passes?pass=7")
    page.evaluate("document.querySelector('[data-focus=\"views\"]').focus()")
    rows = page.locator(".ledger .row").all_inner_texts()
    page.keyboard.press("Space")
    page.wait_for_function("location.hash.includes('views=0')")
    assert page.evaluate("document.activeElement.dataset.focus") == "views"
    assert page.locator("[data-focus=views]").get_attribute("aria-pressed") == "true"
    assert page.locator(".ledger .row").all_inner_texts() != rows


def test_an_address_is_the_whole_state(opened):
    page = opened.open("deep", "passes?pass=7&tensor=model.layers.17.self_attn.add&show=before&theme=dark")
    assert page.locator(".pass[aria-current]").inner_text().startswith("07")
    assert page.locator("[data-focus=show-before]").get_attribute("aria-pressed") == "true"
    assert page.locator(".card h2").inner_text() == "%model.layers.17.self_attn.add"
    assert "one of 32" in page.locator(".card").inner_text()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.locator(".row.selected").count() == 1


def test_the_back_button_goes_back(opened):
    page = opened.open("deep", "passes?pass=5")
    page.locator(".row .name", has_text="%.self_attn.q_proj").first.click()
    page.wait_for_selector(".card h2")
    page.keyboard.press("3")
    page.wait_for_selector("div.kernels")
    page.go_back()
    page.wait_for_selector(".card h2")
    assert "q_proj" in page.locator(".card h2").inner_text()
    page.go_back()
    page.wait_for_selector(".card.empty")
    assert fragment(page) == "#passes?pass=5"


# -- what it says ---------------------------------------------------------------------------------------------------------------
def test_marks_are_signs_as_well_as_colours(opened):
    page = opened.open("deep", "passes?pass=7")
    page.wait_for_selector(".row.removed")
    for kind, sign in (("added", "+"), ("removed", "−"), ("changed", "~")):
        signs = page.locator(f".row.{kind} .sign").all_inner_texts()
        assert signs and set(signs) == {sign}
    assert "= 3 passes" in page.locator(".passlist").inner_text()
    assert "repeat ×32" in page.locator(".ledger").inner_text()


def test_a_tensor_s_card_has_its_history_kernel_and_neighbours(opened):
    page = opened.open("deep", "passes?pass=20&tensor=model.layers.3.mlp.mul")
    text = page.locator(".card").inner_text()
    for word in ("gated", "model.layers.3.mlp", "gate_up_", "00 import", "08 raise-gated", "18 fuse-gate-up", "%.mlp.mul.gate_up", "%.mlp.down_proj",
                 "transformers/models/llama/modeling_llama.py:"):  # fmt: skip
        assert word in text, word
    page.locator(".card a", has_text="gate_up_").first.click()
    page.wait_for_selector(".detail")
    assert "F.linear" in page.locator(".code").inner_text()


def test_what_the_carry_of_a_loop_reads_is_the_layer_before(opened):
    page = opened.open("deep", "passes?pass=20&tensor=model.layers.3.input_layernorm")
    assert "%model.layers.2.add.1" in page.locator(".card").inner_text()
    page = opened.open("deep", "passes?pass=20&tensor=model.layers.2.add.1")
    assert "%model.layers.3.input_layernorm" in page.locator(".card").inner_text()
    page = opened.open("deep", "passes?pass=20&tensor=model.layers.0.input_layernorm")
    assert "%model.embed_tokens" in page.locator(".card").inner_text()


def test_lanes_are_at_most_eight(opened):
    page = opened.open("deep", "passes?pass=0")
    widths = page.eval_on_selector_all(".row svg", "(found) => found.map((svg) => svg.width.baseVal.value)")
    assert widths and max(widths) <= 8 * 11 + 8
    assert page.locator(".row circle").count() > 10


def test_columns_sort(opened):
    page = opened.open("sm_90", "kernels?sort=name")
    page.locator("[data-focus=sort-registers]").click()
    page.wait_for_selector("[aria-sort=descending]")
    page.wait_for_selector(".table .virtual [role=row]")
    column = page.locator("[role=columnheader]").all_inner_texts().index("registers ↓")
    numbers = [int(row.locator("[role=cell]").nth(column).inner_text()) for row in page.locator(".table [role=row]:not(.th)").all()]
    assert numbers == sorted(numbers, reverse=True) and len(numbers) > 5
    assert page.locator("[aria-sort=descending]").count() == 1


def test_a_comparison_has_a_second_column_and_a_ledger(opened):
    page = opened.open("vs", "overview")
    assert (
        "against deep (deep-None)" in page.locator(".facts").inner_text()
        and "ops in deep (deep-None)" in page.locator(".waterfall").first.inner_text()
    )
    page.evaluate(SWITCH, "kernels")
    signs = " ".join(page.locator(".table .mark").all_inner_texts())
    assert "+ deep (deep-None)" in signs and "− deep (deep-int8)" in signs and "both" in signs
    page.evaluate(SWITCH, "passes?pass=vs")
    assert page.locator(".row.removed .name", has_text="qkv.weight.i8").count() == 1


def test_what_was_not_measured_names_the_command(opened):
    page = opened.open("deep", "accuracy")
    assert "tilewright check ENGINE --save" in page.locator("main").inner_text()
    page.evaluate(SWITCH, "time")
    assert "tilewright profile ENGINE" in page.locator("main").inner_text()


def test_what_was_measured_has_pictures_that_read_without_colour(opened):
    page = opened.open("measured", "accuracy")
    red = page.locator(".heat td.red")
    assert red.all_inner_texts() == ["✕"] and set(page.locator(".heat td.grey").all_inner_texts()) == {"~"}
    assert set(page.locator(".heat td.ok").all_inner_texts()) == {"·"} and page.locator(".key").all_inner_texts()[0].startswith("✕ not rounding: 1")
    assert num_nodes(page) <= 3000
    red.locator("a").click()
    page.wait_for_selector(".card h2")
    assert page.locator(".card h2").inner_text() == RED and page.locator(".neighbours .near.own").count() == 1
    page.evaluate(SWITCH, "time")
    assert "2 sequences of 24 tokens" in page.locator("main").inner_text() and page.locator(".roofline .roof").count() == 1
    spots = page.locator(".spot text").all_text_contents()
    places = page.locator("[aria-label='Kernels by time'] [role=row]:not(.th)").count()
    assert len(spots) == places and spots == [str(n + 1) for n in range(places)]
    assert page.evaluate(CLOSEST) >= 0, "marks cover one another"
    with page.expect_download() as saved:
        page.locator("[data-focus=trace]").click()
    assert len(json.loads(Path(saved.value.path()).read_text())["traceEvents"]) == len(measured_run().engine.manifest.programs[0].launches)
    opened.check()


def test_a_notebook_s_output_is_the_page_offline(opened, tmp_path):
    view = load(engine("llama3")).view("passes", pass_="fuse-qkv", tensor="model.layers.1.self_attn.qkv")
    notebook = tmp_path / "notebook.html"
    notebook.write_text(f"<!doctype html><meta charset=utf-8><h1>A notebook</h1>{view._repr_html_()}", encoding="utf-8")
    opened.url = f"file://{notebook}"
    opened.page.goto(opened.url)
    frame = opened.page.frames[1]
    frame.wait_for_selector("html[data-ready]")
    assert frame.locator(".pass[aria-current]").inner_text().startswith("17")
    assert frame.locator(".card h2").inner_text() == "%model.layers.1.self_attn.qkv"
    frame.locator("[data-focus=tab-kernels]").click()
    frame.wait_for_selector("div.kernels")
    frame.locator("[data-focus=tab-passes]").click()
    frame.locator(".ledger").focus()
    opened.page.keyboard.press("ArrowDown")
    frame.wait_for_selector(".row.selected")
    assert opened.page.url == opened.url
    opened.check()


# -- themes and no scripts ------------------------------------------------------------------------------------------------------
CONTRAST = """() => {
  const linear = (c) => (c / 255 <= 0.03928 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const probe = document.body.appendChild(document.createElement('i'));
  const of = (name) => { probe.style.color = `var(--${name})`; return light(getComputedStyle(probe).color.match(/[\\d.]+/g).map(Number)); };
  const ratio = (a, b) => { const [x, y] = [of(a), of(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
  const pairs = ['text bg', 'text panel', 'quiet bg', 'quiet panel', 'accent panel', 'text chosen', 'quiet chosen', 'added added-bg',
    'removed removed-bg', 'changed changed-bg', 'quiet added-bg', 'quiet removed-bg', 'quiet changed-bg'];
  const found = pairs.map((pair) => [pair, ratio(...pair.split(' '))]);
  probe.remove();
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_system_s_theme_is_followed_and_readable(browser, scheme):
    opened = Opened(browser, color_scheme=scheme)
    page = opened.open("deep", "passes?pass=7")
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    assert [(pair, ratio) for pair, ratio in page.evaluate(CONTRAST) if ratio < 4.5] == []
    page.locator("#theme").click()
    other = "dark" if scheme == "light" else "light"
    page.wait_for_function("(theme) => document.documentElement.dataset.theme === theme", arg=other)
    assert f"theme={other}" in fragment(page)
    opened.check()
    page.close()


def test_without_javascript_the_summary_is_read(browser):
    opened = Opened(browser, java_script_enabled=False)
    page = opened.open("deep", ready=False)
    assert "ops were imported" in page.locator("noscript").inner_text()
    page.close()


def test_no_node_is_needed_to_write_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "")
    assert shutil.which("node") is None
    assert write_report(llama_run(80), tmp_path / "r.html").stat().st_size < 3_000_000
