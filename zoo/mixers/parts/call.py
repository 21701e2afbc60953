"""What a mixer was called with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from zoo.mixers.caches import real_tokens


@dataclass(frozen=True)
class Call:
    """Arguments of a mixer's call, without the heads.

    Attributes:
        x: input of the layer, ``(B, T, C)``.
        positions: position of each token in its document, ``(1 or B, T)``.
        documents: as in :meth:`zoo.mixers.Mixer.forward`.
        separators: as in :meth:`zoo.mixers.Mixer.forward`.
        cache: as in :meth:`zoo.mixers.Mixer.forward`.
        lengths: as in :meth:`zoo.mixers.Mixer.forward`.
    """

    x: Tensor
    positions: Tensor
    documents: Tensor | None
    separators: Tensor | None
    cache: Any
    lengths: Tensor | None

    def real(self) -> Tensor | None:
        """Returns ``(B, T)`` bool, False on the padding of a ragged piece; None if there is no padding."""
        return None if self.lengths is None else real_tokens(self.lengths, self.x)
