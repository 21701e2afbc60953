"""Arms of a sweep: named overrides, listed or made by a rule from a base configuration."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from omegaconf import DictConfig

from zoo import mixers
from zoo.config import ConfigError
from zoo.model.from_config import Architecture
from zoo.model.schedule import DEFAULT
from zoo.options.groups.sweep import RuleName

LENGTHS = (128, 256, 512, 1024)
EXACT = "softmax"


@dataclass(frozen=True)
class Arm:
    """One value of the sweep's axis: the overrides that make it, and a name that is also that of its folder."""

    name: str
    overrides: tuple[str, ...]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w+.-]*\w[\w+.-]*", self.name):
            raise ConfigError(f"an arm of a sweep is called {self.name!r}: expected letters, digits, and + - _ . only.")


Rule = Callable[[DictConfig, str, "Sequence[str] | None"], list[Arm]]


def override_name(override: str) -> str:
    """Returns the key of an override, as ``data.recall`` for ``+data/recall=mix``."""
    return override.lstrip("+~").partition("=")[0].partition("@")[0].replace("/", ".")


def merge(*groups: Iterable[str]) -> list[str]:
    """Merges overrides; of those with the same key only the last counts."""
    found: dict[str, str] = {}
    for override in (o for group in groups for o in group):
        found.pop(override_name(override), None)
        found[override_name(override)] = override
    return list(found.values())


def without_replaced(own: Iterable[str], given: Iterable[str]) -> list[str]:
    """Returns the overrides ``own`` whose value or group (as model.depth by model=125m) is not ``given``."""
    names = [override_name(override) for override in given]
    return [o for o in own if not any(override_name(o) == n or override_name(o).startswith(f"{n}.") for n in names)]


def folder_name(value: str) -> str:
    """Makes the name of a folder from a value of an axis: ``0:softmax`` becomes ``0-softmax``."""
    return re.sub(r"[^\w+.-]+", "_", value.strip("'\"").replace(":", "-")).strip("_") or "none"


def listed_arms(arms: Sequence[Arm], key: str, values: Sequence[str] | None) -> list[Arm]:
    """Returns ``arms``, or arms for ``values`` of the axis; a value that one of ``arms`` sets alone has its name."""
    if values is None:
        return list(arms)
    known = {arm.overrides: arm for arm in reversed(arms)}
    return [known.get((f"{key}={v}",)) or Arm(folder_name(v), (f"{key}={v}",)) for v in values]


def kv_heads(base: DictConfig, key: str, values: Sequence[str] | None) -> list[Arm]:
    """Rule with an arm for every number of key and value heads that divides ``model.heads``, all heads first."""
    heads = int(base.model.heads)
    chosen = values or [str(n) for n in range(heads, 0, -1) if heads % n == 0]
    return [Arm(f"kv{folder_name(n)}", (f"{key}={n}",)) for n in chosen]


def all_mixers(base: DictConfig, key: str, values: Sequence[str] | None) -> list[Arm]:
    """Rule with an arm for every registered attention, exact softmax first."""
    names = sorted(mixers.names(), key=lambda name: (name != EXACT, name))
    return [Arm(folder_name(name), (f"{key}={name}",)) for name in values or names]


def lengths(base: DictConfig, key: str, values: Sequence[str] | None) -> list[Arm]:
    """Rule with an arm for every sequence length, at the same number of tokens per step.

    Raises:
        ConfigError: if a length does not divide the tokens of a step.
    """
    tokens = int(base.trainer.batch_size) * int(base.data.length)
    arms = []
    for length in values or map(str, LENGTHS):
        if not length.isdigit() or int(length) < 1 or tokens % int(length):
            raise ConfigError(
                f"{key}={length} does not divide the {tokens} tokens of a step (trainer.batch_size * data.length): "
                "choose another length, or another trainer.batch_size."
            )
        arms.append(Arm(f"length{length}", (f"{key}={length}", f"trainer.batch_size={tokens // int(length)}")))
    return arms


def leave_one_out(base: DictConfig, key: str, values: Sequence[str] | None) -> list[Arm]:
    """Rule with the schedule as it is, then with each layer of another attention replaced by the default one.

    Raises:
        ConfigError: if every layer has the default attention already.
    """
    if values is not None:
        return listed_arms([], key, values)
    own = Architecture.of(base).layers
    places = [i for i, name in enumerate(own) if name != base.attention]
    if not places:
        raise ConfigError(
            f"schedule.pattern={base.schedule.pattern} has no layer but {base.attention}: there is none to leave out. "
            f"Choose a hybrid, as schedule.pattern={EXACT}, or another attention=."
        )
    digits = len(str(len(own) - 1))
    patch = f"{base.schedule.patch}+" if base.schedule.patch else ""
    return [Arm("all", ()), *(Arm(f"without{i:0{digits}}", (f"{key}='{patch}{i}:{DEFAULT}'",)) for i in places)]


def one_layer(base: DictConfig, key: str, values: Sequence[str] | None) -> list[Arm]:
    """Rule with the default attention everywhere, then with one exact layer at each depth."""
    if values is not None:
        return listed_arms([], key, values)
    depth = int(base.model.depth)
    digits = len(str(depth - 1))
    plain = ("schedule.pattern=attention", f"{key}=null")
    patched = (Arm(f"only{i:0{digits}}", (plain[0], f"{key}='{i}:{EXACT}'")) for i in range(depth))
    return [Arm("none", plain), *patched]


RULES: dict[RuleName, Rule] = {
    "kv_heads": kv_heads,
    "mixers": all_mixers,
    "lengths": lengths,
    "leave_one_out": leave_one_out,
    "one_layer": one_layer,
}
