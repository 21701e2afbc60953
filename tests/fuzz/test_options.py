"""Fixed arguments of all programs, each in a fork: success, or one line that names what is wrong and nothing left."""

import json

import pytest

from tests.fuzz.campaign import draw_cases, load_programs
from tests.fuzz.forked import ROOT, Case, run_case, run_cases
from tests.fuzz.judge import REFUSAL, SUCCESS, verdict
from tests.fuzz.spaces import TINY, eval_spaces, train_spaces
from tests.fuzz.start import make_start, write_text

EVAL = ("run=run", "device=cpu", "task=perplexity")
REFUSED = [
    ("train.py", (*TINY, "optimizer.lr=-1"), "optimizer.lr=-1: expected a number > 0"),
    ("train.py", (*TINY, "trainer.max_steps=1.5"), "trainer.max_steps=1.5: expected a whole number"),
    ("train.py", (*TINY, "trainer.max_steps=ten"), "trainer.max_steps=ten"),
    ("train.py", (*TINY, "trainer.validate_every=0"), "trainer.validate_every=0"),
    ("train.py", (*TINY, "model.width=nan"), "model.width=nan"),
    ("train.py", (*TINY, "model.depth=0"), "model.depth=0"),
    ("train.py", (*TINY, "schedule.patch=1"), "schedule.patch=1"),
    ("train.py", (*TINY, "seed=null"), "seed=null"),
    ("train.py", (*TINY, "~optimizer.lr"), "optimizer.lr"),
    ("train.py", (*TINY, "model.widht=64"), "did you mean model.width"),
    ("train.py", (*TINY, "attention=lightening"), "did you mean lightning"),
    ("train.py", (*TINY, "+foo=1"), "foo"),
    ("train.py", (*TINY, "data.source.kind={a: 1}"), "data.source.kind={a: 1}: unknown data source"),
    ("train.py", (*TINY, "seed=${nothing}"), "nothing"),
    ("train.py", (*TINY, "seed={"), "seed={"),
    ("train.py", (*TINY, "data.path=missing"), "missing"),
    ("train.py", ("resume=missing",), "missing"),
    ("eval.py", ("run=", "device=cpu"), "run is not set"),
    ("eval.py", ("run=missing", "device=cpu"), "missing is not a run folder"),
    ("eval.py", (*EVAL, "-m"), "-m: expected KEY=VALUE"),
    ("eval.py", (*EVAL, "seed=abc"), "seed=abc: expected a whole number"),
    ("eval.py", (*EVAL, "checkpoint=newest"), "checkpoint=newest"),
    ("eval.py", (*EVAL, "device=potato"), "device=potato"),
    ("eval.py", (*EVAL, "task.stride=0"), "task.stride=0: expected a whole number >= 1"),
    ("eval.py", (*EVAL, "task.strid=1"), "did you mean task.stride?"),
    ("eval.py", (*EVAL, "task.split=tset"), "task.split=tset: expected one of train, validation, test"),
    ("eval.py", (*EVAL, "~task"), "~task"),
    ("eval.py", ("run=run", "task=mqr"), "did you mean mqar?"),
    ("eval.py", ("run=run", "task=niah", "task.options=1"), "task.options=1"),
    ("eval.py", ("run=run", "task=niah", "task.variants=[double]"), "no variant 'double'"),
    ("eval.py", ("run=run", "task.members.mqar.samples=0"), "task.members.mqar.samples=0"),
    ("eval.py", ("run=run", "task=qa", "task.preset=squat"), "did you mean squad?"),
    ("scripts/generate.py", ("run=run", "temperature=nan"), "temperature=nan"),
    ("scripts/convert.py", ("run=run", "to=mha"), "to=mha: expected one of gqa, mqa"),
    ("scripts/plan.py", ("contxt=8",), "did you mean context?"),
    ("scripts/plan.py", ("attentions=softmax,nope",), "nope"),
    ("scripts/report.py", ("missing", "out=lines.jsonl"), "out=lines.jsonl"),
    ("scripts/compare.py", ("run", "speed=lines.jsonl"), "speed=lines.jsonl: expected the JSON"),
    ("scripts/compare.py", ("run", "picture=lines.jsonl/x.png"), "picture=lines.jsonl/x.png"),
    ("scripts/conversion_table.py", ("run", "rounds=0"), "rounds=0: expected a whole number >= 1"),
    ("scripts/gallery.py", ("out",), "out has no value: expected out=VALUE"),
    ("scripts/bench_layers.py", ("length=1.5",), "length=1.5: expected a whole number"),
    ("scripts/bench_models.py", ("contexts=",), "contexts=[]"),
    ("scripts/bench_training.py", ("steps=2",), "steps=2"),
    ("scripts/compile_kernels.py", ("family=linear,quadratic",), "family=[linear, quadratic]"),
    ("scripts/tune_kernels.py", ("dtype=fp8",), "dtype=fp8: expected one of bf16, fp16, fp32"),
    ("scripts/bench_kernels.py", ("minutes=inf",), "minutes=inf"),
    ("scripts/fuzz_options.py", ("programs=everything",), "programs=everything"),
]
TAKEN = [
    ("train.py", (*TINY, "trainer.max_steps=2e0", "attention=window")),
    ("eval.py", (*EVAL, "task.max_documents=1e0", "task.fresh=true")),
    ("scripts/compare.py", ("run", "picture=one.png", "out=made/table.md")),
    ("scripts/generate.py", ("run=run", "device=cpu", "prompt=a [b", "max_new_tokens=2")),
]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    work = tmp_path_factory.mktemp("fuzz")
    load_programs()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CACHE", str(work / "cache"))
        make_start(work / "start", work)
        yield work / "start"


@pytest.mark.slow
def test_wrong_arguments_are_one_line_and_leave_nothing(start):
    cases = [Case(program, arguments) for program, arguments, _ in REFUSED]
    faults = []
    for number, ended in run_cases(cases, start, start.parent, jobs=1):
        if verdict(ended) != REFUSAL or REFUSED[number][2] not in ended.stderr:
            faults.append((cases[number], verdict(ended), ended.stderr))
    assert faults == []


@pytest.mark.slow
def test_right_arguments_are_taken(start):
    for program, arguments in TAKEN:
        ended = run_case(Case(program, arguments), start, start.parent)
        assert verdict(ended) == SUCCESS, (arguments, ended.stderr)


def test_every_script_explains_its_options(start):
    for file in sorted((ROOT / "scripts").glob("*.py")):
        ended = run_case(Case(f"scripts/{file.name}", ("--help",)), start, start.parent)
        assert (ended.status, ended.stderr, ended.left) == (0, "", ()), file
        lines = ended.stdout.partition("\nOptions:\n")[2].splitlines()
        assert lines and all("=" in line for line in lines if line.startswith("    ") and line[4] != " "), file


@pytest.mark.slow
def test_help_of_eval_has_every_option_of_every_task(start):
    text = run_case(Case("eval.py", ("--help",)), start, start.parent).stdout
    for space in eval_spaces():
        task = next(a.removeprefix("task=") for a in space.base if a.startswith("task="))
        section = text.partition(f"\ntask={task}: ")[2].partition("\ntask=")[0]
        own = {key.split(".")[1] for key in space.defaults if key.startswith("task.") and key != "task.name"}
        assert section and {key for key in own if f"    task.{key}=" not in section} == set(), task


def test_the_same_seed_draws_the_same_cases():
    spaces = [train_spaces(), eval_spaces()]
    first, second = (draw_cases(spaces, [1, 1], 50, seed=3) for _ in range(2))
    assert first == second != draw_cases(spaces, [1, 1], 50, seed=4)
    assert {case.program for case in first} == {"train.py", "eval.py"}


ENDINGS = {
    "print('x')": SUCCESS,
    "import sys; print('error: no', file=sys.stderr); sys.exit(2)": REFUSAL,
    "import sys; print('error: no', file=sys.stderr); open('left', 'w'); sys.exit(2)": "a refusal leaves left behind",
    "import sys; print('error: a\\nerror: b', file=sys.stderr); sys.exit(2)": "2 lines of error",
    "import sys; print('odd\\nerror: b', file=sys.stderr); sys.exit(2)": "more than one line: odd",
    "import sys; sys.exit(2)": "0 lines of error: silence",
    "raise KeyError('a')": "traceback: KeyError",
    "import sys; sys.exit('usage')": "status 1: usage",
    "import os; os.kill(os.getpid(), 9)": "status -9",
    "import time; time.sleep(60)": "no end after",
    "bytearray(2**45)": "traceback: MemoryError",
}


@pytest.mark.parametrize("code", ENDINGS)
def test_endings_are_told_apart(tmp_path, code):
    program = tmp_path / "program.py"
    program.write_text(code)
    (tmp_path / "start").mkdir()
    write_text(tmp_path / "start")
    ended = run_case(Case(str(program), ()), tmp_path / "start", tmp_path, seconds=3)
    assert verdict(ended).startswith(ENDINGS[code])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["program.py", "start"]
    assert json.loads((tmp_path / "start" / "qa.json").read_text())["data"]
