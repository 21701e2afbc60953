"""Training data of a run: built from options, and checked against the checkpoint of a resumed run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zoo.data import load_tokenizer, tokenizer_fingerprint
from zoo.data.datamodule import LanguageData
from zoo.data.sources.build import build_source
from zoo.data.sources.moved import ChangedData, check_moved
from zoo.model.checkpoint import CheckpointError
from zoo.model.trained import Trained
from zoo.options.groups.data import DataOptions, TokenizerOptions
from zoo.options.groups.trainer import TrainerOptions
from zoo.paths import expand
from zoo.runs.run_folder import RunFolder


def build_data(
    options: DataOptions, tokenizer: TokenizerOptions, trainer: TrainerOptions, seed: int, given: Path | None = None
) -> LanguageData:
    """Builds the data of a run without reading anything yet.

    Args:
        options: options of the text and its sequences.
        tokenizer: options of the tokenizer that is built where none is given.
        trainer: options with the batch sizes.
        seed: seed of the order of sequences, and of recall samples.
        given: folder of the tokenizer of an earlier run.
    """
    return LanguageData(
        build_source(options.source),
        tokenizer.model_dump(),
        length=options.length,
        isolate_documents=options.isolate_documents,
        batch_size=trainer.batch_size,
        micro_batch_size=trainer.micro_batch_size,
        num_workers=options.num_workers,
        cache_dir=options.cache_dir,
        seed=seed,
        val_tokens=options.val_tokens,
        tokenizer=load_tokenizer(given) if given else None,
        recall=options.recall,
        verify=options.verify,
    )


def given_tokenizer(run: RunFolder, resumed: Trained | None, init: str | None) -> Path | None:
    """Returns the folder of an existing tokenizer: that of a resumed run or of the run ``init``, else None."""
    if resumed:
        return run.tokenizer
    return RunFolder(expand(init)).tokenizer if init else None


def prepare_data(data: LanguageData, run: Path, resumed: Trained | None) -> None:
    """Builds or opens tokenizer and token stores.

    Args:
        data: data of the run, with the tokenizer of its folder if it is resumed.
        run: folder of the run, for messages.
        resumed: metadata of the checkpoint from which the run resumes; None for a new run.

    Raises:
        CheckpointError: if data or tokenizer of a resumed run are not those of its checkpoint.
    """
    changed = f"of {run} has changed since its checkpoint was written"
    if resumed and data.given_tokenizer:
        try:
            check_moved(data.source, resumed.data, data.given_tokenizer, data.cache_dir, [data.cache_dir])
        except ChangedData as error:
            raise CheckpointError(f"the data {changed}: {error}.") from error
    data.prepare()
    if resumed and (resumed.tokenizer, resumed.data) != (tokenizer_fingerprint(data.tokenizer), data.fingerprint):
        raise CheckpointError(
            f"the data or the tokenizer {changed}: an exact continuation is not possible. Restore them, or start a new "
            "run."
        )


def trained_on(data: LanguageData, plugins: Sequence[str], earlier: Trained | None) -> Trained:
    """Returns the metadata for checkpoints of a run, before its first step.

    Args:
        data: prepared data.
        plugins: external packages of the run.
        earlier: metadata of the checkpoint that the weights come from, whose recall tasks are carried over.
    """
    rows = data.recall_rows
    learned = rows.facts() if rows is not None and rows.options.share > 0 else earlier.recall if earlier else None
    return Trained(
        tokenizer=tokenizer_fingerprint(data.tokenizer),
        train_length=data.length,
        tokens=0,
        tokens_per_step=data.batch_size * data.length,
        data=data.fingerprint,
        plugins=plugins,
        recall=learned,
    )
