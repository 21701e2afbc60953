"""Gradual conversion to fewer key heads: training moves the heads of each group from their own to shared projections.

Over ``steps`` optimizer steps alpha goes from 0 to 1, and the keys and values of a layer are those of the projections

    W_i(alpha) = (1 - alpha) W_i + alpha B_i W,    W, B_i of zoo.conversion.head_merging at that moment.

After every optimizer step the part of W_i that is not shared is scaled by (1 - alpha_t) / (1 - alpha_(t-1)): without a
gradient that is the line above, with one both parts train. The model keeps its architecture, so that every checkpoint
loads as it is; from ``steps`` on its heads are shared, and the same method converts it without a loss.
"""

from __future__ import annotations

from typing import Any

import lightning
import torch

from zoo.conversion.conversion_plan import ConversionPlan, plan_conversion
from zoo.conversion.head_merging import Method, merge_layer
from zoo.model.decoder import Decoder
from zoo.options.groups.model import ShareHeadsOptions


@torch.no_grad()
def blend_heads(decoder: Decoder, plan: ConversionPlan, own: float) -> None:
    """Scales in place the part of key and value heads that their group does not share, by ``own`` from 0 to 1."""
    for layer, layout in zip(plan.layers, plan.layouts):
        if layout.kv_heads == plan.kv_heads:
            continue
        mixer: Any = decoder.layers[layer].mixer
        weights = {f"{name}.weight": getattr(mixer, name).weight for name in ("key", "value")}
        for weight, merged in zip(weights.values(), merge_layer(weights, layout, plan.kv_heads, plan.method)):
            shared = merged.heads().flatten(0, 1)
            weight.copy_(shared if own == 0 else shared.lerp(weight.double(), own))


class GradualSharing(lightning.Callback):
    """Callback that moves key heads to shared ones while a run trains.

    It has no state to save, since what it does depends on the step alone.

    Args:
        kv_heads: number of shared heads per layer at the end.
        method: how the heads of a group are merged.
        steps: optimizer steps over which alpha goes from 0 to 1; heads stay shared after them.

    Raises:
        ConfigError: when training starts, if the decoder cannot be converted in this way.
    """

    def __init__(self, kv_heads: int, method: Method, steps: int) -> None:
        self.kv_heads, self.method, self.steps = kv_heads, method, steps
        self.plan: ConversionPlan | None = None
        self.done = 0

    def alpha(self, step: int) -> float:
        """Returns the weight of the shared heads after ``step`` optimizer steps."""
        return min(1.0, step / self.steps)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Plans the conversion; a resumed run starts with the weight of its step."""
        assert isinstance(pl_module.decoder, Decoder)
        self.plan = plan_conversion(pl_module.decoder, "gqa", self.kv_heads, self.method)
        self.done = trainer.global_step

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the heads one step, before they are validated or saved."""
        if trainer.global_step == self.done or self.plan is None:
            return
        self.done = trainer.global_step
        left = 1 - self.alpha(self.done)
        assert isinstance(pl_module.decoder, Decoder)
        blend_heads(pl_module.decoder, self.plan, left / (1 - self.alpha(self.done - 1)) if left else 0.0)


def sharing_callbacks(options: ShareHeadsOptions | None) -> list[lightning.Callback]:
    """Returns the callback for ``share_heads`` of a training configuration; none if its kv_heads is null."""
    if options is None or options.kv_heads is None:
        return []
    return [GradualSharing(options.kv_heads, options.method, options.steps)]
