"""Settings that users write in a recipe: checked values, unknown keys refused, and every fault as one sentence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

LARGEST = 10**12
"""Of counts: what is beyond it is a slip, and beyond the integers of the libraries that count on."""

SHOWN = 60  # characters of a text in a message


class Section(BaseModel):
    """A part of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def _no_switch(value: Any) -> Any:
    if isinstance(value, bool):  # which Python counts among the numbers
        raise ValueError("give a number")
    return value


def _with_place(template: str) -> str:
    if template.count("{}") != 1:
        raise ValueError("write {} once, where the class's name goes")
    return template


Number = BeforeValidator(_no_switch)
"""Beside the type of a number: ``true`` and ``yes`` are none."""

Count = Annotated[int, Number, Field(ge=1, le=LARGEST)]
Positive = Annotated[float, Number, Field(ge=1e-37, le=1e37)]  # what float32 holds with room to spare
Share = Annotated[float, Number, Field(ge=0, lt=1)]

Templates = Annotated[tuple[Annotated[str, AfterValidator(_with_place)], ...], Field(min_length=1)]
"""Prompts for pictures of a class, each with the place of its name."""

Kind = TypeVar("Kind", bound=Section)


class SettingError(ValueError):
    """What is wrong with a setting; a validator that raises it lets the sections around it put their names in front.

    Args:
        keys: that lead to the setting.
        wrong: the sentence, with ``{}`` for the keys.
    """

    def __init__(self, keys: Sequence[str], wrong: str) -> None:
        super().__init__(wrong.replace("{}", ".".join(map(brief, keys)) or "the recipe", 1))
        self.keys, self.wrong = tuple(keys), wrong

    def inside(self, keys: Sequence[str]) -> SettingError:
        """The same of a section that ``keys`` lead to."""
        return SettingError((*keys, *self.keys), self.wrong)


class UnknownKey(SettingError):
    """A key that does not exist: most often it is misspelt or in the wrong section.

    Args:
        keys: that lead to it, itself the last.
        valid: the keys that there are in its place.
        elsewhere: keys of that name in other places, with those that lead to them.
    """

    def __init__(self, keys: Sequence[str], valid: Sequence[str], elsewhere: Sequence[Sequence[str]] = ()) -> None:
        *section, key = keys
        near = (*section, get_close_matches(key[:SHOWN], valid, n=1, cutoff=0.0)[0])
        meant = " or ".join(".".join(each) for each in (*elsewhere, near))
        super().__init__(keys, f"there is no key {{}}; did you mean {meant}? Valid keys are {', '.join(valid)}.")
        self.valid = valid

    def inside(self, keys: Sequence[str]) -> UnknownKey:
        return UnknownKey((*keys, *self.keys), self.valid)


def checked(kind: type[Kind], values: dict[str, Any], also: Iterable[str] = ()) -> Kind:
    """The settings ``values`` of one ``kind``, with defaults filled in.

    Args:
        also: keys that are valid in the same place and belong to something else.

    Raises:
        SettingError: of the first key that is unknown, missing or out of range.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise setting_error(error, kind, also) from error


def setting_error(error: ValidationError, model: type[BaseModel], also: Iterable[str] = ()) -> SettingError:
    """One fault of ``error``: first an unknown key, with the nearest valid one.

    Args:
        model: what was validated.
        also: keys that are valid beside those of ``model``.
    """
    # A key that is missing is most often one that was misspelt.
    fault = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    keys = [str(part) for part in fault["loc"]]
    if fault["type"] == "extra_forbidden":
        section = keys[:-1]
        return UnknownKey(keys, _keys(model, section) + ([] if section else list(also)))
    if fault["type"] == "missing":
        return SettingError(keys, "the key {} is missing.")
    wrong = fault["msg"]
    if fault["type"] == "value_error":  # raised by a validator
        inner = fault["ctx"]["error"]
        if isinstance(inner, SettingError):
            return inner.inside(keys)
        wrong = str(inner)
    if isinstance(fault["input"], dict | BaseModel) and fault["type"] == "value_error":
        return SettingError(keys, f"{{}}: {wrong}.")
    return SettingError(keys, f"{{}} is {shown(fault['input'])}: {wrong[0].lower()}{wrong[1:]}.")


def shown(value: Any) -> str:
    """A value of any kind and size as a message shows it, on one line and short."""
    if isinstance(value, str):
        return repr(value if len(value) <= SHOWN else f"{value[:SHOWN]}...")
    if isinstance(value, int) and value.bit_length() > 200:  # Python refuses to write some out
        return f"a number of {value.bit_length()} bits"
    if value is None or isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        short = len(value) <= 8 and not any(isinstance(entry, list | tuple) for entry in value)
        return f"[{', '.join(map(shown, value))}]" if short else f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"a section of {len(value)} keys" if value else "an empty section"
    return f"a {type(value).__name__}"


def brief(key: str) -> str:
    """A user's key on one line and shortened; a known key unchanged."""
    return key if key and key.isprintable() and len(key) <= SHOWN else shown(key)


def _keys(model: Any, section: Iterable[str]) -> list[str]:
    for part in section:
        annotation = model.model_fields[part].annotation
        model = next(kind for kind in (annotation, *get_args(annotation)) if hasattr(kind, "model_fields"))
    return list(model.model_fields)
