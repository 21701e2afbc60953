"""Attention weights of any mixer, measured on its own code.

What a HeadMixer computes from its values is linear in them (a nonlinearity on the values themselves only scales the
weights). So with values that are unit vectors, v_j = e_{j - cD} for the D tokens of group c and 0 elsewhere, entry e of
output t is the weight of token cD + e for query t: exactly what the kernel did, whatever its form. For other mixers the
influence |d y_t / d x_j| is used.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from zoo import mixers
from zoo.mixers import Mixer
from zoo.mixers.parts.call import Call
from zoo.mixers.parts.heads import HeadMixer

WIDTH, HEADS, DEPTH, LENGTH = 128, 4, 4, 160
SHARPNESS = 2.5  # of queries and keys at random: scores then differ by a few units, as trained ones do
SMALL: dict[str, int] = {  # so that patterns show
    "block": 16,
    "window": 24,
    "window_blocks": 2,
    "random_blocks": 1,
    "top_k": 2,
    "reach": 8,
}
SPECIAL: dict[str, dict[str, Any]] = {
    "adaptive": {"full_below": 48, "window_below": 96},
    "dilated": {"window": 12, "dilation": [1, 2, 4, 8]},
}
PROBES = 4


def gallery_options(name: str) -> dict[str, Any]:
    """Options of a mixer in the gallery: its defaults, with windows and blocks that fit into a small picture."""
    parameters = inspect.signature(mixers.get(name).__init__).parameters
    options = {}
    for option, small in SMALL.items():
        default = parameters[option].default if option in parameters else None
        if isinstance(default, int) and not isinstance(default, bool) and default > small:
            options[option] = small
    return options | SPECIAL.get(name, {})


def build_sample(name: str, seed: int = 0) -> tuple[Mixer, Tensor]:
    """Returns a mixer of fp64 with random weights, and an input ``(1, T, C)`` whose neighbors are similar."""
    torch.manual_seed(seed)
    mixer = mixers.build(name, width=WIDTH, heads=HEADS, depth=DEPTH, layer=1, **gallery_options(name))
    mixer = mixer.double().eval()
    with torch.no_grad():
        for key, parameter in mixer.named_parameters():
            if key in ("query.weight", "key.weight"):
                parameter.mul_(SHARPNESS)
            elif parameter.dim() > 1 and not parameter.any():
                parameter.normal_()  # what starts at zero would show nothing
    noise = torch.randn(1, LENGTH, WIDTH, dtype=torch.float64)
    x = [noise[:, 0]]
    for t in range(1, LENGTH):
        x.append(0.6 * x[-1] + 0.8 * noise[:, t])
    return mixer, torch.stack(x, 1)


def attention_weights(mixer: Mixer, x: Tensor) -> Tensor:
    """Computes the weights ``(H, T, T)`` of queries (rows) for keys.

    For a mixer without heads to read, it is the influence ``(1, T, T)``.

    Args:
        mixer: the mixer.
        x: input ``(1, T, C)``.
    """
    return _head_weights(mixer, x) if isinstance(mixer, HeadMixer) else influence(mixer, x)


def _head_weights(mixer: HeadMixer, x: Tensor) -> Tensor:
    seen: list[tuple[Tensor, Tensor, Tensor, Call]] = []

    def record(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        seen.append((q, k, v, call))
        return x.new_zeros(*x.shape[:2], mixer.out_heads, mixer.value_dim)

    mix = mixer.mix
    vars(mixer)["mix"] = record  # hides the method of the class
    try:
        with torch.no_grad():
            mixer(x)
    finally:
        del vars(mixer)["mix"]
    q, k, v, call = seen[0]
    length, width = v.shape[1], v.shape[-1]
    groups = []
    for start in range(0, length, width):
        unit = torch.zeros_like(v)
        tokens = torch.arange(start, min(start + width, length))
        unit[:, tokens, :, tokens - start] = 1
        with torch.no_grad():
            groups.append(mix(q, k, unit, call)[0].transpose(0, 1))
    return torch.cat(groups, -1)[..., :length]


def influence(mixer: Mixer, x: Tensor, seed: int = 0) -> Tensor:
    """Estimates the Frobenius norm of d y_t / d x_j, ``(1, T, T)``, from gradients along random directions."""
    x = x.detach().requires_grad_()
    y = mixer(x)
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for t in range(x.shape[1]):
        total = torch.zeros_like(x[0, :, 0])
        for _ in range(PROBES):
            direction = torch.randn(y.shape[-1], generator=generator, dtype=y.dtype)
            (gradient,) = torch.autograd.grad(y[0, t] @ direction, x, retain_graph=True)
            total += gradient[0].square().sum(-1) / PROBES
        rows.append(total.sqrt())
    return torch.stack(rows)[None]
