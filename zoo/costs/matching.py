"""Matching for fair comparisons: one integer of a configuration is solved so that runs cost the same.

``match=params``, ``flops`` or ``cache`` says which cost. Costs are those of :meth:`zoo.model.Decoder.cost`, closed
forms on a decoder without memory. The reference is the run's own configuration with the overrides of
``match.reference``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from zoo.config import ConfigError
from zoo.costs.search import IntegerSearch
from zoo.mixers.base import Cost
from zoo.model import Decoder
from zoo.model.from_config import Architecture, decoder_config

MLP = "model.mlp_width"
MLP_STEP = 8  # widths that are multiples of it fill matrix units
_NOTHING = object()
Quantity = Literal["params", "flops", "cache"]


@dataclass(frozen=True)
class CostMeasure:
    """How a quantity is read from a cost, and how a figure of it is written."""

    of: Callable[[Cost], float]
    unit: str


MEASURES: dict[Quantity, CostMeasure] = {
    "params": CostMeasure(lambda cost: cost.parameters, "parameters"),
    "flops": CostMeasure(lambda cost: cost.flops_per_token, "FLOP per token forward"),
    "cache": CostMeasure(lambda cost: cost.cache_bytes, "bytes of cache"),
}


@dataclass(frozen=True)
class MatchResult:
    """Result of matching.

    Attributes:
        quantity: the matched quantity.
        knob: path of the value that was solved.
        changed: old and new value of every path that was changed: the knob, or nothing.
        reference_value: the quantity of the reference.
        before: the quantity of the run before matching.
        after: the quantity of the run as it is returned.
        context: tokens at which it was counted.
    """

    quantity: Quantity
    knob: str
    changed: dict[str, tuple[int | None, int]]
    reference_value: float
    before: float
    after: float
    context: int

    @property
    def ratio(self) -> float:
        """Quantity of the run as a multiple of the reference's."""
        return self.after / self.reference_value

    def line(self) -> str:
        """Describes the result in a line, for the summary of a run."""
        old, new = self.changed.get(self.knob, (None, None))
        what = "stays" if new is None else f"{'null' if old is None else old} -> {new}"
        unit = MEASURES[self.quantity].unit + ("" if self.quantity == "params" else f" at {self.context:,} tokens")
        return (
            f"match     {self.knob} {what}: {self.after:,.0f} {unit}, reference {self.reference_value:,.0f} "
            f"({_percent(self.ratio - 1)} off)"
        )


def _percent(part: float) -> str:
    return f"{abs(part) * 100:.2f} %"


def match_config(config: DictConfig, vocab_size: int | None = None) -> tuple[DictConfig, MatchResult | None]:
    """Solves the knob of ``config.match`` so that the run costs what the reference costs.

    The value whose cost is nearest is taken, the old one if none is nearer. If it changes, its old value becomes part
    of ``match.reference``, so that matching again finds the same reference and changes nothing.

    Args:
        config: configuration of a run, as train.py composes and checks it; it is not changed.
        vocab_size: tokens of the vocabulary. None if it is not known: then costs are counted with a vocabulary of one,
            which changes no difference, and makes the tolerance relative to all parameters but the embeddings.

    Returns:
        The configuration, and the result; None if nothing is to be matched.

    Raises:
        ConfigError: if no value of the knob comes within the tolerance, or there is no such knob.
        ValueError: if the configuration itself has sizes that do not fit together.
    """
    options = config.get("match")
    if options is None or options.quantity is None:
        return config, None
    quantity, knob = options.quantity, options.knob
    old = _old_value(config, knob)
    context = config.data.length if options.context is None else options.context
    reference = _reference(config)
    if vocab_size is None and (knob == "model.width" or _embeddings(reference.model) != _embeddings(config.model)):
        raise ConfigError(f"match={quantity}: embeddings differ from the reference's, so the vocabulary must be known.")

    def measure(candidate: DictConfig) -> float:
        with torch.device("meta"):
            decoder = Decoder(decoder_config(Architecture.of(candidate), vocab_size or 1))
        return MEASURES[quantity].of(decoder.cost(context))

    try:
        target = measure(reference)
    except ValueError as error:
        raise ConfigError(f"match.reference cannot be built: {error}") from error
    before = measure(config)
    found = None if before == target else _solve(config, measure, target, before, old)
    if found is None:
        return config, MatchResult(quantity, knob, {}, target, before, before, context)
    result = MatchResult(quantity, knob, {knob: (old, found[0])}, target, before, found[1], context)
    return _turned(config, knob, found[0]), result


def _turned(config: DictConfig, knob: str, value: int) -> DictConfig:
    """A copy with another value of the knob; the reference keeps the one that it had."""
    turned = copy.deepcopy(config)
    if OmegaConf.select(config.match.reference, knob, default=_NOTHING) is _NOTHING:
        OmegaConf.update(turned, f"match.reference.{knob}", OmegaConf.select(config, knob), force_add=True)
    OmegaConf.update(turned, knob, value)
    return turned


def _old_value(config: DictConfig, knob: str | None) -> int | None:
    """The value that the knob has now; None if it is null and what that stands for is not known."""
    value = _NOTHING if knob is None else OmegaConf.select(config, knob, default=_NOTHING)
    if value is _NOTHING:
        raise ConfigError(
            f"match.knob={'null' if knob is None else knob}: the configuration has no such value; expected a path such "
            f"as {MLP} or mixers.gqa.kv_heads."
        )
    if isinstance(value, bool) or not isinstance(value, (int, type(None))):
        raise ConfigError(f"match.knob={knob} is {value!r}: expected the path of a whole number.")
    return decoder_config(Architecture.of(config), 1).hidden_width() if knob == MLP else value


def _reference(config: DictConfig) -> DictConfig:
    """The configuration with ``match.reference`` laid over it."""
    reference = config.match.reference or {}
    for key, value in reference.items():
        if isinstance(config.get(key), DictConfig) and not isinstance(value, DictConfig):
            raise ConfigError(
                f"match.reference.{key}={value!r}: expected values below it, as "
                "match.reference.schedule.pattern=softmax; files of a group cannot be named here."
            )
    base = copy.deepcopy(config)
    OmegaConf.set_struct(base.mixers, False)  # the reference may have instances of its own
    try:
        merged = OmegaConf.merge(base, reference)
    except OmegaConfBaseException as error:
        raise ConfigError(f"match.reference does not fit: {str(error).splitlines()[0]}.") from error
    assert isinstance(merged, DictConfig)
    return merged


def _embeddings(model: DictConfig) -> tuple[int, bool]:
    return model.width, model.tie_embeddings


def _solve(
    config: DictConfig, measure: Callable[[DictConfig], float], target: float, before: float, old: int | None
) -> tuple[int, float] | None:
    """The knob's best value and the cost there; None if none is better than what it is."""
    trial, match = copy.deepcopy(config), config.match

    def at(value: int) -> float | None:
        OmegaConf.update(trial, match.knob, value)
        try:
            return measure(trial)
        except ValueError:
            return None

    for step in _steps(match.step, match.knob):
        search = IntegerSearch(at, target, step)
        search.run(old)
        nearest = search.nearest
        better = nearest is not None and abs(nearest[1] - target) < abs(before - target)
        reached = nearest[1] if nearest is not None and better else before
        if abs(reached - target) <= match.tolerance * target:
            return nearest if better else None
    raise ConfigError(_refusal(match, decoder_config(Architecture.of(config), 1).layer_types, search, target, before))


def _steps(step: int | None, knob: str) -> Iterator[int]:
    if step is not None:
        yield step
        return
    if knob == MLP:
        yield MLP_STEP
    yield 1


def _refusal(match: DictConfig, layers: Sequence[str], search: IntegerSearch, target: float, before: float) -> str:
    """Why no value will do, and what to do."""
    knob, unit, measured = match.knob, MEASURES[match.quantity].unit, search.measured
    start = f"match={match.quantity}: "
    elsewhere = "name another whole number with match.knob=..., or set match=none."
    if not measured:
        return f"{start}no value of {knob} is accepted; {elsewhere}"
    if set(measured.values()) <= {before}:
        parts = knob.split(".")
        unused = parts[0] == "mixers" and parts[1] not in layers
        why = f" (no layer is a {parts[1]}: they are {', '.join(dict.fromkeys(layers))})" if unused else ""
        return (
            f"{start}{knob} does not change the {unit}{why}, which are {before:,.0f}, the reference's {target:,.0f}: "
            + elsewhere
        )
    assert search.nearest is not None
    best, reached = search.nearest
    end = " (the smallest)" if best == min(measured) else ""
    return (
        f"{start}no {knob} comes within {_percent(match.tolerance)} of the reference's {target:,.0f} {unit}: "
        f"the nearest, {best}{end}, has {reached:,.0f}, {_percent(reached / target - 1)} off"
        + ("" if search.complete else ", and the cost rises and falls with it, so that not all were tried")
        + f"; {elsewhere}"
    )
