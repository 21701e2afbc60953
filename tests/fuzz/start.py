"""The folder that every case begins in: a little text, a damaged file, an empty folder, and a trained run."""

from __future__ import annotations

import json
from pathlib import Path

from tests.fuzz.forked import Case, run_case
from tests.fuzz.judge import SUCCESS, verdict

WORDS = [
    "the",
    "of",
    "a",
    "model",
    "reads",
    "what",
    "it",
    "has",
    "seen",
    "before",
    "and",
    "says",
    "which",
    "token",
    "comes",
    "next",
    "in",
    "the",
    "text",
]
RUN = ("experiment=tiny", "data=text", "data.path=small", "trainer.max_steps=2", "attention=gqa", "hydra.run.dir=run")
EVALUATION = ("run=run", "device=cpu", "task=perplexity")


def write_text(start: Path) -> None:
    """A few documents in several formats, and files that are none."""
    for folder in ("small", "empty"):
        (start / folder).mkdir(parents=True, exist_ok=True)
    for number in range(12):
        words = [WORDS[(number * i * i + i) % len(WORDS)] for i in range(400)]
        (start / "small" / f"{chr(97 + number)}.txt").write_text(" ".join(words) + "\n", encoding="utf-8")
    lines = [json.dumps({"text": " ".join(WORDS[i % 7 :])}) for i in range(40)]
    (start / "lines.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (start / "qa.json").write_text(json.dumps(squad()), encoding="utf-8")
    (start / "broken.jsonl").write_bytes(b'{"text": 1}\n\xff\n')


def squad() -> dict[str, object]:
    """Two questions in SQuAD's format."""
    asked = [
        {"id": word, "question": f"which {word}?", "answers": [{"text": word, "answer_start": 0}]} for word in "ab"
    ]
    paragraphs = [{"context": f"{one['id']} is here", "qas": [one]} for one in asked]
    return {"version": "1", "data": [{"title": "t", "paragraphs": paragraphs}]}


def make_start(start: Path, work: Path) -> None:
    """Write the folder; the run is trained and evaluated in forks, so that this process starts no thread.

    Raises:
        RuntimeError: if the run cannot be made.
    """
    write_text(start)
    bare = work / "bare"
    bare.mkdir()
    for program, arguments in (("train.py", RUN), ("eval.py", EVALUATION)):
        arguments = tuple(
            a.replace("=run", f"={start / 'run'}").replace("=small", f"={start / 'small'}") for a in arguments
        )
        ended = run_case(Case(program, arguments), bare, work, seconds=300)
        if verdict(ended) != SUCCESS:
            raise RuntimeError(f"{program} {' '.join(arguments)} ended with status {ended.status}: {ended.stderr}")
