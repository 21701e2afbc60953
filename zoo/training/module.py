"""The decoder as a LightningModule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import lightning
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from zoo.model import Decoder
from zoo.model.loss import next_token_loss
from zoo.model.trained import Trained
from zoo.training.monitoring.meter import AnswerMeter, Meter, metrics_of


class LanguageModule(lightning.LightningModule):
    """Next-token training of a decoder.

    Args:
        decoder: decoder to train.
        optimizer: makes the optimizer and its schedule, once the parameters are on the device that trains them.
        token_bytes: ``(vocab_size,)`` number of UTF-8 bytes of each token, 0 for special tokens.
        trained: metadata of checkpoints; steps and tokens are added while training.
        recall_tasks: names of the tasks of recall samples, by their index in validation batches.
        compile_model: run the decoder through torch.compile.
    """

    token_bytes: Tensor

    def __init__(
        self,
        decoder: Decoder,
        optimizer: Callable[[Decoder], tuple[Optimizer, LRScheduler]],
        token_bytes: np.ndarray,
        trained: Trained,
        recall_tasks: Sequence[str] = (),
        compile_model: bool = False,
    ) -> None:
        super().__init__()
        self.decoder, self.make_optimizer, self.trained = decoder, optimizer, trained
        self.register_buffer("token_bytes", torch.from_numpy(np.asarray(token_bytes)), persistent=False)
        self.recall_tasks = recall_tasks
        self._new_meters()
        self.grad_norm: Tensor | None = None
        self._hidden = torch.compile(self.decoder.hidden) if compile_model else self.decoder.hidden

    def on_fit_start(self) -> None:
        """Makes the meters, on the device of the run."""
        self._new_meters()

    def _new_meters(self) -> None:
        self.train_meter, self.validation_meter = Meter(self.token_bytes), Meter(self.token_bytes)
        self.answer_meter = AnswerMeter(self.recall_tasks, self.token_bytes.device)

    def _hidden_states(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Hidden states ``(B, T, C)`` and targets ``(B, T)``: the next tokens, if the batch has no labels for them."""
        hidden = self._hidden(batch["tokens"][:, :-1], batch.get("documents"))
        return hidden, batch.get("targets", batch["tokens"][:, 1:])

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Calls :meth:`zoo.mixers.Mixer.start_step` of all mixers."""
        for block in self.decoder.layers:
            block.mixer.start_step(self.trainer.global_step)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Returns the mean loss of a micro batch."""
        hidden, targets = self._hidden_states(batch)
        mean, losses = next_token_loss(hidden, self.decoder.head.weight, targets, token_weights=batch.get("weights"))
        self.train_meter.add(losses, targets, batch.get("mask"), batch.get("answers"))
        return mean

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Adds the losses of a batch of text, or of recall samples, to its meter."""
        hidden, targets = self._hidden_states(batch)
        _, losses = next_token_loss(hidden, self.decoder.head.weight, targets)
        if "answers" not in batch:
            self.validation_meter.add(losses, targets, batch.get("mask"))
            return
        found = batch["answers"] > 0
        wrong = torch.zeros_like(found)
        wrong[found] = F.linear(hidden[found], self.decoder.head.weight).argmax(-1) != targets[found]
        self.answer_meter.add(losses, wrong, batch["answers"], batch["tasks"])

    def on_validation_epoch_end(self) -> None:
        """Computes and logs the metrics of the whole validation set, over all ranks."""
        text, answers = self.validation_meter.take(), self.answer_meter.take()
        text, answers = self.reduce(torch.cat([text, answers])).split([len(text), len(answers)])
        found = {**(metrics_of(text) if text[1] else {}), **self.answer_meter.metrics(answers)}
        metrics = {f"val/{k}": v for k, v in found.items()}
        self.log_dict(metrics, logger=False)
        self.record(metrics)

    def reduce(self, sums: Tensor) -> Tensor:
        """Returns the sum over all ranks."""
        return self.trainer.strategy.reduce(sums, reduce_op="sum")

    def record(self, metrics: dict[str, float]) -> None:
        """Logs metrics of the current optimizer step to all loggers."""
        step = self.trainer.global_step
        metrics = {"tokens": step * self.trained.tokens_per_step, **metrics}
        for logger in self.trainer.loggers:
            logger.log_metrics(metrics, step=step)

    def configure_optimizers(self) -> Any:
        """Returns the optimizer and its schedule, which is stepped with every optimizer step."""
        optimizer, scheduler = self.make_optimizer(self.decoder)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips by the norm of all gradients and stores that norm for the log."""
        limit = float("inf") if gradient_clip_val is None else gradient_clip_val
        sharded = getattr(self.trainer.strategy.model, "clip_grad_norm_", None)
        if sharded is not None:
            self.grad_norm = sharded(limit)
        else:
            self.grad_norm = nn.utils.clip_grad_norm_(self.parameters(), limit)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the decoder's configuration, metadata and random state to a checkpoint, as plain data and tensors."""
        checkpoint["decoder"] = self.decoder.config.to_dict()
        replace(self.trained, tokens=self.trainer.global_step * self.trained.tokens_per_step).write(checkpoint)
        checkpoint["rng"] = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            checkpoint["rng"]["cuda"] = torch.cuda.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the random state."""
        torch.set_rng_state(checkpoint["rng"]["cpu"])
        if "cuda" in checkpoint["rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state(checkpoint["rng"]["cuda"])
