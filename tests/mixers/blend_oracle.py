"""Blends of local and linear attention as weights of all pairs, for the tests of the mixers that blend."""

from __future__ import annotations

import torch
from torch import Tensor

import zoo


def build(name: str, **options) -> zoo.mixers.Mixer:
    """In fp64, with weights large enough for the softmax to be far from uniform."""
    torch.manual_seed(0)
    mixer = zoo.mixers.build(name, **{"width": 32, "heads": 4, "depth": 3} | options).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            if parameter.dim() == 2:
                parameter.mul_(2)
            if parameter.dim() == 3:  # the learned maps: the two of a head are no longer the same
                parameter.add_(0.3 * torch.randn_like(parameter))
    return mixer


def draw(*shape: int) -> Tensor:
    """Standard normal, fp64."""
    return torch.randn(*shape, dtype=torch.float64)


def window_rule(length: int, window: int) -> Tensor:
    """``(T, T)``: True where the key is among the latest ``window``."""
    distance = torch.arange(length)[:, None] - torch.arange(length)
    return (distance >= 0) & (distance < window)


def kernel(name: str, q: Tensor, k: Tensor, head_map=None) -> Tensor:
    """``(B, H, T, T)`` weights of all pairs ``phi(q) . phi(k)``, or ``exp(q . k / sqrt(D))`` for ``softmax``."""
    width = q.shape[-1]
    if name == "softmax":
        return (torch.einsum("bthd,bjhd->bhtj", q, k) / width**0.5).exp()
    if name == "elu+1":
        return torch.einsum("bthd,bjhd->bhtj", torch.nn.functional.elu(q) + 1, torch.nn.functional.elu(k) + 1)
    q, k = (torch.einsum("bthd,hdf->bthf", x, w) for x, w in ((q, head_map.query_weight), (k, head_map.key_weight)))
    count = q.shape[-1]
    if name == "taylor":
        u = torch.einsum("bthf,bjhf->bhtj", q, k) / width**0.5
        return 1 + u + u**2 / 2
    scale = count**0.5 / width**0.25
    q, k = (torch.cat([scale * x, -scale * x], -1).softmax(-1) for x in (q, k))
    return 2 * count * torch.einsum("bthf,bjhf->bhtj", q, k)


def heads_of(mixer: zoo.mixers.Mixer, x: Tensor) -> list[Tensor]:
    """Queries, keys and values of a mixer without positions."""
    return [(x @ p.weight.T).unflatten(-1, (4, 8)) for p in (mixer.query, mixer.key, mixer.value)]


def read(weights: Tensor, v: Tensor) -> Tensor:
    """Values by weights ``(B, H, T, T)`` that are normalized here."""
    return torch.einsum("bhtj,bjhe->bthe", weights / weights.sum(-1, keepdim=True), v)


def oracle(mixer: zoo.mixers.Mixer, x: Tensor, mode: str, feature_map: str, near: Tensor) -> Tensor:
    """What the mixer should give.

    Args:
        near: ``(H or 1, T, T)`` bool, the pairs of the local part; of all heads, where they are split too.
    """
    q, k, v = heads_of(mixer, x)
    causal = window_rule(x.shape[1], x.shape[1])
    head_map, n = mixer.parts[-1].map, mixer.local_heads if mode == "heads" else 0
    exact = kernel("softmax", q, k) * near
    far = torch.zeros_like(exact)
    far[:, n:] = kernel(feature_map, q[:, :, n:], k[:, :, n:], head_map) * causal
    if mode == "heads":
        o = read(torch.cat([exact[:, :n], far[:, n:]], 1), v)
    elif mode == "shared":
        o = read(exact + far * ~near, v)
    else:
        shares = torch.sigmoid(x @ mixer.shares.weight.T)[..., None]
        o = shares[:, :, :4] * read(exact, v) + shares[:, :, 4:] * read(far, v)
    return o.flatten(-2) @ mixer.out.weight.T


def assert_same(got: Tensor, want: Tensor, tolerance: float = 1e-10) -> None:
    """Equal up to the order of sums in fp64, and finite."""
    assert torch.isfinite(got).all()
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def stepped(mixer: zoo.mixers.Mixer, x: Tensor, pieces: list[int]) -> Tensor:
    """Outputs through a cache."""
    cache = mixer.new_cache(len(x), dtype=torch.float64)
    with torch.no_grad():
        return torch.cat([mixer(piece, cache=cache) for piece in x.split(pieces, 1)], 1)
