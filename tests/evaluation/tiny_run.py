"""A run folder made by hand: what train.py leaves, with a decoder of a few thousand weights."""

import json

import torch
from omegaconf import OmegaConf

from zoo.data import build_tokenizer, save_tokenizer, tokenizer_fingerprint
from zoo.model.decoder import Decoder, DecoderConfig

TEXTS = {
    "train": ["one two three\n" * 20],
    "validation": ["four five six\n" * 5],
    "test": ["abc def\n" * 9, "Größe: 42 µm, 水 🎉\n" * 4, "x"],
}


def write_texts(folder, texts=TEXTS):
    for split, documents in texts.items():
        (folder / split).mkdir(parents=True)
        for number, text in enumerate(documents):
            (folder / split / f"{number}.txt").write_text(text, encoding="utf-8")


def small_decoder(layers=("lightning", "softmax"), vocab_size=257, seed=0):
    torch.manual_seed(seed)
    decoder = Decoder(DecoderConfig(vocab_size, 16, len(layers), 2, list(layers)))
    with torch.no_grad():  # far from uniform, so that differences would show
        decoder.embedding.weight.mul_(30)
    return decoder.eval()


def save_checkpoint(file, decoder, **trained):
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "decoder": decoder.config.to_dict(),
        "state_dict": {f"decoder.{name}": value for name, value in decoder.state_dict().items()},
        "global_step": 7,
        "zoo": {"tokens": 700, "train_length": 16, "data": {}, **trained},
    }
    torch.save(content, file)


def make_run(folder, decoder=None, texts=TEXTS):
    """A run folder with the checkpoint ``last`` and text, tokenizer, configuration and metrics to go with it."""
    write_texts(folder / "text", texts)
    source = {"kind": "text", "path": str(folder / "text"), "text_column": "text"}
    data = {"name": "text", "length": 16, "cache_dir": str(folder / "cache"), "source": source}
    run = folder / "a run, with=signs"
    run.mkdir()
    config = {"seed": 0, "attention": "lightning", "model": {"name": "nano"}, "data": data}
    OmegaConf.save(OmegaConf.create(config | {"tokenizer": {"kind": "bytes"}}), run / "config.yaml")
    tokenizer = build_tokenizer({"kind": "bytes"}, None, folder / "cache")
    save_tokenizer(tokenizer, run / "tokenizer")
    fingerprint = tokenizer_fingerprint(tokenizer)
    save_checkpoint(run / "checkpoints" / "last.ckpt", decoder or small_decoder(), tokenizer=fingerprint)
    lines = [{"step": n, "tokens": 100 * n, "train/bits_per_byte": 8 / n} for n in range(1, 8)]
    lines.append({"step": 7, "tokens": 700, "val/bits_per_byte": 1.5})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 8, "tok')
    (run / "git.json").write_text('{"commit": "abc"}')
    return run
