"""How several processes share the work, through Lightning."""

from __future__ import annotations

from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, Strategy
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from zoo.config import ConfigError
from zoo.model.block import Block

NAMES = ("auto", "ddp", "fsdp")


def process_rank() -> int:
    """Global rank of this process, before and after the processes have found each other; 0 if it is alone."""
    return getattr(rank_zero_only, "rank", 0)


def build_strategy(name: str, optimizer: str) -> str | Strategy:
    """Lightning's strategy: ``auto`` (one device), ``ddp`` (a replica each) or ``fsdp`` (parameters sharded by block).

    Raises:
        ConfigError: on another name, or on an optimizer that needs whole matrices with fsdp.
    """
    if name not in NAMES:
        raise ConfigError(f"trainer.strategy={name!r}: expected one of {', '.join(NAMES)}.")
    if name == "ddp":
        return DDPStrategy(gradient_as_bucket_view=True, broadcast_buffers=False)  # every rank draws alike
    if name == "fsdp":
        if optimizer == "muon":
            raise ConfigError("trainer=fsdp shards matrices, which Muon needs whole: use optimizer=adamw.")
        return FSDPStrategy(auto_wrap_policy={Block}, state_dict_type="full", use_orig_params=True)
    return "auto"
