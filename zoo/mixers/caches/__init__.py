"""Caches remember: tensors of rows and the positions in them. What is computed of these is the mixers' affair."""

from zoo.mixers.caches.base import Cache, View, real_tokens
from zoo.mixers.caches.block_sums import BlockCache, BlockView
from zoo.mixers.caches.cache_list import CacheList
from zoo.mixers.caches.convolved import ConvolvedCache
from zoo.mixers.caches.global_cache import GlobalCache, GlobalView
from zoo.mixers.caches.key_values import KeyValueCache
from zoo.mixers.caches.levels import LevelCache
from zoo.mixers.caches.ring import RingCache
from zoo.mixers.caches.states import MaximumCache, StateCache
from zoo.mixers.caches.trapezoid import TrapezoidCache

__all__ = [
    "BlockCache",
    "BlockView",
    "Cache",
    "CacheList",
    "ConvolvedCache",
    "GlobalCache",
    "GlobalView",
    "KeyValueCache",
    "LevelCache",
    "MaximumCache",
    "RingCache",
    "StateCache",
    "TrapezoidCache",
    "View",
    "real_tokens",
]
