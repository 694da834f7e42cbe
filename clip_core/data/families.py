"""The families of data that a recipe can name in ``data.source``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from clip_core.data.coco import Coco
from clip_core.data.example import Source, SourceSettings
from clip_core.data.food101 import Food101
from clip_core.data.mixture import Mixture
from clip_core.data.paired import Paired
from clip_core.data.saved import M3it, Saved
from clip_core.data.sbu import Sbu
from clip_core.data.settings import Count, SettingError, checked, shown
from clip_core.data.shapes import TrainingSet
from clip_core.data.table import Table
from clip_core.data.textcaps import TextCaps
from clip_core.data.webdataset import WebDataset
from clip_core.errors import ClipError

Name = Literal[
    "shapes", "table", "paired", "food101", "coco", "textcaps", "sbu", "saved", "m3it", "webdataset", "combined"
]


class Shapes(SourceSettings):
    """The drawn pictures of `clip_core.data.shapes`; every run seed draws others."""

    examples: Count = 1_000_000  # in one epoch

    def open(self, seed: int) -> TrainingSet:
        return TrainingSet(seed, self.examples)


class Combined(SourceSettings):
    """A mixture of other sources, each with its ``source``, its own keys, and ``weight`` in all parts or in none."""

    parts: Annotated[tuple[dict[str, Any], ...], Field(min_length=2)]

    @field_validator("parts")
    @classmethod
    def _complete(cls, parts: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        if len({"weight" in part for part in parts}) > 1:
            raise SettingError((), "{} have a weight in some parts only; give one in all of them or in none.")
        return tuple(cls._part(number, part) for number, part in enumerate(parts))

    @staticmethod
    def _part(number: int, part: dict[str, Any]) -> dict[str, Any]:
        own = {key: part[key] for key in ("source", "weight") if key in part}
        name, weight = own.get("source"), own.get("weight", 1)
        if not isinstance(name, str) or name not in SOURCES or name == "combined":
            valid = ", ".join(key for key in SOURCES if key != "combined")
            raise SettingError((str(number), "source"), f"{{}} is {shown(name)}; choose one of {valid}.")
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
            raise SettingError((str(number), "weight"), f"{{}} is {shown(weight)}; give a number above 0.")
        rest = {key: value for key, value in part.items() if key not in own}
        try:
            settings = checked(SOURCES[name], rest, ("source", "weight"))
        except SettingError as error:
            raise error.inside((str(number),)) from error
        return own | settings.model_dump(mode="json")

    def open(self, seed: int) -> Mixture:
        weights = [part["weight"] for part in self.parts] if "weight" in self.parts[0] else None
        sources = []
        for part in self.parts:
            settings = {key: value for key, value in part.items() if key not in ("source", "weight")}
            sources.append(open_source(part["source"], settings, seed))
        return Mixture(sources, weights, seed)


SOURCES: dict[str, type[SourceSettings]] = {
    "shapes": Shapes,
    "table": Table,
    "paired": Paired,
    "food101": Food101,
    "coco": Coco,
    "textcaps": TextCaps,
    "sbu": Sbu,
    "saved": Saved,
    "m3it": M3it,
    "webdataset": WebDataset,
    "combined": Combined,
}


def open_source(source: str, values: dict[str, Any], seed: int) -> Source:
    """The examples that ``source`` with the keys ``values`` stands for.

    Raises:
        ClipError: naming the first key that is unknown, missing or out of range, and as the source itself.
    """
    try:
        settings = checked(SOURCES[source], values)
    except SettingError as error:
        raise ClipError(str(error.inside(("data",)))) from error
    return settings.open(seed)
