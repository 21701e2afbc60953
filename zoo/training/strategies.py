"""Strategies of Lightning that share the work between processes."""

from __future__ import annotations

import os

from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, Strategy
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from zoo.config import ConfigError
from zoo.model.block import Block
from zoo.ranks import Launch, this_launch

Devices = int | list[int] | str  # a number, indices, or auto


def process_rank() -> int:
    """Returns the global rank of this process, before and after the process group is set up; 0 if it is alone."""
    return this_launch().rank or getattr(rank_zero_only, "rank", 0)


def launched_devices(launch: Launch, strategy: str, devices: Devices, nodes: int) -> tuple[Devices, int]:
    """Returns devices per machine and number of machines.

    They are those of torchrun or srun where one of them started this process.

    Raises:
        ConfigError: if the strategy is for one process, or the options name another number of devices.
    """
    if launch.world == 1:
        return devices, nodes
    here = launch.world // launch.nodes
    if strategy == "auto":
        raise ConfigError(
            f"{launch.by} started {launch.world} processes, and trainer.strategy=auto trains in one: add trainer=ddp "
            "or trainer=fsdp, or start one process."
        )
    if devices not in ("auto", here):
        raise ConfigError(
            f"trainer.devices={devices}: {launch.by} started {here} processes on each machine: set it to auto."
        )
    if launch.by == "srun":
        os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(here))  # Lightning wants it said
    return here, launch.nodes


def build_strategy(name: str) -> str | Strategy:
    """Builds Lightning's strategy: ``auto`` (one device), ``ddp`` (a replica each) or ``fsdp`` (sharded by block)."""
    if name == "ddp":
        return DDPStrategy(gradient_as_bucket_view=True, broadcast_buffers=False)  # every rank draws alike
    if name == "fsdp":
        return FSDPStrategy(auto_wrap_policy={Block}, state_dict_type="full", use_orig_params=True)
    return "auto"
