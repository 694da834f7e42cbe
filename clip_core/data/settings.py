"""Settings that users write in a recipe: checked values, unknown keys refused, and every fault as one sentence."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from clip_core.errors import ClipError


class Section(BaseModel):
    """A part of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def _with_place(template: str) -> str:
    if template.count("{}") != 1:
        raise ValueError("write {} once, where the class's name goes")
    return template


Templates = Annotated[tuple[Annotated[str, AfterValidator(_with_place)], ...], Field(min_length=1)]
"""Prompts for pictures of a class, each with the place of its name."""

Kind = TypeVar("Kind", bound=Section)


def checked(kind: type[Kind], values: dict[str, Any], place: Iterable[str], also: Iterable[str] = ()) -> Kind:
    """The settings ``values`` of one ``kind``, with defaults filled in.

    Args:
        place: the keys that lead to them in the recipe.
        also: keys that are valid in the same place and belong to something else.

    Raises:
        ClipError: naming the first key that is unknown, missing or out of range.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ClipError(sentence(error, kind, place, also)) from error


def sentence(
    error: ValidationError, model: type[BaseModel], place: Iterable[str] = (), also: Iterable[str] = ()
) -> str:
    """One fault of ``error`` in words: first an unknown key, with the nearest valid one.

    Args:
        model: what was validated.
        place: the keys that lead to it in the recipe.
        also: keys that are valid beside those of ``model``.
    """
    # A key that is missing is most often one that was misspelt.
    fault = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    *section, key = [str(part) for part in fault["loc"]] or ["recipe"]
    where = ".".join([*place, *section, key])
    if fault["type"] == "extra_forbidden":
        valid = _keys(model, section) + ([] if section else list(also))
        near = get_close_matches(key, valid, n=1, cutoff=0.0)[0]
        return f"there is no key {where}; did you mean {near}? Valid keys are {', '.join(valid)}."
    if fault["type"] == "missing":
        return f"the key {where} is missing."
    return f"{where} is {fault['input']!r}: {fault['msg'][0].lower()}{fault['msg'][1:]}."


def _keys(model: Any, section: Iterable[str]) -> list[str]:
    for part in section:
        annotation = model.model_fields[part].annotation
        model = next(kind for kind in (annotation, *get_args(annotation)) if hasattr(kind, "model_fields"))
    return list(model.model_fields)
