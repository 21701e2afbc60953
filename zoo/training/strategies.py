"""How several processes share the work, through Lightning."""

from __future__ import annotations

from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, Strategy
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from zoo.model.block import Block


def process_rank() -> int:
    """Global rank of this process, before and after the processes have found each other; 0 if it is alone."""
    return getattr(rank_zero_only, "rank", 0)


def build_strategy(name: str) -> str | Strategy:
    """Build Lightning's strategy: ``auto`` (one device), ``ddp`` (a replica each) or ``fsdp`` (sharded by block)."""
    if name == "ddp":
        return DDPStrategy(gradient_as_bucket_view=True, broadcast_buffers=False)  # every rank draws alike
    if name == "fsdp":
        return FSDPStrategy(auto_wrap_policy={Block}, state_dict_type="full", use_orig_params=True)
    return "auto"
