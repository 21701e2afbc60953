"""The decoder language model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo import mixers
from zoo.generation.generate import Sampling, generate, stream
from zoo.generation.prompts import PREFILL_TOKENS
from zoo.mixers.base import Cost, check_array
from zoo.mixers.caches import Cache, CacheList, real_tokens
from zoo.mixers.parts.norms import build_norm
from zoo.model.block import Block

IDS = (torch.int64, torch.int32)
STYLES: dict[str, tuple[str, bool]] = {"llama": ("rms", True), "transnormer": ("srms", False)}
STD = 0.02  # of embeddings at the start


@dataclass(frozen=True)
class DecoderConfig:
    """Everything that is needed to build a decoder, as plain values that a checkpoint can store.

    Attributes:
        vocab_size: number of tokens of the vocabulary.
        width: model width C.
        depth: number of layers.
        heads: number of query heads H.
        layer_types: for each layer, a key of ``mixers`` or the name of a registered mixer.
        mixers: options of each entry; the key ``name`` says which mixer it is, if not the entry's own name.
        style: ``llama`` (RMSNorm, SwiGLU) or ``transnormer`` (SRMSNorm, SGLU, embeddings times sqrt(width)).
        mlp_width: hidden width of the MLP; None for 8/3 of the width, rounded up to a multiple of 64.
        tie_embeddings: use the embeddings as the output matrix.
        separator_tokens: token ids that are passed to mixers as separators.
    """

    vocab_size: int
    width: int
    depth: int
    heads: int
    layer_types: list[str]
    mixers: dict[str, dict[str, Any]] = field(default_factory=dict)
    style: str = "llama"
    mlp_width: int | None = None
    tie_embeddings: bool = True
    separator_tokens: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "depth", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)}: expected a number >= 1.")
        if self.mlp_width is not None and self.mlp_width < 1:
            raise ValueError(f"model.mlp_width={self.mlp_width}: expected a number >= 1, or null.")
        if self.style not in STYLES:
            raise ValueError(f"model.style={self.style!r}: expected one of {', '.join(STYLES)}.")
        if len(self.layer_types) != self.depth:
            raise ValueError(f"layer_types has {len(self.layer_types)} entries for depth={self.depth}.")

    def hidden_width(self) -> int:
        """Returns the hidden width of the MLP."""
        return self.mlp_width or -(-self.width * 8 // 3 // 64) * 64

    def to_dict(self) -> dict[str, Any]:
        """Returns a plain dictionary, for a checkpoint."""
        return asdict(self)


class DecoderCache(CacheList):
    """Caches of all layers, for decoding."""

    @property
    def layers(self) -> list[Cache]:
        """Caches of the layers, from first to last."""
        return self.parts


class Decoder(nn.Module):
    """Decoder language model with the token mixers of ``config.layer_types``."""

    separators: Tensor

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        norm, activated = STYLES[config.style]
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(
            Block(self._build_mixer(layer), config.width, config.hidden_width(), norm, activated)
            for layer in range(config.depth)
        )
        self.norm = build_norm(norm, config.width)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        self.embedding_scale = config.width**0.5 if config.style == "transnormer" else 1.0
        self.register_buffer("separators", torch.tensor(config.separator_tokens, dtype=torch.long), persistent=False)
        self.checkpoint_activations = False
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the initial values of all matrices from torch's global generator.

        Embeddings have a standard deviation of 0.02, which with tied weights gives logits of deviation 0.02 *
        sqrt(width). In the style ``llama`` other matrices have 1 / sqrt(inputs), so that activations keep their size at
        any width, and the last ones of mixer and MLP that over sqrt(2 * depth) (after GPT-2), so that the residual
        stream does not grow with the depth. In the style ``transnormer`` all have 0.02, as in its published code. Norm
        weights are 1; a mixer sets its own values, see :meth:`zoo.mixers.Mixer.reset_parameters`.
        """
        nn.init.normal_(self.embedding.weight, std=STD)
        for block in self.layers:
            std, mixer_std, mlp_std = self._deviations(block)
            block.mixer.reset_parameters(std, mixer_std)
            block.mlp.reset_parameters(std, mlp_std)
        nn.init.normal_(self.head.weight, std=STD)

    def _deviations(self, block: Block) -> tuple[float, float, float]:
        """Of matrices that read the residual stream, and of the last ones of mixer and MLP."""
        if self.config.style != "llama":
            return STD, STD, STD
        residual = (2 * self.config.depth) ** -0.5
        last = (module.in_features**-0.5 * residual for module in (block.mixer.out, block.mlp.down))
        return self.config.width**-0.5, *last

    @property
    def layers(self) -> list[Block]:
        """Blocks of the decoder, from first to last."""
        return cast("list[Block]", list(self.blocks))

    def _build_mixer(self, layer: int) -> mixers.Mixer:
        config = self.config
        entry = config.layer_types[layer]
        options = dict(config.mixers.get(entry, {}))
        name = options.pop("name", entry)
        if taken := {"width", "heads", "depth", "layer"} & set(options):
            raise ValueError(
                f"mixers.{entry} sets {', '.join(sorted(taken))}: these are the model's, not an attention's."
            )
        try:
            return mixers.build(
                name, width=config.width, heads=config.heads, depth=config.depth, layer=layer, **options
            )
        except ValueError as error:
            raise ValueError(f"mixers.{entry}: {error}") from error

    def forward(
        self,
        ids: Tensor,
        documents: Tensor | None = None,
        cache: DecoderCache | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Computes the logits of the next token at every position.

        Args:
            ids: ``(B, T)`` token ids.
            documents: ``(B, T)`` ids of packed documents.
            cache: cache from :meth:`new_cache`; the piece continues where it stands.
            lengths: ``(B,)`` true lengths of a right-padded piece, with a cache.

        Returns:
            ``(B, T, vocab_size)``.
        """
        return self.head(self.hidden(ids, documents, cache, lengths))

    def hidden(
        self,
        ids: Tensor,
        documents: Tensor | None = None,
        cache: DecoderCache | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Computes the normalized last hidden states ``(B, T, C)``; arguments as in :meth:`forward`."""
        self._check_call(ids, cache)
        if lengths is not None and cache is not None:  # padding can hold anything, a number of no token too
            check_array("lengths", lengths, ids.shape[:1], ids)
            ids = ids.masked_fill(~real_tokens(lengths, ids), 0)
        x = self.embedding(ids)
        if self.embedding_scale != 1.0:
            x = x * self.embedding_scale
        separators = self._separators(ids)
        caches = cache.layers if cache is not None else [None] * len(self.blocks)
        carry: dict[str, Any] = {}
        self.layers[0].mixer.check_call(x, documents, caches[0], lengths, separators)
        for layer, layer_cache in zip(self.layers, caches):
            layer.mixer.prepare(carry, x, documents, layer_cache)
        for layer, block, layer_cache in zip(self.layers, self.blocks, caches):
            if self.checkpoint_activations and self.training and cache is None and not layer.mixer.hands_on(carry):
                x = checkpoint(block, x, documents, separators, None, None, carry, use_reentrant=False)
            else:
                x = block(x, documents, separators, layer_cache, lengths, carry)
        return self.norm(x)

    def _check_call(self, ids: Tensor, cache: DecoderCache | None) -> None:
        if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.dtype not in IDS:
            got = f"{ids.dtype} of shape {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
            raise ValueError(
                f"ids is {got}: expected token ids, a tensor (batch, tokens) of torch.int64 or torch.int32."
            )
        if cache is not None and len(cache.layers) != len(self.blocks):
            raise ValueError(
                f"the cache is of {len(cache.layers)} layers and the decoder of {len(self.blocks)}: "
                "take one that its new_cache() made."
            )

    def _separators(self, ids: Tensor) -> Tensor | None:
        """``(B, T)``: True for separators; None if no mixer asks for them."""
        if not any(block.mixer.uses_separators for block in self.layers):
            return None
        if not self.config.separator_tokens:
            raise ValueError(
                "an attention treats separators apart, but separator_tokens is empty: give the decoder's configuration "
                "the ids of the separators (model.separators of train.py finds them in the tokenizer)."
            )
        return (ids[..., None] == self.separators).any(-1)

    def new_cache(self, batch_size: int, capacity: int | None = None) -> DecoderCache:
        """Returns empty caches on the model's device and in its dtype; see :meth:`zoo.mixers.Mixer.new_cache`."""
        weight = self.embedding.weight
        layers = [block.mixer.new_cache(batch_size, capacity, weight.device, weight.dtype) for block in self.layers]
        return DecoderCache(layers)

    def cost(self, context: int, dtype: torch.dtype = torch.bfloat16) -> Cost:
        """Returns the cost of the whole model for one sequence of ``context`` tokens, tied weights counted once."""
        c = self.config
        head, mlp = c.vocab_size * c.width, 3 * c.width * c.hidden_width()
        norm = sum(p.numel() for p in self.norm.parameters())
        total = Cost(head * (1 if c.tie_embeddings else 2) + norm, 2 * head, 2 * head, 0)
        for block in self.layers:
            total = total + block.mixer.cost(context, dtype) + Cost(mlp + 2 * norm, 2 * mlp, 2 * mlp, 0)
        return total

    def generate(
        self,
        prompts: Any,
        max_new_tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        stop_token: int | None = None,
        prefill_tokens: int = PREFILL_TOKENS,
    ) -> list[list[int]]:
        """Generates new tokens for each prompt; a prompt in a batch gets the tokens that it would get alone.

        Args:
            prompts: a list of prompts, each a list, tuple, 1-D tensor or array of token ids, or a 2-D tensor or array.
            max_new_tokens: largest number of new tokens of each prompt.
            temperature: divides the logits; 0 takes the most likely token.
            top_k: keep the k most likely tokens; None for all.
            top_p: keep the smallest set of tokens whose probabilities reach p; None for all.
            seed: seed of the sampling.
            stop_token: ends a row and is not returned.
            prefill_tokens: tokens of each prompt that are read in one forward pass; it bounds memory.

        Returns:
            New token ids of each prompt.

        Raises:
            ValueError: on values out of range, before anything is computed, and on logits that are not finite.
        """
        sampling = Sampling(temperature, top_k, top_p, seed, stop_token)
        return generate(self, prompts, max_new_tokens, sampling, prefill_tokens)

    def stream(
        self, prompt: Any, max_new_tokens: int, *, prefill_tokens: int = PREFILL_TOKENS, **options: Any
    ) -> Iterator[int]:
        """Generates new tokens of one prompt, one by one.

        The arguments are those of :meth:`generate`, and are checked at once.
        """
        steps = stream(self, [prompt], max_new_tokens, Sampling(**options), prefill_tokens)
        return (row[0] for row in steps if row[0] is not None)
