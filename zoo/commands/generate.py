"""Continue a text with a trained run: ``python scripts/generate.py run=RUN_DIR prompt="Once upon a time"``.

Prints the prompt and its continuation as it is made, and nothing else, on stdout. The prompt may have any characters.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator

from zoo.cli import choose_device
from zoo.config import ConfigError
from zoo.options.programs import GenerationOptions, read_program
from zoo.paths import expand, take_text


def main(arguments: list[str]) -> None:
    """Continues one prompt."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    prompt, others = take_text(arguments, "prompt")
    config = read_program("generate", GenerationOptions, others, __doc__)
    prompt = read_prompt(prompt, config.prompt_file)
    try:
        for piece in continuation(config, prompt):
            sys.stdout.write(piece)
            sys.stdout.flush()
        print(flush=True)
    except BrokenPipeError:  # the reader has seen enough; what is buffered must not fail again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def read_prompt(prompt: str | None, file: str | None) -> str:
    """Returns the text to continue, from the command line or from a file.

    Raises:
        ConfigError: if both are given, or the text is not UTF-8.
    """
    if prompt is not None and file is not None:
        raise ConfigError("prompt and prompt_file were both given: expected one of them.")
    try:
        if file is not None:
            return expand(file).read_bytes().decode("utf-8")
        return os.fsencode(prompt or "").decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"the prompt is not UTF-8 at byte {error.start}: convert it first.") from error


def continuation(config: GenerationOptions, prompt: str) -> Iterator[str]:
    """Yields the prompt, then pieces of its continuation up to the document token or ``max_new_tokens``."""
    from zoo.data import encode_batch
    from zoo.generation.text_stream import TextStream
    from zoo.runs.loaded_run import open_run

    run = open_run(config.run, config.checkpoint, choose_device(config.device))
    ids = [run.document_token, *encode_batch(run.tokenizer, [prompt])[0].tolist()]
    tokens = run.decoder.stream(
        ids,
        config.max_new_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        seed=config.seed,
        stop_token=run.document_token,
    )
    yield prompt
    text = TextStream(run.tokenizer, ids)
    for token in tokens:
        yield text.push(token)
    yield text.finish()
