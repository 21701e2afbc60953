"""A sweep's folder made by hand: what train.py -m leaves, with numbers that can be worked out on paper."""

import json
import math
import statistics

from omegaconf import OmegaConf

from tests.evaluation.result_files import record, results
from zoo.evaluation.results.records import write_results
from zoo.evaluation.scoring.answer_records import make_records

ARMS = {
    "linear": ["lightning"] * 4,
    "hybrid": ["lightning"] * 3 + ["softmax"],
    "exact": ["softmax"] * 4,
}
BITS = {"linear": (2.0, 2.25, 2.5), "hybrid": (1.75, 2.125, 2.25), "exact": (1.75, 2.0, 2.5)}  # of seeds 0, 1, 2
RIGHT = {"linear": (2, 1, 3), "hybrid": (6, 5, 7), "exact": (8, 7, 8)}  # of 8 answers at 64 tokens; one fewer at 128
LENGTHS = (64, 128)
DOCUMENTS, BYTES, TOKENS, SAMPLES = 8, 1000, 400, 8
RATES = {"linear": 300.0, "hybrid": 200.0, "exact": 100.0}
T2 = 4.302652729911275  # Student's 0.975 quantile for two degrees of freedom


def half(values):
    """Half of a 95 % interval of a mean of three."""
    return T2 * statistics.stdev(values) / math.sqrt(3)


def write_sweep(folder, arms=None, seeds=(0, 1, 2), reference="exact", **facts):
    """Every arm with every seed finished; returns the folder."""
    arms = ARMS if arms is None else arms
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "schema": "zoo-sweep/1",
        "name": "ratio",
        "question": "How many softmax layers are enough?",
        "command": "python train.py -m sweep=ratio",
        "axis": {"key": "schedule.pattern", "label": "layers"},
        "arms": [{"name": name, "overrides": [f"schedule.pattern={'+'.join(ls)}"]} for name, ls in arms.items()],
        "seeds": list(seeds),
        "tasks": ["perplexity", "mqar task.lengths=[64,128]"],
        "reference": reference,
        "match": "params",
        "time": "2026-01-02T03:04:05+00:00",
    }
    (folder / "sweep.json").write_text(json.dumps(content | facts))
    for arm, layers in arms.items():
        for seed in seeds:
            place = f"arms/{arm}/seed-{seed}"
            log(folder, arm, seed, "started")
            write_run(folder / place, layers, seed, *numbers(arm, seed))
            log(folder, arm, seed, "finished", seconds=12.5)
    return folder


def numbers(arm, seed):
    """Bits per byte, right answers and tokens/s of an arm; an arm with another name has those of ``hybrid``."""
    name = arm if arm in BITS else "hybrid"
    return BITS[name][seed], RIGHT[name][seed], RATES[name]


def log(folder, arm, seed, status, reason=None, seconds=None):
    """Add a line to the ledger."""
    line = {"key": f"{arm}/{seed}", "arm": arm, "seed": seed, "overrides": [f"schedule.pattern={arm}", f"seed={seed}"]}
    line |= {"folder": f"arms/{arm}/seed-{seed}", "status": status, "reason": reason}
    with (folder / "ledger.jsonl").open("a") as file:
        file.write(json.dumps(line | {"time": "2026-01-02T03:04:05+00:00", "seconds": seconds}) + "\n")


def write_run(run, layers, seed, bits, right, rate):
    """A run folder with configuration, metrics and two evaluations."""
    run.mkdir(parents=True, exist_ok=True)
    model = {"name": "toy", "width": 16, "depth": 4, "heads": 2, "style": "llama", "mlp_width": None}
    model |= {"tie_embeddings": True, "separators": []}
    config = {"seed": seed, "attention": "lightning", "schedule": {"pattern": "+".join(layers), "patch": None}}
    config |= {"mixers": {"lightning": {}, "softmax": {}}, "model": model, "data": {"name": "text", "length": 64}}
    OmegaConf.save(OmegaConf.create(config), run / "config.yaml")
    rows = [{"step": n, "tokens": 100 * n, "train/bits_per_byte": bits + 4 / n} for n in range(1, 9)]
    rows = [row | {"train/tokens_per_second": rate + row["step"]} for row in rows]
    rows += [{"step": n, "tokens": 100 * n, "val/bits_per_byte": bits + 2 / n} for n in (4, 8)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 9, "tok')
    software = {"time": f"seed {seed}", "python": "3.11", "packages": {"torch": "2.13"}, "command": ["train.py"]}
    (run / "environment.json").write_text(json.dumps(software))
    (run / "git.json").write_text('{"commit": "abc123", "branch": "main", "dirty": false}')
    write_perplexity(run, layers, bits)
    write_mqar(run, layers, right)


def write_perplexity(run, layers, bits):
    """Documents whose bits per byte lie around ``bits``, by the same amounts in every run."""
    shifts = [0.125 * (n - (DOCUMENTS - 1) / 2) for n in range(DOCUMENTS)]
    nats = [(bits + shift) * BYTES * math.log(2) for shift in shifts]
    samples = [
        {"id": f"d{n}", "nats": value, "tokens": TOKENS, "bytes": BYTES, "words": 200}
        | {"recall_nats": value / 4, "recall_tokens": TOKENS // 2, "recall_bytes": BYTES // 2}
        for n, value in enumerate(nats)
    ]
    whole = {"perplexity": math.exp(sum(nats) / (DOCUMENTS * TOKENS)), "bits_per_byte": bits}
    parts = {("window", name): value for name, value in whole.items()}
    parts |= {("recall", "bits_per_byte"): bits / 2, ("other", "bits_per_byte"): bits * 1.5}
    records = [
        record("perplexity", variant, 64, None, metric, value, (value - 0.5, value + 0.5), 8, "doc", None, False)
        for (variant, metric), value in parts.items()
    ]
    protocol = {"window": 64, "stride": 64, "data": "text", "split": "test", "data_sha": "f00"}
    write(run, "perplexity-text-test", layers, protocol, records, samples)


def write_mqar(run, layers, right, lengths=LENGTHS, samples=SAMPLES, variants=("pairs4",)):
    """``right`` answers of ``samples`` at the first length, one fewer at the next; and a baseline that is not shown.

    With several variants, ``right`` has a number for each.
    """
    lines, records = [], []
    for variant, count in zip(variants, right if isinstance(right, tuple) else (right,)):
        for number, length in enumerate((*lengths, 0)):
            name = variant if length else f"{variant}/no_context"
            place = {"task": "mqar", "variant": name, "length": length, "depth": None}
            cell = [
                {"id": f"{variant}:{length}:{n}", **place, "nats": [2.0], "tokens": [1]}
                | {"correct": [n < count - number], "rank": [int(n >= count)], "choices": [4]}
                for n in range(samples)
            ]
            lines += cell
            records += make_records(place, cell, seed=0)
    write(run, "mqar", layers, {"seed": 0, "haystack_sha": "cafe", "choices": 4}, records, lines)


def write(run, stem, layers, protocol, records, samples):
    """A result file."""
    growing = {str(n): 1024 * n * layers.count("softmax") for n in LENGTHS}
    state = {length: 512 * layers.count("lightning") for length in growing}
    model = {"params": 1000 + layers.count("softmax"), "layers": list(layers)}
    found = results(records, protocol, **model, **{"state_bytes@L": state, "kv_bytes@L": growing})
    write_results(run / "eval" / f"{stem}.json", found, samples)
