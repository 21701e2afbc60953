"""Answers to textbook questions about attention, for the causal case or for the encoder, as each name says."""

from __future__ import annotations

from dataclasses import dataclass


def kv_cache_bytes(kv_heads: int, head_width: int, context: int, batch: int = 1, size: int = 2, layers: int = 1) -> int:
    """Bytes of the keys and values of causal softmax attention, with ``size`` bytes per number."""
    return 2 * layers * batch * context * kv_heads * head_width * size


@dataclass(frozen=True)
class Links:
    """Number of keys that a token is linked to, and the share of all pairs that is left out."""

    per_token: int
    sparsity: float


def encoder_bigbird(context: int, window: int, random: int, globals: int) -> Links:
    """Links of bidirectional BigBird (Zaheer et al. 2020, arXiv:2007.14062): 2w + 1 + r + 2g of N keys.

    ``window`` is w on each side; the 2g count the globals that a token reads and those that read it.
    """
    links = min(2 * window + 1 + random + 2 * globals, context)
    return Links(links, 1 - links / context)


def causal_bigbird(context: int, window: int, random: int, globals: int) -> Links:
    """Links of causal BigBird: w + 1 + r + g keys, w of them before the token, of (N + 1) / 2 on average.

    A global token is read by all later ones and itself reads only what lies before it, so that g counts once. The first
    tokens have fewer keys than that, as all their keys are read.
    """
    links = min(window + 1 + random + globals, context)
    read = sum(min(links, t + 1) for t in range(context))
    return Links(links, 1 - read / (context * (context + 1) / 2))


def encoder_window_layers(context: int, window: int) -> int:
    """Number of layers after which one token has met both ends: its field of 2wL + 1 tokens covers N, so 2wL >= N - 1.

    Raises:
        ValueError: on a window that joins nothing.
    """
    return _layers(context, 2 * window)


def causal_window_layers(context: int, window: int) -> int:
    """Number of layers after which the last token has met the first: L (w - 1) + 1 >= N.

    ``window`` w counts the token itself.

    Raises:
        ValueError: on a window that joins nothing.
    """
    return _layers(context, window - 1)


def _layers(context: int, step: int) -> int:
    if step < 1 and context > 1:
        raise ValueError("a window without any other token joins nothing: expected a wider one.")
    return -(-(context - 1) // max(step, 1))


def textbook() -> list[tuple[str, str]]:
    """Returns questions and answers, for ``plan.py textbook=true``."""
    rows = []
    for heads in (32, 8, 1):
        size = kv_cache_bytes(heads, 128, 1024, batch=8)
        rows.append((f"causal: cache of a layer, {heads} key heads x 128, batch 8, 1024 tokens, fp16", _mib(size)))
    full, causal = encoder_bigbird(512, 3, 2, 2), causal_bigbird(512, 3, 2, 2)
    rows.append(("encoder: BigBird, w=3 each side, r=2, g=2, 512 tokens: 2w + 1 + r + 2g links a token", _links(full)))
    rows.append(("causal: the same with w=3 before the token: w + 1 + r + g keys a token", _links(causal)))
    for label, layers in (
        ("encoder: window of 32 each side, 1024 tokens: 2wL >= N - 1", encoder_window_layers(1024, 32)),
        ("causal: window of 32 with the token itself, 1024 tokens: L(w - 1) + 1 >= N", causal_window_layers(1024, 32)),
    ):
        rows.append((label, f"{layers} layers"))
    return rows


def _mib(size: int) -> str:
    return f"{size / 2**20:g} MiB"


def _links(links: Links) -> str:
    return f"{links.per_token}, {100 * links.sparsity:.1f} % sparse"
