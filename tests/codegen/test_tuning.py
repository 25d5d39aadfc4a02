"""What the tuner chooses from times that are given to it, what it refuses, and what it keeps; nothing here is timed."""

import dataclasses
import json
from collections import Counter

import pytest
import torch
from kernel_run import LIMITS, make_case
from test_attend_template import Setup
from test_linear_template import CASES, HEAD, graph

from tilewright.codegen.candidates import Candidate, compile_candidates, list_candidates
from tilewright.codegen.choices import Choice, ChoiceFile, Choices, Device, keep, key_of, read_given, read_own, read_shipped
from tilewright.codegen.lower import tile_config
from tilewright.codegen.plan import make_plan
from tilewright.codegen.tile_moves import list_moves
from tilewright.codegen.tiles import keep_order
from tilewright.codegen.tuning import Budget, compare, rounding_of, tune
from tilewright.ir.errors import CodegenError, EngineError
from tilewright.ir.manifest import size_grid
from tilewright.ir.reference import TORCH_DTYPES
from tilewright.ir.regions import Regime
from tilewright.operands import Operands, steps_of
from tilewright.runtime import triton_interpreter

DEVICE = Device("sm_90", "Some GPU", "3.6.0")


def plan_of(name="residual", tokens=16, *, dtype="bf16", n=70, k=136, arch="sm_90", deterministic=False):
    case = make_case(graph(*{**CASES, "head": (HEAD, "%y")}[name], dtype=dtype, n=n, k=k), "linear", "linear")
    return make_plan(case.region, Regime("r", "decode", tokens), LIMITS, arch, tile_config(arch, deterministic=deterministic))[0]


def attend_plan(kind, setup=None, tokens=3, *, deterministic=False):
    writes = kind == "decode"
    setup = setup or Setup(6, 2, 24, 24, "bf16")
    case = make_case(setup.text, "attend", "attend", writes=writes)
    return make_plan(case.region, Regime("r", kind, tokens), LIMITS, "sm_90", tile_config("sm_90", deterministic=deterministic))[0]


class FakeBench:
    def __init__(self, timer):
        self.timer = timer

    def run(self, candidate):
        return {"out": self.timer.result(candidate)}

    def time(self, candidate):
        self.timer.timed[candidate.code] += 1
        return self.timer.us(candidate, self.timer.timed[candidate.code])


class FakeTimer:
    """us(candidate, n): of the n-th time that it is asked for; result(candidate): what it computes."""

    device = DEVICE

    def __init__(self, us=lambda candidate, n: 10.0, result=lambda candidate: torch.ones(3, 5)):
        self.us, self.result = us, result
        self.opened, self.timed = [], Counter()

    def open(self, plan, limits):
        self.opened.append(plan)
        return FakeBench(self)


def run(plans, timer, known=(), **options):
    return tune(plans, timer, LIMITS, Choices(known), compile=lambda *_: None, **options)


def only(tuning):
    (measured,) = tuning.measured.values()
    return measured


def move_of(plan, place):
    return list_candidates(plan)[place].move


# -- what is chosen -------------------------------------------------------------------------------------------------------------
HEAVY = [plan_of(), plan_of("norm", 1), plan_of("gated", 300, n=134), attend_plan("decode"), attend_plan("ragged", tokens=20)]


@pytest.mark.parametrize("plan", HEAVY, ids=["few tokens", "one token", "many tokens", "decode", "ragged"])
def test_the_fastest_is_chosen(plan):
    best = move_of(plan, 5)
    found = only(run([plan], FakeTimer(lambda c, n: 7.0 if c.move == best else 9.0 if c.move else 8.0)))
    assert (found.choice.tile, found.choice.us, found.choice.default_us) == (best, 7.0, 8.0)
    assert found.choice.key == key_of(plan) and found.choice.code == f"{Candidate.of(plan, {}).code}-{Candidate.of(plan, best).code}"
    assert [t.move for t in found.trials] == [c.move for c in list_candidates(plan)][: len(found.trials)] and found.trials[0].move == {}


def test_less_than_the_noise_is_no_reason_to_leave_the_default():
    found = only(run([plan_of()], FakeTimer(lambda c, n: 9.85 if c.move else 10.0)))
    assert found.choice.tile == {} and found.choice.us == found.choice.default_us == 10.0


def test_a_lucky_first_reading_does_not_win():
    plan = plan_of()
    lucky, steady = move_of(plan, 1), move_of(plan, 2)
    timer = FakeTimer(lambda c, n: (5.0 if n == 1 else 9.9) if c.move == lucky else 9.0 if c.move == steady else 10.0)
    assert only(run([plan], timer)).choice.tile == steady


SPOILT = [torch.full((3, 5), 1.1), torch.full((3, 5), float("nan")), torch.tensor([[1.0] * 5] * 2 + [[1.0] * 4 + [0.8]])]


@pytest.mark.parametrize("spoilt", SPOILT, ids=["scaled", "not written", "one element"])
def test_a_wrong_candidate_is_said_and_never_chosen(spoilt):
    plan = plan_of()
    wrong = move_of(plan, 3)
    timer = FakeTimer(lambda c, n: 1.0 if c.move == wrong else 10.0, lambda c: spoilt if c.move == wrong else torch.ones(3, 5))
    found = only(run([plan], timer))
    assert found.choice.tile == {}
    (trial,) = [t for t in found.trials if t.move == wrong]
    assert trial.note.startswith("wrong: out ") and trial.us is None
    assert [json.loads(line)["chosen"] for line in found.print().splitlines()].count(True) == 1


def test_one_wrong_element_among_many_is_found():
    right = torch.randn(512, 512)
    found = right.clone()
    found[511, 17] += 0.3
    assert compare({"out": found}, {"out": right}, 8e-3)[1].startswith("out has 1 elements of 262144")
    assert compare({"out": right.bfloat16()}, {"out": right}, rounding_of(plan_of()))[1] == ""


def test_a_default_that_contradicts_itself_is_not_measured():
    results = iter(range(100))
    tuning = run([plan_of()], FakeTimer(result=lambda c: torch.full((3, 5), float(next(results)))))
    assert not tuning.measured and "two launches of the default differ" in next(iter(tuning.skipped.values()))


def test_what_does_not_compile_is_said():
    plan, arch = plan_of(k=136), "sm_90"

    def refuse(candidates, arch, jobs, progress):
        for candidate in candidates[1:]:
            candidate.problem = "needs too much"

    found = only(tune([plan], FakeTimer(lambda c, n: 1.0 if c.move else 2.0), LIMITS, Choices(), compile=refuse))
    assert found.choice.tile == {} and {t.note for t in found.trials[1:]} == {"does not compile: needs too much"}
    too_large = Candidate.of(plan_of(n=4096, k=4096), {"block_m": 128, "block_n": 256, "block_k": 128, "num_stages": 4, "weights_left": 0})
    compile_candidates([too_large], arch, jobs=1)
    assert not too_large.compiled and "shared memory" in too_large.problem


def test_what_the_device_refuses_is_said_and_what_faults_it_names_the_tile():
    plan = plan_of()
    bad = move_of(plan, 2)

    def raising(error):
        def us(candidate, n):
            if candidate.move == bad:
                raise error
            return 10.0

        return us

    found = only(run([plan], FakeTimer(raising(EngineError("kernel k", "cuLaunchKernelEx: too many resources")))))
    assert [t.note for t in found.trials if t.move == bad] == ["does not run: cuLaunchKernelEx: too many resources"]
    with pytest.raises(RuntimeError) as raised:
        run([plan], FakeTimer(raising(RuntimeError("illegal memory access"))))
    assert str(bad) in raised.value.__notes__[0]


# -- bounds ---------------------------------------------------------------------------------------------------------------------
def test_no_plan_is_begun_after_the_time_is_over():
    plans = [plan_of(), plan_of("gated"), plan_of("norm")]
    now = [0.0]

    def us(candidate, n):
        now[0] += 0.1
        return 10.0

    kept = []
    tuning = run(plans, FakeTimer(us), budget=Budget(seconds=1), keep=kept.append, clock=lambda: now[0])
    assert [c.key for c in kept] == [key_of(plans[0])] == list(tuning.measured)
    assert set(tuning.skipped) == {key_of(p) for p in plans[1:]} and "2 left at their default: the time" in str(tuning)


def test_candidates_are_bounded():
    timer = FakeTimer()
    assert len(only(run([attend_plan("decode")], timer, budget=Budget(candidates=5))).trials) == 6
    with pytest.raises(EngineError, match=r"tuning budget: seconds: is -1; pass a number greater than 0"):
        Budget(seconds=-1)


def test_an_interrupt_keeps_what_was_measured(tmp_path):
    plans = [plan_of(), plan_of("gated"), plan_of("norm")]
    file = tmp_path / DEVICE.file_name

    def us(candidate, n):
        if candidate.plan.parameters == plans[1].parameters:
            raise KeyboardInterrupt
        return 8.0 if candidate.move else 10.0

    with pytest.raises(KeyboardInterrupt):
        run(plans, FakeTimer(us), keep=lambda choice: keep(file, DEVICE, [choice]))
    timer = FakeTimer()
    tuning = run(plans, timer, [read_own(file, DEVICE)])
    assert tuning.known == 1 and timer.opened == plans[1:]


# -- what is known --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("change", [lambda c: {"code": "x" + c.code[1:]}, lambda c: {"code": c.code[:-1] + "x"}, lambda c: {"tile": {"block_n": 16}}])
def test_a_choice_whose_code_has_changed_is_stale(change):
    plan = plan_of()
    choice = only(run([plan], FakeTimer(lambda c, n: 8.0 if c.move else 10.0))).choice
    fresh, stale = (ChoiceFile(DEVICE, {choice.key: c}) for c in (choice, dataclasses.replace(choice, **change(choice))))
    assert Choices([fresh]).find(plan) == (choice, DEVICE) and Choices([stale]).find(plan) is None
    assert Choices([stale, fresh]).find(plan) == (choice, DEVICE)
    timer = FakeTimer()
    run([plan], timer, [stale])
    assert timer.opened == [plan]


def test_plans_that_differ_only_in_names_share_a_choice():
    plan = plan_of()
    other = dataclasses.replace(plan, label="another")
    tuning = run([plan, other], timer := FakeTimer(lambda c, n: 8.0 if c.move else 10.0))
    known = Choices([ChoiceFile(DEVICE, {key: m.choice for key, m in tuning.measured.items()})])
    assert timer.opened == [plan] and known.find(other) == known.find(plan)


def test_keys_tell_apart_what_has_another_speed():
    plans = [plan_of(), plan_of(tokens=32), plan_of(n=72), plan_of(dtype="f16"), plan_of("gated"), plan_of("int8"), plan_of(deterministic=True)]
    windowed = Setup(6, 2, 24, 24, "bf16", window=40)
    plans += [attend_plan("decode"), attend_plan("ragged"), attend_plan("decode", tokens=4), attend_plan("decode", windowed)]
    assert len({key_of(plan) for plan in plans}) == len(plans)


CHOICES = [
    Choice("linear any T<=1: linear: weight bf16[8, 8]", "0123456789ab", {"block_n": 8}, 1.5, 2.0),
    Choice("attend decode T<=1: attend", "ba9876543210", {}, 3.0, 3.0),
]


def test_a_file_reads_back_and_has_a_line_for_each_choice(tmp_path):
    file = tmp_path / "tuned.json"
    written = ChoiceFile(DEVICE, {choice.key: choice for choice in CHOICES})
    written.write(file)
    assert ChoiceFile.read(file) == written
    lines = [line for line in file.read_text().splitlines() if "default_us" in line]
    assert [json.loads(line.rstrip(","))["key"] for line in lines] == sorted(c.key for c in CHOICES)
    assert all(list(json.loads(line.rstrip(","))) == ["code", "default_us", "key", "tile", "us"] for line in lines)
    keep(file, DEVICE, [dataclasses.replace(CHOICES[1], us=2.5)])
    assert {c.key: c.us for c in read_own(file, DEVICE).choices.values()} == {CHOICES[0].key: 1.5, CHOICES[1].key: 2.5}
    assert [p.name for p in tmp_path.iterdir()] == ["tuned.json"]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d.update(schema=7), r"tuned tiles .*t.json: has schema 7, this version reads schema 1; tune again"),
        (lambda d: d.pop("gpu"), r"t.json: field 'gpu' is missing"),
        (lambda d: d.update(choices={}), r"t.json: choices: is {}, expected"),
        (lambda d: d["choices"][1].update(us="fast"), r"choices\[1\] \(linear any T<=1: .*\)\.us: is 'fast', expected float"),
        (lambda d: d["choices"][1].pop("code"), r"choices\[1\] \(linear any T<=1: .*\): field 'code' is missing"),
        (lambda d: d["choices"][1].update(tile={"blok_n": 8}), r"choices\[1\]\.tile \(linear any .*\): has the field 'blok_n'; did you mean"),
        (lambda d: d["choices"][0].update(tile={"splits": 2}), r"choices\[0\]\.tile \(attend decode .*\): has the field 'splits'"),
        (lambda d: d["choices"][0].update(tile={"block_n": 1.5}), r"choices\[0\] \(attend decode .*\)\.tile\.block_n: is 1.5, expected int"),
        (lambda d: d["choices"][0].update(key="rows any"), r"choices\[0\]\.key: is 'rows any'; it begins with linear or attend"),
    ],
)
def test_a_broken_file_is_told_by_choice_and_field(tmp_path, change, message):
    data = json.loads(ChoiceFile(DEVICE, {choice.key: choice for choice in CHOICES}).print())
    change(data)
    (tmp_path / "t.json").write_text(json.dumps(data))
    with pytest.raises(CodegenError, match=message):
        ChoiceFile.read(tmp_path / "t.json")


def test_a_file_that_is_named_must_fit_and_ones_own_may_be_old(tmp_path):
    file = tmp_path / "t.json"
    ChoiceFile(DEVICE, {choice.key: choice for choice in CHOICES}).write(file)
    assert len(read_given(file, dataclasses.replace(DEVICE, gpu="")).choices) == 2
    with pytest.raises(CodegenError, match=r"measured for sm_90, this build is for sm_80; tune again with: tilewright build --tune"):
        read_given(file, dataclasses.replace(DEVICE, arch="sm_80"))
    with pytest.raises(CodegenError, match=r"measured with Triton 3.6.0, this build is with Triton 3.9.0"):
        read_given(file, dataclasses.replace(DEVICE, triton="3.9.0"))
    with pytest.raises(CodegenError, match=r"nothing.json: cannot be read \(No such file"):
        read_given(tmp_path / "nothing.json", DEVICE)
    assert read_own(file, dataclasses.replace(DEVICE, gpu="Another")).choices == {}
    file.write_text(file.read_text().replace('"schema": 1', '"schema": 0'))
    assert read_own(file, DEVICE).choices == {}
    file.write_text("{")
    with pytest.raises(CodegenError, match=r"it is not JSON: .*; delete it"):
        read_own(file, DEVICE)


def test_shipped_files_are_those_of_the_gpu_or_where_none_is_known_of_the_architecture(tmp_path):
    for gpu in ("B GPU", "A GPU"):
        device = dataclasses.replace(DEVICE, gpu=gpu)
        ChoiceFile(device, {}).write(tmp_path / device.file_name)
    found = {gpu: [f.device.gpu for f in read_shipped(dataclasses.replace(DEVICE, gpu=gpu), tmp_path)] for gpu in ("A GPU", "C GPU", "")}
    assert found == {"A GPU": ["A GPU"], "C GPU": [], "": ["A GPU", "B GPU"]}
    assert read_shipped(dataclasses.replace(DEVICE, triton="9.9"), tmp_path) == []


# -- candidates -----------------------------------------------------------------------------------------------------------------
def test_candidates_are_the_default_first_and_all_different():
    shapes = ((1, 4096, "bf16"), (16, 6144, "f16"), (700, 70, "bf16"), (9, 64, "f32"))
    for arch in ("sm_80", "sm_90", "sm_100"):
        for plan in (plan_of(tokens=t, n=n, k=4096, dtype=d, arch=arch) for t, n, d in shapes):
            found = list_candidates(plan)
            assert found[0].move == {} and len(found) > 5
            assert len({c.code for c in found}) == len(found) and all(c.move for c in found[1:])
            assert [c.move for c in list_candidates(plan, 4)] == [c.move for c in found[:5]]


def test_moves_of_deterministic_plans_keep_the_order_of_sums():
    from tilewright.codegen.linear_product import Product, tile_of

    for plan in (plan_of(tokens=t, n=4096, k=4096, deterministic=True) for t in (16, 64, 128, 512)):
        default, *others = (tile_of(Product.of(c.plan)) for c in list_candidates(plan))
        assert others and all(tile == keep_order(tile, 2) and tile.block_k == default.block_k for tile in others)
    ragged = attend_plan("ragged", tokens=40, deterministic=True)
    assert list_moves(ragged) and all(set(move) == {"num_stages"} for move in list_moves(ragged))
    assert rounding_of(ragged) == 0.0
    a_bit_off = torch.ones(3, 5).nextafter(torch.tensor(2.0))
    timer = FakeTimer(lambda c, n: 1.0 if c.move else 2.0, lambda c: a_bit_off if c.move else torch.ones(3, 5))
    assert only(run([ragged], timer)).choice.tile == {}


class Interpreted:
    """Runs candidates slowly on the CPU, over the same operands that a GPU would get."""

    device = DEVICE

    def __init__(self, slow=lambda candidate: 1.0):
        self.slow = slow

    def open(self, plan, limits):
        self.operands = [Operands(plan, step, copies=1, device="cpu") for step in steps_of(plan, limits)]
        return self

    def run(self, candidate):
        outputs = {}
        for place, operands in enumerate(self.operands):
            arguments, dims = operands.sets[0], operands.dims
            for p in operands.plan.outputs:
                arguments[p.name].fill_(float("nan"))
            spaces = {
                space.name: torch.zeros([dims[d] if isinstance(d, str) else d for d in space.shape], dtype=TORCH_DTYPES[space.dtype])
                for space in candidate.emission.workspaces
            }
            for text in candidate.emission.kernels:
                kernel = triton_interpreter.load_kernel(text.source, text.entry, text.entry)
                args = [arguments.get(name, spaces.get(name, dims.get(name))) for name in text.parameters]
                triton_interpreter.launch(kernel, size_grid(text.grid, dims), args, dict(text.constants))
            outputs |= {f"{name}.{place}": tensor.clone() for name, tensor in operands.written().items()}
        return outputs

    def time(self, candidate):
        return self.slow(candidate)


PLANS = {
    "one token": lambda: plan_of("norm", 1),
    "one token, int8": lambda: plan_of("int8", 1, k=132),
    "few tokens": lambda: plan_of("gated", 5, k=1032),
    "few tokens, int8": lambda: plan_of("int8", 13),
    "rows": lambda: plan_of("head", 9, n=66),
    "exact": lambda: plan_of("softcap", 21, dtype="f32"),
    "decode": lambda: attend_plan("decode"),
    "decode, window": lambda: attend_plan("decode", Setup(4, 4, 16, 16, "f16", window=20), tokens=2),
    "ragged": lambda: attend_plan("ragged", tokens=19),
}


@pytest.mark.parametrize("name", PLANS)
def test_every_candidate_computes_what_the_default_does(name):
    found = only(run([PLANS[name]()], Interpreted(), budget=Budget(candidates=14)))
    assert len(found.trials) >= 4
    assert all(t.note == "" and t.error is not None and t.error < 8e-3 for t in found.trials), found.print()
