"""The weights that the gallery draws are those of the mixers."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zoo
from zoo.commands import gallery
from zoo.costs.gallery import weights as gallery_weights
from zoo.costs.gallery.costs import layer_costs
from zoo.costs.gallery.pictures import draw_mixer, draw_overview
from zoo.costs.gallery.weights import LENGTH, attention_weights, build_sample, influence
from zoo.mixers.lightning import lightning_slopes
from zoo.mixers.parts.heads import HeadMixer
from zoo.mixers.parts.positions import rotate
from zoo.plotting import picture_formats

ROOT = Path(__file__).resolve().parents[2]
TIME = torch.arange(LENGTH)


def heads(mixer, x):
    q, k = (proj(x).unflatten(-1, (-1, mixer.head_dim)) for proj in (mixer.query, mixer.key))
    return q, k.repeat_interleave(mixer.heads // k.shape[2], 2)


@pytest.mark.parametrize("name", ["softmax", "gqa", "mqa"])
def test_softmax_weights(name):
    mixer, x = build_sample(name)
    q, k = (rotate(y, TIME[None], 10000.0, mixer.head_dim) for y in heads(mixer, x))
    scores = torch.einsum("bthd,bjhd->bhtj", q, k)[0] / mixer.head_dim**0.5
    want = scores.masked_fill(TIME[:, None] < TIME, -torch.inf).softmax(-1)
    torch.testing.assert_close(attention_weights(mixer, x), want, rtol=1e-9, atol=1e-12)


def test_lightning_weights():
    mixer, x = build_sample("lightning")
    q, k = (F.silu(y) for y in heads(mixer, x))
    slopes = lightning_slopes("transnormer", mixer.heads, 1, mixer.depth).double()
    decay = torch.exp(-slopes[:, None, None] * (TIME[:, None] - TIME)).tril()
    want = torch.einsum("bthd,bjhd->bhtj", q, k)[0] * decay
    torch.testing.assert_close(attention_weights(mixer, x), want, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", zoo.mixers.names())
def test_every_mixer_gives_causal_weights(name, monkeypatch):
    monkeypatch.setattr(gallery_weights, "LENGTH", 50)  # three blocks, two windows and a tail
    mixer, x = build_sample(name)
    weights = attention_weights(mixer, x)
    heads = mixer.heads if isinstance(mixer, HeadMixer) else 1
    assert weights.shape == (heads, 50, 50)
    assert torch.isfinite(weights).all()
    assert not weights.triu(1).any()
    assert (weights.diagonal(dim1=-2, dim2=-1) != 0).any()
    assert torch.equal(weights, attention_weights(*build_sample(name)))
    assert "mix" not in vars(mixer)


@pytest.mark.parametrize("name", ["window", "bigbird", "topk"])
def test_patterns_are_visible(name):
    weights = attention_weights(*build_sample(name))
    unread = (weights == 0).sum() - weights.shape[0] * LENGTH * (LENGTH - 1) // 2
    assert unread > 0.2 * weights.shape[0] * LENGTH**2 / 2


class Shift(nn.Module):
    """y_t = 2 x_{t-1}: no heads to read."""

    def forward(self, x):
        return 2 * F.pad(x, (0, 0, 1, 0))[:, :-1]


def test_influence_of_other_mixers():
    got = influence(Shift(), torch.randn(1, 9, 400, dtype=torch.float64))
    assert got.shape == (1, 9, 9)
    assert torch.equal(got != 0, torch.eye(8).bool().new_zeros(1, 9, 9).index_put(
        (torch.tensor(0), torch.arange(1, 9), torch.arange(8)), torch.tensor(True)))  # fmt: skip
    norms = got[0].diagonal(-1)
    torch.testing.assert_close(norms, torch.full_like(norms, 2 * 400**0.5), rtol=0.1, atol=0)


@pytest.mark.slow
def test_pictures_and_page_are_written(tmp_path):
    names = ["softmax", "lightning", "window"]
    weights = {name: attention_weights(*build_sample(name)) for name in names}
    costs = {name: layer_costs(name) for name in names}
    with picture_formats(["png", "svg"]):
        draw_overview(tmp_path / "all.png", weights)
        draw_mixer(tmp_path / "one.png", "lightning", weights["lightning"], costs)
    for file in ("all.svg", "one.svg"):
        assert ">0.01<" in (tmp_path / file).read_text() and "mathdefault" not in (tmp_path / file).read_text()
    for file in ("all.png", "one.png"):
        assert 5_000 < (tmp_path / file).stat().st_size < 300_000
    text = gallery.page(names)
    assert all(f"gallery/{name}.png" in text and f"## {name}" in text for name in names)
    assert "`window=24`" in text and "(TransNormerLLM" in text


def test_the_page_of_the_repository_shows_every_mixer():
    text = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    files = {file.name for file in (ROOT / "docs" / "gallery").glob("*.png")}
    assert {f"{name}.png" for name in zoo.mixers.names()} | {"weights.png", "costs.png"} == files, (
        "run: python scripts/gallery.py"
    )
    assert all(f"](gallery/{file})" in text for file in files)
    assert sum(file.stat().st_size for file in (ROOT / "docs" / "gallery").iterdir()) < 45_000 * len(files)
