"""Fewer key heads for a trained run: ``python scripts/convert.py run=RUN_DIR to=gqa kv_heads=2 method=svd``.

Writes a new run folder and prints the relative errors of every converted layer by method.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.cli import choose_device
from zoo.options.programs import ConversionOptions, read_program
from zoo.paths import program_command
from zoo.plugins import plugin_words

if TYPE_CHECKING:
    from zoo.conversion.convert_run import Conversion

COLUMNS = ("keys", "values", "scores", "outputs")


def main(arguments: list[str]) -> None:
    """Converts one run."""
    config = read_program("convert", ConversionOptions, arguments, __doc__)
    from zoo.conversion.convert_run import convert_run
    from zoo.runs.loaded_run import open_run

    device, data = choose_device(config.device), config.data
    run = open_run(config.run, config.checkpoint, device, data.path, data.cache_dir)
    whiten_tokens = config.whiten_tokens if config.whiten else None
    done = convert_run(run, config.to, config.kv_heads, config.method, config.out, whiten_tokens)
    metric = f"of keys and values on {whiten_tokens:,} tokens" if whiten_tokens else "of projections"
    print(f"relative errors {metric}\n{error_table(done, config.method)}")
    before, after = done.cache_bytes
    length = run.trained.train_length
    print(f"cache of {length:,} tokens: {before:,} bytes before, {after:,} after")
    evaluate = program_command("eval.py", f"run={config.run},{done.folder}", *plugin_words())
    print(f"written: {done.folder}\nevaluate: {evaluate}")


def error_table(done: Conversion, chosen: str) -> str:
    """Returns the relative errors by layer and method, the written method marked."""
    lines = [f"{'method':16}{'layer':>6}" + "".join(f"{name:>10}" for name in COLUMNS)]
    for method, rows in done.errors.items():
        for layer, row in zip(done.plan.layers, rows):
            values = (getattr(row, name) for name in COLUMNS)
            cells = "".join(f"{'-' if value is None else f'{value:.4f}':>10}" for value in values)
            lines.append(f"{method + (' (written)' if method == chosen else ''):16}{layer:6}{cells}")
    return "\n".join(lines)
