"""What a case may end in: success, or one line that says what was wrong."""

from __future__ import annotations

import re

from tests.fuzz.forked import Ended

SUCCESS, REFUSAL = "success", "refusal"
HINT = "Set the environment variable HYDRA_FULL_ERROR=1"
TOLD = ("warning: ", "note: ", "tokenizing ")  # lines that may stand before an error: what is told, and progress


def verdict(ended: Ended) -> str:
    """``success``, ``refusal``, or the kind of fault in a few words: the same words for the same fault."""
    lines = [line for line in ended.stderr.splitlines() if line.strip() and not line.startswith(HINT)]
    if ended.status is None:
        return f"no end after {ended.seconds:.0f} s"
    if "Traceback (most recent call last)" in ended.stderr + ended.stdout:
        return f"traceback: {_general(_raised(lines))}"
    if ended.status == 0:
        wrong = [line for line in lines if line.startswith("error:")]
        return f"status 0 with {_general(wrong[0])}" if wrong else SUCCESS
    if ended.status != 2:
        return f"status {ended.status}: {_general(lines[-1] if lines else 'in silence')}"
    errors = [line for line in lines if line.startswith("error: ")]
    odd = [line for line in lines if not line.startswith(("error: ", *TOLD))]
    if len(errors) != 1:
        return f"{len(errors)} lines of error: {_general(lines[0]) if lines else 'silence'}"
    if odd:
        return f"more than one line: {_general(odd[0])}"
    if ended.left:
        return f"a refusal leaves {_general(ended.left[0])} behind: {_general(errors[0])}"
    return REFUSAL


def _raised(lines: list[str]) -> str:
    """The exception of a traceback, and the last line of this project's code above it."""
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt|Exit|Missing\w+|Warning)\b", line)]
    places = re.findall(r'File ".*?/((?:zoo|kernels|scripts)/[^"]*|train\.py|eval\.py)", line (\d+)', "\n".join(lines))
    return f"{raised[-1] if raised else lines[-1]} at {':'.join(places[-1]) if places else 'no code of ours'}"


def _general(text: str) -> str:
    """Without what differs from case to case: numbers of many digits, quoted words, folders."""
    text = re.sub(r"(?<!\S)/\S*/", "", text)
    text = re.sub(r"'[^']*'|\"[^\"]*\"", "'...'", text)
    return re.sub(r"\d{6,}(-\d+)*", "N", text)[:200]
