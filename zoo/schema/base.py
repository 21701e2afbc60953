"""Base of all groups of options: strict types, options with a meaning, and models made from signatures.

Values come from YAML or from Hydra's grammar, so that their types are known: a word is no number and ``true`` no count.
Two spellings are converted: an integer may be written as ``1e3``, a name may be a number.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model
from typing_extensions import Self

from zoo.config import ConfigError
from zoo.paths import PathName
from zoo.schema.messages import explain, is_union


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _several(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


VAR_POSITIONAL, VAR_KEYWORD = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
Whole = Annotated[int, BeforeValidator(_whole)]
Positive = Annotated[Whole, Ge(1)]
Count = Annotated[Whole, Ge(0)]
Number = float
Flag = bool
Text = Annotated[str, BeforeValidator(_text)]
PathText = Annotated[PathName, BeforeValidator(_text)]
PictureFormat = Literal["png", "svg", "pdf"]
PictureFormats = Annotated[list[PictureFormat], BeforeValidator(_several)]
FORMATS = "of pictures, as [png,svg,pdf]; pages in Markdown show the first"  # what such an option means


def option(meaning: str, *, default: Any = ..., **bounds: Any) -> Any:
    """Declares an option of a group.

    Args:
        meaning: what it is, its unit included, a phrase that help and errors print.
        default: only for options that earlier versions did not have; all other defaults are in configs/.
        bounds: ``ge``, ``gt``, ``le``, ``lt``, ``min_length`` and ``discriminator`` of pydantic's Field.
    """
    return Field(default, description=meaning, **bounds)


class Options(BaseModel):
    """Base of groups of options, which refuse unknown keys, other types, infinite values and those outside a range."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)

    @classmethod
    def read(cls, node: Mapping[str, Any], path: str = "") -> Self:
        """Checks the options of ``node``.

        Args:
            node: plain values by name.
            path: path of the node, as ``optimizer``, for messages.

        Raises:
            ConfigError: one line that names the options, their values and what was expected.
        """
        try:
            return cls.model_validate(dict(node))
        except ValidationError as error:
            raise ConfigError(explain(cls, node, error, path)) from None


OptionsType = TypeVar("OptionsType", bound=Options)


def model_of_signature(
    function: Callable[..., Any],
    name: str,
    left_out: Collection[str] = (),
    base: type[OptionsType] = Options,  # type: ignore[assignment]
) -> type[OptionsType]:
    """Makes an options model of the keywords of a function or a class, with the types and defaults of its annotations.

    Args:
        function: function or class whose parameters are read.
        name: name of the model.
        left_out: parameters that are not options.
        base: model that has more options.
    """
    target = inspect.unwrap(function.__init__ if inspect.isclass(function) else function)
    parameters = [
        parameter
        for parameter in inspect.signature(target).parameters.values()
        if parameter.name not in ("self", *left_out) and parameter.kind not in (VAR_POSITIONAL, VAR_KEYWORD)
    ]
    hints = _hints(target, {parameter.name for parameter in parameters})
    fields: dict[str, Any] = {}
    for parameter in parameters:
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (lenient(hints.get(parameter.name, Any)), default)
    return create_model(name, __base__=base, **fields)


def _hints(function: Any, names: Collection[str]) -> dict[str, Any]:
    """Annotations of the parameters ``names``; the others may name what only type checkers import."""

    def wanted() -> None: ...

    wanted.__annotations__ = {k: v for k, v in getattr(function, "__annotations__", {}).items() if k in names}
    return get_type_hints(wanted, getattr(function, "__globals__", {}), include_extras=True)


def lenient(hint: Any) -> Any:
    """Returns an annotation of plain types in which integers may be written as ``1e3``."""
    if hint is int:
        return Whole
    if get_origin(hint) is Annotated:
        base, *metadata = get_args(hint)
        parts = (lenient(base), *metadata)
        return Annotated[parts]
    if is_union(hint):
        return Union[tuple(lenient(part) for part in get_args(hint))]  # noqa: UP007
    if get_origin(hint) is list:
        return list[lenient(get_args(hint)[0])]  # type: ignore[misc]
    return hint
