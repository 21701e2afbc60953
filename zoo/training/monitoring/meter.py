"""Sums of losses, tokens, bytes and answers, from which perplexity, bits per byte and recall are computed exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Meter:
    """Sums on the device for text and recall samples.

    The sums are nats and number of all targets, nats and bytes of the targets that stand for text, and nats and number
    of the answers of recall samples.
    """

    def __init__(self, token_bytes: Tensor) -> None:
        self.token_bytes = token_bytes
        self.sums = _zeros(6, token_bytes.device)

    def add(self, losses: Tensor, targets: Tensor, mask: Tensor | None = None, answers: Tensor | None = None) -> None:
        """Adds the losses of a batch.

        Args:
            losses: ``(B, T)`` in nats.
            targets: ``(B, T)`` token ids.
            mask: ``(B, T)`` bool, True for targets that are text and count; None for all.
            answers: ``(B, T)`` int64, the number of the answer that each target belongs to, 0 for none.
        """
        sizes = self.token_bytes[targets]
        counted = torch.ones_like(sizes) if mask is None else mask.to(sizes.dtype)
        text = counted * (sizes > 0)
        parts = [(losses * counted).sum(), counted.sum(), (losses * text).sum(), (sizes * counted).sum()]
        if answers is not None:
            found = answers > 0
            count = found[:, :1].sum() + (found[:, 1:] & (answers[:, 1:] != answers[:, :-1])).sum()
            parts += [(losses * found).sum(), count]
        self.sums[: len(parts)] += torch.stack([part.to(self.sums.dtype) for part in parts])

    def restore(self, sums: Sequence[float]) -> None:
        """Adds sums that were saved before; older checkpoints have fewer of them."""
        self.sums[: len(sums)] += torch.tensor(sums, dtype=self.sums.dtype).to(self.sums.device)

    def take(self) -> Tensor:
        """Returns the sums so far ``(6,)`` and resets them."""
        sums, self.sums = self.sums, torch.zeros_like(self.sums)
        return sums


def metrics_of(sums: Tensor) -> dict[str, float]:
    """Computes metrics from a meter's sums, leaving out those without data.

    They are ``loss`` (nats per target), ``perplexity`` (of targets), ``bits_per_byte`` (of text) and ``recall_nll``
    (nats per answer).
    """
    nats, count, text_nats, size, answer_nats, answers = sums.tolist()
    metrics = {}
    if count or not answers:
        loss = nats / max(count, 1)
        metrics["loss"] = loss
        metrics["perplexity"] = math.exp(min(loss, 700.0)) if loss == loss else math.nan
        metrics["bits_per_byte"] = text_nats / math.log(2) / size if size else math.nan
    if answers:
        metrics["recall_nll"] = answer_nats / answers
    return metrics


class AnswerMeter:
    """Sums on the device for each of ``tasks``: nats of the answers, how many are right, and how many there are.

    An answer is right if each of its tokens is the most likely one, given those before it.
    """

    def __init__(self, tasks: Sequence[str], device: torch.device) -> None:
        self.tasks = list(tasks)
        self.sums = _zeros(3 * len(self.tasks), device)

    def add(self, losses: Tensor, wrong: Tensor, answers: Tensor, tasks: Tensor) -> None:
        """Adds the losses of a batch of recall samples.

        Args:
            losses: ``(B, T)`` in nats.
            wrong: ``(B, T)`` bool, True for targets that are not the most likely token.
            answers: ``(B, T)`` int64, see :class:`Meter`.
            tasks: ``(B,)`` index of each row's task.
        """
        seen = losses.new_zeros(len(answers), answers.shape[1] + 1)
        exist = seen.scatter_add(1, answers, torch.ones_like(losses))[:, 1:] > 0
        right = exist & (seen.scatter_add(1, answers, wrong.to(losses.dtype))[:, 1:] == 0)
        parts = ((losses * (answers > 0)).sum(1), right.sum(1), exist.sum(1))
        rows = torch.stack([part.to(self.sums.dtype) for part in parts], dim=1)
        self.sums.view(-1, 3).index_add_(0, tasks, rows)

    def take(self) -> Tensor:
        """Returns the sums so far ``(3 * tasks,)`` and resets them."""
        sums, self.sums = self.sums, torch.zeros_like(self.sums)
        return sums

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """Computes ``recall_nll`` (nats per answer) and ``recall_accuracy`` (share of answers).

        If there are several tasks, both are given for each of them too.
        """
        if not sums.any():
            return {}
        nats, right, count = sums.view(-1, 3).sum(0).tolist()
        metrics = {"recall_nll": nats / count, "recall_accuracy": right / count}
        if len(self.tasks) > 1:
            for name, (_, own, answers) in zip(self.tasks, sums.view(-1, 3).tolist()):
                metrics[f"recall_accuracy/{name}"] = own / max(answers, 1)
        return metrics


def _zeros(size: int, device: torch.device) -> Tensor:
    return torch.zeros(size, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
