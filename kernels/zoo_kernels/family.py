"""What every family of kernels shares: choice of a backend, custom ops, their derivatives and FLOPs, calls to compile.

A family is a room ``zoo_kernels/NAME/`` that makes one :class:`Family`, writes the mathematics of each of its ops for
each backend, and is imported by ``zoo_kernels/__init__.py``. Tools ask :func:`families` for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, get_type_hints

import torch
from torch import Tensor

from zoo_kernels.backend import Choice, announce, choose_backend, without_autocast
from zoo_kernels.checks import refuse_forward_mode, refuse_transforms
from zoo_kernels.flops import flop_formula, offer_flops
from zoo_kernels.launch import Table

NAMESPACE = "attention_zoo"
KINDS = {"forward": "{}", "backward": "the backward pass of {}", "step": "a step of {}"}
_TYPES: dict[Any, str] = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    list[Tensor]: "Tensor[]",
    int: "int",
    int | None: "int?",
    float: "float",
    bool: "bool",
    str: "str",
}

Arguments = type[Any]  # a NamedTuple of some arguments of an op, whose annotations are its schema
Backward = Callable[[Any, list[Tensor], tuple[Tensor | None, ...], set[str]], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Family:
    """A family of kernels: the operations of one recurrence or rule, in all backends.

    Attributes:
        name: of its room and, before a dot, of its kernels.
        title: what it computes, for messages; with underscores, the name of its op.
        widths: widest heads that its Triton form takes, by type; the PyTorch form takes any.
        tiles: the tables of its Triton kernels.
        calls: module whose ``CALLS`` between them launch every kernel with every flag; it is imported when asked for.
            None: there is no Triton form, hence no widths and no tiles.
        cases: module that hands its cases to the benchmark when it is imported; None: there are none.
    """

    name: str
    title: str
    widths: Mapping[torch.dtype, int] = field(default_factory=dict)
    tiles: Table = field(default_factory=dict)
    calls: str | None = None
    cases: str | None = None


class Op:
    """A custom op with a form for each backend, and what compilers, autograd and FLOP counters need to know of it.

    Its arguments are given as NamedTuples, the first of which has a field ``backend``; the callables below take the
    same NamedTuples. The form ``reference`` is called directly and not as a custom op, so that PyTorch differentiates
    it. A backend without a form uses the form of ``torch``.
    """

    def __init__(
        self,
        family: Family,
        kind: str,
        *arguments: Arguments,
        forms: Mapping[str, Callable[..., Any]],
        fake: Callable[..., Any],
        flops: Callable[..., int],
        outputs: int = 1,
        empty: Callable[..., Any] | None = None,
        mutates: Iterable[str] = (),
    ) -> None:
        """Registers the op.

        Args:
            family: family of the op.
            kind: ``forward``, ``backward`` or ``step``.
            arguments: the NamedTuples of its arguments.
            forms: functions by backend; ``torch`` and ``triton`` must return new tensors.
            fake: returns empty tensors of the shapes and dtypes of the outputs.
            flops: returns FLOPs, from arguments with shapes in place of tensors.
            outputs: number of tensors that it returns.
            empty: returns the outputs where the first argument has no numbers; None for zeros.
            mutates: fields that are written to.
        """
        self.family, self.arguments, self.forms, self.fake = family, arguments, dict(forms), fake
        self.title, self.empty, writes = KINDS[kind].format(family.title), empty or self._zeros, frozenset(mutates)
        name = family.title.replace(" ", "_") + ("" if kind == "forward" else f"_{kind}")
        self.op = torch.library.custom_op(
            f"{NAMESPACE}::{name}", self._run, mutates_args=writes, schema=_schema(arguments, outputs, writes)
        )
        self.op.register_fake(self._trace)
        packet = getattr(getattr(torch.ops, NAMESPACE), name)
        flop_formula(packet)(lambda *shapes, out_shape=None: flops(*self.grouped(shapes)))

    def __call__(self, *given: Any) -> Any:
        """Outputs of the form that the backend names."""
        if given[0].backend == "reference" and "reference" in self.forms:
            return self.forms["reference"](*given)
        return self.op(*[x for group in given for x in group])

    def enter(
        self, backend: str, *arrays: Tensor, others: Sequence[Tensor | None] = (), missing: str | None = None
    ) -> str:
        """Refuses unsupported transforms and chooses the backend.

        Public functions call it once their arguments are checked.

        Args:
            backend: name of a backend as the caller gave it, or ``auto``.
            arrays: q, k and v, whose device, dtype and widths decide.
            others: further tensors that might carry forward-mode tangents.
            missing: what this call asks for that the Triton form does not support; None if it supports everything.

        Returns:
            The name of the backend that runs the call.

        Raises:
            NotImplementedError: in forward mode and inside torch.func's transforms.
            BackendError: if there is no such backend, or it cannot run here.
        """
        refuse_transforms(self.title, *arrays, *others)
        offer_flops()
        choice = self.choice(backend, *arrays, missing=missing)
        announce(self.title, arrays[0].device, choice)
        return choice.backend

    def choice(self, backend: str, *arrays: Tensor, missing: str | None = None) -> Choice:
        """Returns the backend that :meth:`enter` would choose, and the reason."""
        missing = missing or ("it has no Triton form" if self.family.calls is None else None)
        return choose_backend(backend, self.title, self.family.widths, *arrays, missing=missing)

    def grouped(self, flat: Sequence[Any]) -> list[Any]:
        """Converts the flat arguments of the custom op back to NamedTuples."""
        made, start = [], 0
        for group in self.arguments:
            stop = start + len(group._fields)
            made.append(group(*flat[start:stop]))
            start = stop
        return made

    def _run(self, *flat: Any) -> Any:
        refuse_forward_mode(self.title)
        given = self.grouped(flat)
        form = self.forms.get(given[0].backend, self.forms["torch"])
        return form(*given) if flat[0].numel() else self.empty(*given)

    def _trace(self, *flat: Any) -> Any:
        refuse_forward_mode(self.title)
        return self.fake(*self.grouped(flat))

    def _zeros(self, *given: Any) -> Any:
        made = self.fake(*given)
        return made.zero_() if isinstance(made, Tensor) else tuple(x.zero_() for x in made)

    def differentiate(self, backward: Backward, *, keep: Sequence[int] = (), fixed: Sequence[int] = ()) -> None:
        """Registers the backward pass of the op.

        Args:
            backward: a function of the arguments, the saved outputs, the gradients of all outputs (None for an output
                that nothing used) and the names of the fields whose gradients are wanted; it returns these gradients by
                name.
            keep: indices of the outputs that the backward pass needs.
            fixed: indices of the outputs that have no gradient.
        """

        def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            outputs = output if isinstance(output, tuple) else (output,)
            ctx.given = [_Saved.of(x) for x in inputs]
            tensors = (x for saved, given in zip(ctx.given, inputs) for x in saved.tensors(given))
            ctx.save_for_backward(*tensors, *(outputs[i] for i in keep))
            ctx.mark_non_differentiable(*(outputs[i] for i in fixed))
            ctx.set_materialize_grads(False)

        def run(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
            tensors = iter(ctx.saved_tensors)
            (given,) = self.grouped([saved.restore(tensors) for saved in ctx.given])
            wanted = {name for name, needed in zip(given._fields, ctx.needs_input_grad) if needed is True}
            found: Mapping[str, Tensor] = {}
            if any(grad is not None for grad in grads):
                found = _without_autocast(given[0], backward, given, list(tensors), grads, wanted)
            return tuple(
                [None] * saved.size if saved.kind is list else found[name] if name in wanted & found.keys() else None
                for name, saved in zip(given._fields, ctx.given)
            )

        self.op.register_autograd(run, setup_context=save)


class _Saved(NamedTuple):
    """An argument that waits for the backward pass: a tensor, ``size`` tensors in a list, or a value."""

    kind: type | None
    size: int
    value: Any

    @classmethod
    def of(cls, x: Any) -> _Saved:
        if isinstance(x, Tensor):
            return cls(Tensor, 1, None)
        return cls(list, len(x), None) if isinstance(x, list) else cls(None, 0, x)

    def tensors(self, x: Any) -> Sequence[Tensor]:
        return x if self.kind is list else [x] if self.kind is Tensor else []

    def restore(self, tensors: Any) -> Any:
        if self.kind is list:
            return [next(tensors) for _ in range(self.size)]
        return next(tensors) if self.kind is Tensor else self.value


@without_autocast
def _without_autocast(first: Tensor, function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def _schema(groups: Sequence[Arguments], outputs: int, writes: frozenset[str]) -> str:
    fields = [item for group in groups for item in get_type_hints(group).items()]
    told = [f"{'Tensor(a!)' if name in writes else _TYPES[kind]} {name}" for name, kind in fields]
    return f"({', '.join(told)}) -> {'Tensor' if outputs == 1 else '(' + ', '.join(['Tensor'] * outputs) + ')'}"


_families: dict[str, Family] = {}


def register(family: Family) -> Family:
    """Makes a family known to the tools, the benchmark and the tests.

    Raises:
        ValueError: if the name of the family or of one of its kernels is taken, since tuned tiles are stored by kernel
            name.
    """
    if family.name in _families:
        raise ValueError(f"there is a family {family.name!r} already: choose another name.")
    for other in _families.values():
        if taken := sorted(family.tiles.keys() & other.tiles.keys()):
            raise ValueError(f"kernels {', '.join(taken)} of {family.name} are also in {other.name}: rename them.")
    _families[family.name] = family
    return family


def families() -> dict[str, Family]:
    """Returns all registered families by name."""
    return dict(_families)
