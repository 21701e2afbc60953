"""Tokenizers: bytes, byte-level BPE trained on the corpus at hand, or any fast tokenizer of the Hub."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from zoo.data.atomic import build_once
from zoo.data.documents import DataError, Source, expand
from zoo.data.fingerprints import known_fingerprint
from zoo.data.token_bytes import vocabulary_size
from zoo.paths import plain_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)

END = "<|endoftext|>"
FINGERPRINT = "fingerprint.txt"
PARALLEL = "TOKENIZERS_PARALLELISM"
PROCESS, WANTED = os.getpid(), os.environ.get(PARALLEL, "true")
KINDS = ("bytes", "bpe", "pretrained")
PIECE = 1_000_000
# Byte-level tokenizers split words at a single newline between two other characters, so a text may be cut there.
SAFE_CUT = re.compile(r"(?<=\S)\n(?=\S)")


def build_tokenizer(spec: Mapping[str, Any], source: Source, cache_dir: str | Path) -> PreTrainedTokenizerFast:
    """Builds the tokenizer described by `spec`, whose end-of-text token (bos = eos) is the only special token in use.

    Args:
        spec: {"kind": "bytes"}: 256 bytes, each its own id, and END = 256; {"kind": "bpe", "vocab_size": n,
            "train_bytes": n}: byte-level BPE trained on the head of the train split, cached; {"kind": "pretrained",
            "id": Hub id or folder, "revision": None}: a fast tokenizer with an end-of-text token.
        source: source of the text for training a BPE.
        cache_dir: folder of trained tokenizers.
    """
    options = dict(spec)
    kind = options.pop("kind", None)
    builders: dict[Any, Callable[..., PreTrainedTokenizerFast]] = {
        "bytes": _bytes_tokenizer,
        "bpe": _bpe_tokenizer,
        "pretrained": _pretrained_tokenizer,
    }
    if kind not in builders:
        raise DataError(f"tokenizer.kind={kind}: expected one of {', '.join(KINDS)}")
    try:
        return builders[kind](source, expand(cache_dir), **options)
    except TypeError as error:
        if "argument" not in str(error):
            raise
        raise DataError(f"tokenizer of kind {kind!r}: {str(error).partition('() ')[2]}") from error


def encode_batch(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[np.ndarray]:
    """Encodes texts in parallel to ids (int64) without special tokens: one spelled out in a text is plain text."""
    backend = tokenizer.backend_tokenizer
    cuttable = _may_be_cut(backend)
    pieces = [list(_pieces(text)) if cuttable else [text] for text in texts]
    plain, backend.encode_special_tokens = backend.encode_special_tokens, True
    truncation, padding = backend.truncation, backend.padding
    backend.no_truncation()
    backend.no_padding()
    try:
        flat = [piece for parts in pieces for piece in parts]
        with _all_cores():
            encoded = iter(backend.encode_batch_fast(flat, add_special_tokens=False))
    finally:
        backend.encode_special_tokens = plain
        if truncation:
            backend.enable_truncation(**truncation)
        if padding:
            backend.enable_padding(**padding)
    return [np.concatenate([np.array(next(encoded).ids, dtype=np.int64) for _ in parts]) for parts in pieces]


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """Returns the SHA-256 over everything that decides which ids a text gets, and over the end-of-text id."""
    fields = json.loads(tokenizer.backend_tokenizer.to_str())
    for name in ("truncation", "padding", "post_processor", "version"):
        fields.pop(name, None)
    text = json.dumps([fields, tokenizer.eos_token_id], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def tokens_with(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[int]:
    """Returns the ids of tokens whose text contains one of ``texts``; of special tokens, those that equal one."""
    ids = range(vocabulary_size(tokenizer))
    special = set(tokenizer.all_special_ids)
    found = []
    for number, text in zip(ids, tokenizer.batch_decode([[i] for i in ids])):
        if text in texts or (number not in special and any(t in text for t in texts)):
            found.append(number)
    return found


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: str | Path) -> None:
    """Writes the tokenizer so that load_tokenizer and transformers.AutoTokenizer read it back with the same ids."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    with plain_name(Path(folder)) as place:
        tokenizer.save_pretrained(str(place))


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """Loads a tokenizer from a local folder, without network and without code from the folder.

    Raises:
        DataError: if the folder has none.
    """
    folder = expand(folder)
    if not folder.is_dir():
        raise DataError(f"no tokenizer folder at {folder}: expected the folder that save_tokenizer wrote")
    with plain_name(folder) as place:
        return _load(str(place), local_files_only=True)


def _load(place: str, **options: Any) -> PreTrainedTokenizerFast:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, use_fast=True, **options)
    except Exception as error:  # transformers raises anything from OSError to a bare Exception of the Rust side
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"no tokenizer could be loaded from {place!r} ({reason}): expected a Hub id that can be reached, "
            "or a local folder with tokenizer.json and tokenizer_config.json (tokenizer.id=FOLDER)"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(f"the tokenizer {place!r} has no fast version: choose one with a tokenizer.json")
    if tokenizer.eos_token_id is None:
        raise DataError(f"the tokenizer {place!r} has no end-of-text token (eos), which separates documents here")
    return cast("PreTrainedTokenizerFast", tokenizer)


def _bytes_tokenizer(source: Source, cache_dir: Path) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models

    vocabulary = {character: byte for byte, character in enumerate(_byte_characters())}
    return _wrap(_byte_level(Tokenizer(models.BPE(vocab=vocabulary, merges=[])), use_regex=False))


def _bpe_tokenizer(
    source: Source, cache_dir: Path, vocab_size: int, train_bytes: int = 100_000_000
) -> PreTrainedTokenizerFast:
    if vocab_size < 257:
        raise DataError(f"tokenizer.vocab_size={vocab_size}: a byte-level vocabulary has at least 257 entries")
    if train_bytes < 1:
        raise DataError(f"tokenizer.train_bytes={train_bytes}: expected a positive number of bytes")
    recipe = json.dumps(["bpe", 1, vocab_size, train_bytes, known_fingerprint(source, "train", cache_dir)])
    folder = cache_dir / "tokenizers" / hashlib.sha256(recipe.encode()).hexdigest()[:32]
    if not _loads(folder, quiet=True):
        build_once(folder, lambda: _loads(folder), lambda new: _train(source, vocab_size, train_bytes, new))
    return load_tokenizer(folder)


def _loads(folder: Path, quiet: bool = False) -> bool:
    if not folder.exists():
        return False
    try:
        if tokenizer_fingerprint(load_tokenizer(folder)) == (folder / FINGERPRINT).read_text(encoding="utf-8"):
            return True
    except (DataError, OSError, UnicodeDecodeError) as error:
        log.debug("%s", error)
    if not quiet:
        log.warning("the cached tokenizer %s is damaged and is trained again", folder)
    return False


def _train(source: Source, vocab_size: int, train_bytes: int, folder: Path) -> None:
    from tokenizers import Tokenizer, models, trainers

    tokenizer = _byte_level(Tokenizer(models.BPE()), use_regex=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], initial_alphabet=_byte_characters(), show_progress=False
    )
    print(f"training a tokenizer with {vocab_size} entries on {source.name}", file=sys.stderr)
    with _all_cores():
        tokenizer.train_from_iterator(_head(source, train_bytes), trainer)
    found = tokenizer.get_vocab_size()
    if found < vocab_size:
        print(f"the text is too short for {vocab_size} entries: {found} were found", file=sys.stderr)
    save_tokenizer(_wrap(tokenizer), folder)
    (folder / FINGERPRINT).write_text(tokenizer_fingerprint(load_tokenizer(folder)), encoding="utf-8")


def _head(source: Source, budget: int) -> Iterator[str]:
    for document in source.documents("train"):
        yield document.text[:budget]
        budget -= len(document.text.encode())
        if budget <= 0:
            return


def _pretrained_tokenizer(
    source: Source, cache_dir: Path, id: str, revision: str | None = None
) -> PreTrainedTokenizerFast:
    folder = expand(id)
    return load_tokenizer(folder) if folder.is_dir() else _load(id, revision=revision)


def _byte_level(tokenizer: Any, use_regex: bool) -> Any:
    from tokenizers import decoders, pre_tokenizers

    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@contextmanager
def _all_cores() -> Iterator[None]:
    """Threads of the Rust side here only: a process forked later (a loader's worker) would hang or warn at them."""
    os.environ[PARALLEL] = WANTED if os.getpid() == PROCESS else "false"
    try:
        yield
    finally:
        os.environ[PARALLEL] = "false"


def _wrap(tokenizer: Any) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
    )


def _byte_characters() -> list[str]:
    """The printable character that stands for each byte in the byte-level alphabet, by byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(hidden)) for byte in range(256)]


def _may_be_cut(backend: Any) -> bool:
    shown = repr(backend.pre_tokenizer)
    return backend.normalizer is None and "ByteLevel(" in shown and "add_prefix_space=True" not in shown


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > PIECE:
        cut = SAFE_CUT.search(text, start + PIECE)
        if cut is None:
            break
        yield text[start : cut.end()]
        start = cut.end()
    yield text[start:]
