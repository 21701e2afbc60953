"""Runs as models of lm-evaluation-harness: ``lm_eval.simple_evaluate(ZooLM(open_run(RUN_DIR).subject), tasks=[...])``.

Sequences are padded on the right only: padding on the left would be read by layers with a recurrent state. The package
is optional; this module alone needs it when it is imported.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.data import tokenizer_fingerprint
from zoo.data.tokenizers import encode_batch
from zoo.evaluation.display.progress import progress_bar
from zoo.evaluation.lm_eval.completion import CompletionOptions, complete_prompts, read_options
from zoo.evaluation.scoring.answer_passes import AnswerTotals, Row, score_rows
from zoo.evaluation.scoring.documents import batch_pieces, cut_documents, evaluating, score_windows
from zoo.evaluation.tasks.base import Keep, make_anew
from zoo.runs.corpus import cut_parts
from zoo.runs.subject import Subject

try:
    from lm_eval.api.model import TemplateLM
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "lm-evaluation-harness is not installed: pip install -c constraints.txt -e .[lm-eval]", name=error.name
    ) from error

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

GENERATED = 256  # new tokens where a task does not say, as in the harness


class ZooLM(TemplateLM):
    """A run as a model of lm-evaluation-harness, which can ask it for likelihoods and for text.

    Args:
        subject: the model, ``subject`` of :func:`zoo.runs.loaded_run.open_run`.
        max_length: tokens of context per forward pass, None for the length of training. What is longer loses its
            beginning; texts whose rolling likelihood is asked are cut into windows instead.
        batch_tokens: tokens per forward pass; changes nothing but speed and memory.
        document_token: whether a context begins with the document token, as every document did in training.
        seed: seed of sampled text.
        keep: stores answers, so that an evaluation that was killed can resume; by default nothing is stored.

    Attributes:
        counts: number of requests and of truncated ones, see :meth:`warnings`.
        ignored: names of generation options of tasks that have no effect here.

    Raises:
        ValueError: if max_length or batch_tokens is below 1.
    """

    def __init__(
        self,
        subject: Subject,
        max_length: int | None = None,
        batch_tokens: int = 8_192,
        document_token: bool = True,
        seed: int = 0,
        keep: Keep = make_anew,
    ) -> None:
        super().__init__()
        self.subject, self.decoder, self.tokenizer = subject, subject.decoder, subject.tokenizer
        self.max_length = subject.train_length if max_length is None else max_length
        for name, value in (("max_length", self.max_length), ("batch_tokens", batch_tokens)):
            if value < 1:
                raise ValueError(f"{name}={value}: expected a number >= 1.")
        self.batch_tokens, self.document_token, self.seed = batch_tokens, document_token, seed
        self.keep = keep
        self.counts: Counter[str] = Counter()
        self.ignored: set[str] = set()
        self._device = subject.device

    @property
    def eot_token_id(self) -> int:
        """Id of the token between documents."""
        return self.subject.document_token

    @property
    def prefix_token_id(self) -> int:
        """Id of the token from which the first token of a document is predicted."""
        return self.subject.document_token

    @property
    def max_gen_toks(self) -> int:
        """Number of new tokens where a task does not say; at most half of ``max_length``."""
        return max(1, min(GENERATED, self.max_length // 2))

    @property
    def tokenizer_name(self) -> str:
        """Name that changes with the tokenizer, for the harness's caches."""
        return f"zoo-{tokenizer_fingerprint(self.tokenizer)[:16]}"

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Raises ValueError: models of this project are not trained on conversations."""
        raise ValueError("apply_chat_template=True: these models are trained on plain text and have no chat template.")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Encodes a text; no special token is ever added, and one spelled out in the text is plain text."""
        return list(encode_batch(self.tokenizer, [string])[0].tolist())

    def tok_decode(self, tokens: int | Sequence[int], skip_special_tokens: bool = True) -> str:
        """Decodes ids to text."""
        ids = [tokens] if isinstance(tokens, int) else list(tokens)
        return str(self.tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Computes the log-likelihood of each continuation after its context, and whether it is the greedy one."""
        pairs = [_move_spaces(*request.args) for request in requests]
        wholes = encode_batch(self.tokenizer, [context + continuation for context, continuation in pairs])
        contexts = encode_batch(self.tokenizer, [context for context, _ in pairs])
        split = [self._split(whole, context) for whole, context in zip(wholes, contexts)]
        encoded = [(request.args, *parts) for request, parts in zip(requests, split)]
        return self._loglikelihood_tokens(encoded, disable_tqdm=disable_tqdm)

    def _split(self, whole: np.ndarray, context: np.ndarray) -> tuple[list[int], list[int]]:
        """Tokens of both together, split where those of the context end or begin to differ."""
        shared = min(len(whole), len(context))
        differ = np.flatnonzero(whole[:shared] != context[:shared])
        at = int(differ[0]) if len(differ) else shared
        self.counts["joined"] += at < len(context)
        return whole[:at].tolist(), whole[at:].tolist()

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        rows = [row for number, (_, *parts) in enumerate(requests) for row in self._rows(number, *parts)]
        totals, greedy = np.zeros(len(requests)), np.ones(len(requests), dtype=bool)
        with _progress("likelihoods", len(rows), disable_tqdm) as advance:
            for part in cut_parts([len(row) for row in rows]):
                key = ["likelihood", [[row.tokens.tolist(), row.answers[0].start] for row in rows[part]]]
                score = partial(self._score_rows, rows[part], advance)
                scored = self._keep(key, score, partial(advance, len(rows[part])))
                for row, total, first in zip(rows[part], scored["totals"], scored["greedy"]):
                    totals[row.number] += total
                    greedy[row.number] &= first
        found = list(zip(totals.tolist(), greedy.tolist()))
        self._remember("loglikelihood", ((strings, result) for (strings, *_), result in zip(requests, found)))
        return found

    def _score_rows(self, rows: list[Row], progress: Callable[[int], None]) -> dict[str, Any]:
        with evaluating(self.decoder):
            for batch in batch_pieces(rows, self.batch_tokens):
                score_rows(self.decoder, batch)
                progress(len(batch))
        answers = [row.answers[0] for row in rows]
        return {"totals": [float(a.total) for a in answers], "greedy": [bool(a.greedy) for a in answers]}

    def _keep(
        self, key: Any, make: Callable[[], dict[str, Any]], found: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        return self.keep(["lm_eval", key], make, found)

    def _rows(self, number: int, context: list[int], continuation: list[int]) -> Iterator[Row]:
        """What has to be read for one request; a continuation longer than ``max_length`` is cut into windows."""
        before = self._fit("contexts", context, max(1, self.max_length + 1 - len(continuation)))
        if len(continuation) <= self.max_length:
            spans = [(np.array(before + continuation), len(continuation))] if continuation else []
        else:
            pieces = cut_documents([np.array(continuation)], before[-1], self.max_length, None)
            spans = [(piece.tokens, piece.scored) for piece in pieces]
        for tokens, scored in spans:
            yield Row(number, tokens, [AnswerTotals(len(tokens) - scored, len(tokens), ())], tokens)

    def _fit(self, kind: str, text: list[int], room: int) -> list[int]:
        """The last ``room`` tokens of a text, with the document token in front if nothing is missing."""
        text = text[1:] if text[:1] == [self.prefix_token_id] else text
        self.counts[kind] += 1
        if len(text) > room:
            self.counts[f"{kind}_cut"] += 1
            self.counts[f"{kind}_tokens_cut"] += len(text) - room
        add = not text or (self.document_token and len(text) < room)
        return [self.prefix_token_id] * add + text[-room:]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Computes the log-likelihood of each whole text, every token once, in the windows of the task "perplexity"."""
        texts = [request.args[0] for request in requests]
        documents = encode_batch(self.tokenizer, texts)
        sizes = [len(document) for document in documents]
        found: list[float] = []
        with _progress("tokens", sum(sizes), disable_tqdm) as advance:
            for part in cut_parts(sizes):
                key = ["rolling", self.max_length, [document.tolist() for document in documents[part]]]
                score = partial(self._roll, documents[part], advance)
                found += self._keep(key, score, partial(advance, sum(sizes[part])))["totals"]
        self._remember("loglikelihood_rolling", (((text,), total) for text, total in zip(texts, found)))
        return found

    def _roll(self, documents: Sequence[np.ndarray], progress: Callable[[int], None]) -> dict[str, Any]:
        nats = np.zeros(len(documents))
        pieces = cut_documents(documents, self.prefix_token_id, self.max_length, None)
        for piece, scored in score_windows(self.decoder, pieces, self.batch_tokens, progress):
            nats[piece.document] += scored.sum(dtype=np.float64)
        return {"totals": (-nats).tolist()}

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generates text after each context, up to a stop string.

        Raises:
            ValueError: if a request asks for so many tokens that no context fits into ``max_length``.
        """
        groups: dict[CompletionOptions, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            options, ignored = read_options(request.args[1], self.max_gen_toks)
            self.ignored |= set(ignored)
            groups[options].append(number)
        contexts = encode_batch(self.tokenizer, [request.args[0] for request in requests])
        texts = [""] * len(requests)
        with _progress("texts", len(requests), disable_tqdm) as advance:
            for options, numbers in groups.items():
                prompts = [self._fit("prompts", contexts[number].tolist(), self._room(options)) for number in numbers]
                made = complete_prompts(
                    self.decoder, self.tokenizer, prompts, options, self.seed, self.batch_tokens, advance, self._keep
                )
                for number, text in zip(numbers, made):
                    texts[number] = text
        self._remember("generate_until", ((request.args, text) for request, text in zip(requests, texts)))
        return texts

    def _room(self, options: CompletionOptions) -> int:
        room = self.max_length - options.max_new_tokens
        if room < 1:
            raise ValueError(
                f"a task asks for {options.max_new_tokens} new tokens, which leaves no room for its context in "
                f"max_length={self.max_length}: set task.max_length higher, or task.gen_kwargs.max_gen_toks lower."
            )
        return room

    def _remember(self, kind: str, results: Iterable[tuple[tuple[Any, ...], Any]]) -> None:
        for arguments, result in results:
            self.cache_hook.add_partial(kind, arguments, result)

    def warnings(self) -> list[str]:
        """Returns warnings for a reader of the numbers, as on truncated contexts."""
        warnings = []
        for kind in ("contexts", "prompts"):
            if cut := self.counts[f"{kind}_cut"]:
                warnings.append(
                    f"{cut} of {self.counts[kind]} {kind} did not fit into {self.max_length} tokens, and "
                    f"lost {self.counts[f'{kind}_tokens_cut']} tokens at their beginning."
                )
        if joined := self.counts["joined"]:
            warnings.append(
                f"{joined} continuations share a token with their context, whose likelihood is counted as theirs."
            )
        if self.ignored:
            warnings.append(f"Generation options without a meaning here: {', '.join(sorted(self.ignored))}.")
        return warnings


def _move_spaces(context: str, continuation: str) -> tuple[str, str]:
    """White space at the end of a context belongs to the first token of what follows."""
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def _progress(title: str, total: int, silent: bool) -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(lambda amount: None) if silent else progress_bar(f"lm_eval: {title}", total)
