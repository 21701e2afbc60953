"""Numbers of a sweep's report, against sums on paper: means, intervals, facts, and what is missing."""

import gzip
import json
import math
import statistics

import pytest

from tests.sweeps import sweep_folder
from tests.sweeps.sweep_folder import ARMS, BITS, LENGTHS, RIGHT, half, write_mqar, write_perplexity, write_sweep
from zoo.config import ConfigError
from zoo.evaluation.results.records import read_samples
from zoo.model import Decoder, DecoderConfig
from zoo.sweeps.page.analysis import analyze
from zoo.sweeps.page.analysis import number as shown
from zoo.sweeps.page.arm_tables import commands, detail_tables, group_tables, signed
from zoo.sweeps.page.figures import draw_all
from zoo.sweeps.page.read import read_sweep


def odds(share):
    return share / (1 - share)


def test_means_and_intervals_are_students_over_seeds(standard):
    for arm in ARMS:
        found = standard.summaries[arm, standard.measures.loss]
        assert found.mean == pytest.approx(statistics.fmean(BITS[arm]))
        factor = math.exp(half(BITS[arm]) / found.mean)  # of the logarithm
        assert found.ci95 == pytest.approx((found.mean / factor, found.mean * factor))
        assert (found.n, found.over, found.deviation) == (3, "seeds", statistics.stdev(BITS[arm]))


def test_recall_is_the_mean_over_lengths_within_each_seed(standard):
    measure = standard.measures.recall
    assert measure.label == "mqar: answers right" and len(measure.parts) == 2
    for arm in ARMS:
        values = [(right + right - 1) / 16 for right in RIGHT[arm]]
        found = standard.summaries[arm, measure]
        assert found.mean == pytest.approx(statistics.fmean(values))
        spread = half(values) / (found.mean * (1 - found.mean))  # of the log odds
        assert [odds(end) / odds(found.mean) for end in found.ci95] == pytest.approx(
            [math.exp(-spread), math.exp(spread)]
        )


def test_recall_is_told_by_length(standard):
    (table,) = group_tables(standard)  # one variant: no table of variants
    assert table.title == "Answers right by length"
    assert [row[0].text for row in table.rows] == [f"mqar, {n:,} tokens: answers right" for n in LENGTHS]
    assert table.head[1:] == list(ARMS)
    for number, row in enumerate(table.rows):
        for arm, cell in zip(ARMS, row[1:]):
            assert float(cell.text) == pytest.approx(statistics.fmean(r - number for r in RIGHT[arm]) / 8, abs=1e-3)
    assert all(
        row[0].text not in {cell.text for t in detail_tables(standard) for cell in t.rows[0]} for row in table.rows
    )


@pytest.mark.slow
def test_recall_is_told_by_variant_where_there_are_several(tmp_path):
    folder = write_sweep(tmp_path / "s")
    for arm in ARMS:
        for seed in range(3):
            run = folder / "arms" / arm / f"seed-{seed}"
            right = RIGHT[arm][seed] - 1
            write_mqar(run, ARMS[arm], (RIGHT[arm][seed], right), variants=("pairs4", "pairs8"))
    analysis = analyze(read_sweep(folder))
    _, by_variant = group_tables(analysis)
    assert [row[0].text for row in by_variant.rows] == [f"mqar, pairs{n}: answers right" for n in (4, 8)]
    for number, row in enumerate(by_variant.rows):
        for arm, cell in zip(ARMS, row[1:]):
            counts = [max(r - number - longer, 0) for r in RIGHT[arm] for longer in (0, 1)]
            expected = statistics.fmean(counts) / 8
            assert float(cell.text) == pytest.approx(expected, abs=1e-3)
    names = [picture.name for picture in draw_all(analysis, tmp_path)]
    assert "share-variants" in names and (tmp_path / "share-variants.png").stat().st_size > 1000


def test_the_command_does_not_say_where_the_folder_was(tmp_path):
    command = "python train.py -m sweep=ratio 'hydra.sweep.dir=/some where/else' seed=0,1"
    folder = write_sweep(tmp_path / "s", command=command)
    assert commands(analyze(read_sweep(folder)))[0] == "python train.py -m sweep=ratio seed=0,1"


def test_arms_that_were_never_started_have_no_command(tmp_path):
    folder = write_sweep(tmp_path / "s", seeds=(0,))
    facts = json.loads((folder / "sweep.json").read_text())
    facts["arms"].insert(0, {"name": "later", "overrides": ["attention=bigbird"]})
    (folder / "sweep.json").write_text(json.dumps(facts))
    found = commands(analyze(read_sweep(folder)))[1:]
    assert len(found) == len(ARMS) and not any("bigbird" in command for command in found)


def test_answers_told_in_another_way_are_shown_and_no_part_of_the_mean(tmp_path):
    """Variants with a slash, as of generated text and of lm-evaluation-harness."""
    folder = write_sweep(tmp_path / "s", seeds=(0,))
    for arm in ARMS:
        file = folder / "arms" / arm / "seed-0" / "eval" / "mqar.json"
        content = json.loads(file.read_text())
        first = next(r for r in content["results"] if r["metric"] == "exact_match")
        content["results"].append(first | {"variant": "pairs4/generated", "value": 0.125})
        file.write_text(json.dumps(content))
    analysis = analyze(read_sweep(folder))
    shown = [m for m in analysis.measures.all if m.variant == "pairs4/generated"]
    assert [analysis.summaries["exact", m].mean for m in shown] == [0.125]
    assert {part.variant for part in analysis.measures.recall.parts} == {"pairs4"}


def test_baselines_without_context_are_no_part_of_recall(standard):
    assert {m.variant for m in standard.measures.all if m.task == "mqar" and not m.parts} == {"pairs4"}
    rank = next(m for m in standard.measures.headline if m.label == "mqar: best among the values, chance 0.25")
    assert standard.summaries["exact", rank].mean == pytest.approx(statistics.fmean([1, 13 / 16, 1]), abs=0.1)


def test_what_is_next_to_nothing_is_printed_as_0():
    assert [signed(value) for value in (-3.16e-05, 0.0, 0.0469, -0.5949, 12.345)] == [
        "0",
        "0",
        "+0.047",
        "-0.595",
        "+12.3",
    ]
    assert [shown(value) for value in (9.2e-05, -1e-9, 0.037735, 3.388122, 12345.6)] == [
        "0.0001",
        "0",
        "0.0377",
        "3.388",
        "12,346",
    ]


def test_facts_of_the_arms(standard):
    assert {arm: facts.share for arm, facts in standard.facts.items()} == {"linear": 0, "hybrid": 0.25, "exact": 1}
    assert standard.cache_length == 128
    assert standard.cost("hybrid", "cache") == 3 * 512 + 1024 * 128
    want = Decoder(DecoderConfig(257, 16, 4, 2, ARMS["hybrid"])).cost(64).flops_per_token
    assert standard.facts["hybrid"].flops == want


def test_named_instances_count_as_the_mixers_they_are(tmp_path):
    folder = write_sweep(tmp_path, {"exact": ["lightning", "wide", "wide", "lightning"]}, seeds=(0,))
    config = folder / "arms/exact/seed-0/config.yaml"
    config.write_text(config.read_text().replace("  softmax: {}", "  wide: {name: gqa, kv_heads: 1}"))
    facts = analyze(read_sweep(folder)).facts["exact"]
    assert facts.share == 0.5 and facts.flops is not None


def test_unfinished_and_failed_runs_are_said_and_not_counted(tmp_path):
    folder = write_sweep(tmp_path, seeds=(0, 1))
    sweep_folder.log(folder, "hybrid", 1, "failed", "loss is NaN at step 7")
    sweep_folder.log(folder, "linear", 1, "started")
    (folder / "ledger.jsonl").open("a").write('{"key": "linear/0", "arm": "linear", "sta')
    (folder / "sweep.json").write_text(
        (folder / "sweep.json").read_text().replace('"seeds": [0, 1]', '"seeds": [0, 1, 2]')
    )
    analysis = analyze(read_sweep(folder))
    assert analysis.progress == "4 of 9 runs finished, 1 failed, 4 not finished yet" and not analysis.complete
    (failed,) = analysis.failures
    assert (failed.arm, failed.seed, failed.reason) == ("hybrid", 1, "loss is NaN at step 7")
    assert {arm: analysis.summaries[arm, analysis.measures.loss].n for arm in ARMS} == {
        "linear": 1,
        "hybrid": 1,
        "exact": 2,
    }
    assert analysis.comparisons["hybrid", analysis.measures.loss].difference.n == 1


def test_runs_of_options_that_were_changed_since_do_not_count(tmp_path):
    runs = [{"arm": arm, "seed": 0, "key": f"{arm}/0"} for arm in ARMS]
    folder = write_sweep(tmp_path, seeds=(0,), runs=[*runs[:1], runs[1] | {"key": "of another depth"}, runs[2]])
    sweep = read_sweep(folder)
    assert [run.status for run in sweep.runs] == ["finished", "waiting", "finished"]


def test_missing_and_damaged_files_are_named(tmp_path):
    folder = write_sweep(tmp_path, seeds=(0,), tasks=["perplexity", "mqar task.lengths=[64]", "niah", "offline"])
    runs = {arm: folder / "arms" / arm / "seed-0" for arm in ARMS}
    (runs["linear"] / "eval" / "mqar.json").unlink()
    (runs["hybrid"] / "eval" / "mqar.json").write_text('{"schema": "zoo-eval/1", "res')
    (runs["hybrid"] / "config.yaml").unlink()
    (runs["exact"] / "eval" / "perplexity-text-test.samples.jsonl.gz").write_bytes(b"\x1f\x8b broken")
    (runs["exact"] / "metrics.jsonl").unlink()
    analysis = analyze(read_sweep(folder))
    notes = "\n".join(analysis.notes)
    assert "linear, seed 0: no result of mqar" in notes
    assert "hybrid, seed 0: eval/mqar.json cannot be read" in notes
    assert "hybrid, seed 0: seed-0 is not a run folder: it has no config.yaml" in notes
    assert "exact, seed 0: eval/perplexity-text-test.json has no readable samples" in notes
    assert "niah: no finished run has a result of it" in notes and "offline:" not in notes
    assert str(tmp_path) not in notes
    assert analysis.facts["hybrid"].flops is None and analysis.facts["linear"].flops is not None
    assert analysis.comparisons["linear", analysis.measures.loss].verdict == "not tested"  # without samples to pair


def test_other_questions_are_not_compared(tmp_path):
    folder = write_sweep(tmp_path, seeds=(0,))
    file = folder / "arms/linear/seed-0/eval/perplexity-text-test.json"
    file.write_text(file.read_text().replace('"f00"', '"other text"'))
    analysis = analyze(read_sweep(folder))
    assert ("linear", analysis.measures.loss) in analysis.summaries
    assert ("linear", analysis.measures.loss) not in analysis.comparisons
    assert ("hybrid", analysis.measures.loss) in analysis.comparisons


def test_values_of_other_samples_are_not_compared_either(tmp_path):
    """Perplexity per token has no samples of its own: those of its file say whether the text was the same."""
    folder = write_sweep(tmp_path, seeds=(0,))
    file = folder / "arms/linear/seed-0/eval/perplexity-text-test.samples.jsonl.gz"
    lines = gzip.decompress(file.read_bytes()).decode()
    file.write_bytes(gzip.compress(lines.replace('"d0"', '"another"').encode()))
    analysis = analyze(read_sweep(folder))
    assert analysis.measures.loss and not [
        m for arm, m in analysis.comparisons if (arm, m.task) == ("linear", "perplexity")
    ]
    assert [m for arm, m in analysis.comparisons if (arm, m.task) == ("hybrid", "perplexity")]


@pytest.mark.parametrize("reference", ["exact", "nothing"])
def test_a_reference_that_has_nothing_is_said(tmp_path, reference):
    folder = write_sweep(tmp_path, seeds=(0,), reference=reference)
    sweep_folder.log(folder, "exact", 0, "failed", "out of memory")
    analysis = analyze(read_sweep(folder))
    assert analysis.comparisons == {}
    assert any(note.startswith(f"the reference {reference!r}") for note in analysis.notes)


def test_a_mean_over_tasks_needs_all_of_them(tmp_path):
    folder = write_sweep(tmp_path, seeds=(0,))
    for arm in ("linear", "exact"):
        run = folder / "arms" / arm / "seed-0"
        write_mqar(run, ARMS[arm], 4, lengths=(256,), samples=4)
        (run / "eval" / "mqar.json").rename(run / "eval" / "mqar-other.json")
        write_mqar(run, ARMS[arm], RIGHT[arm][0])
    analysis = analyze(read_sweep(folder))
    recall = analysis.measures.recall
    assert recall.label == "mean of 2 tasks: answers right"
    assert analysis.summaries["linear", recall].mean == pytest.approx((3 / 16 + 1) / 2)
    assert ("hybrid", recall) not in analysis.summaries


def test_the_sum_over_samples_is_the_difference_that_is_shown(tmp_path):
    """Documents of unequal difference: the value is that of all nats over all bytes."""
    folder = write_sweep(tmp_path, seeds=(0,))
    write_perplexity(folder / "arms/linear/seed-0", ARMS["linear"], 3.0)
    lines = [
        {
            line["id"]: line["nats"]
            for line in read_samples(folder / f"arms/{arm}/seed-0/eval/perplexity-text-test.json")
        }
        for arm in ("linear", "exact")
    ]
    want = sum(lines[0][key] - lines[1][key] for key in lines[0]) / (8 * 1000 * math.log(2))
    analysis = analyze(read_sweep(folder))
    found = analysis.comparisons["linear", analysis.measures.loss].difference
    assert found.mean == pytest.approx(want) == pytest.approx(1.25)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no sweep.json"),
        ("{", "sweep.json is damaged"),
        ("[]", "has schema 'list'"),
        (json.dumps({"schema": "zoo-sweep/2"}), "has schema 'zoo-sweep/2': expected 'zoo-sweep/1'"),
        (json.dumps({"schema": "zoo-sweep/1", "name": "x", "arms": []}), "has no seeds, reference"),
    ],
)
def test_what_is_no_sweep_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_sweep(tmp_path)


def test_a_sweep_that_has_just_begun(tmp_path):
    folder = write_sweep(tmp_path)
    (folder / "ledger.jsonl").unlink()
    analysis = analyze(read_sweep(folder))
    assert analysis.progress == "0 of 9 runs finished, 9 not finished yet"
    assert analysis.summaries == {} and analysis.measures.loss is None
