"""Settings that users write in a recipe: checked values, unknown keys refused, and every fault as one sentence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, get_args, get_origin

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


def kind_in_place_of_source(section: Any, default: str | None = None) -> Any:
    """A section that one of several kinds is to read; recipes of before call the kind ``source``.

    Args:
        default: of recipes of before, which could leave it out.
    """
    if not isinstance(section, dict) or "kind" in section or ("source" not in section and default is None):
        return section
    rest = {key: value for key, value in section.items() if key != "source"}
    return {"kind": section.get("source", default), **rest}


def setting_error(error: ValidationError, model: type[BaseModel]) -> SettingError:
    """One fault of ``error``: first an unknown key, with the nearest valid one.

    Args:
        model: what was validated.
    """
    # A key that is missing is most often one that was misspelt.
    fault = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    keys, section = _place(model, fault["loc"])
    if fault["type"] == "extra_forbidden":
        return UnknownKey(keys, list(section.model_fields))
    if fault["type"] == "missing":
        return SettingError(keys, "the key {} is missing.")
    if fault["type"] == "union_tag_not_found":
        return SettingError((*keys, "kind"), "the key {} is missing.")
    if fault["type"] == "union_tag_invalid":
        kinds = fault["ctx"]["expected_tags"].replace("'", "")
        return SettingError((*keys, "kind"), f"{{}} is {shown(fault['input']['kind'])}; choose one of {kinds}.")
    wrong = fault["msg"]
    if fault["type"] == "value_error":  # raised by a validator
        inner = fault["ctx"]["error"]
        if isinstance(inner, SettingError):
            return inner.inside(keys)
        wrong = str(inner)
    if isinstance(fault["input"], dict | BaseModel) and fault["type"] == "value_error":
        return SettingError(keys, f"{{}}: {wrong}.")
    return SettingError(keys, f"{{}} is {shown(fault['input'])}: {wrong[0].lower()}{wrong[1:]}.")


def sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that a value of this type may be, or may have among its entries."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from sections_in(part)


def _place(model: type[BaseModel], location: Iterable[str | int]) -> tuple[list[str], type[BaseModel]]:
    """The keys that lead to a fault, and the innermost section there.

    pydantic also names which kind of a section, or which type of a value, it has tried: these are no keys.
    """
    keys: list[str] = []
    here, inside = model, [model]
    entries = False  # whether what is next is a key of a plain dictionary
    for part in location:
        if isinstance(part, int):
            keys.append(str(part))
        elif len(inside) > 1:
            inside = [section for section in inside if section.model_fields["kind"].default == part]
            here = inside[0]
        elif inside:
            keys.append(part)
            here = inside[0]
            field = here.model_fields.get(part)
            inside = list(sections_in(field.annotation)) if field is not None else []
            entries = field is not None and get_origin(field.annotation) is dict
        elif entries:
            keys.append(part)
            entries = False
    return keys, here


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
