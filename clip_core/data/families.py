"""The families of data that a recipe can name as the ``kind`` of a source."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from clip_core.data.captioned import Flickr8k, Flickr30k
from clip_core.data.coco import Coco
from clip_core.data.example import SourceSettings
from clip_core.data.flickr import Flickr
from clip_core.data.food101 import Food101
from clip_core.data.karpathy import Karpathy
from clip_core.data.mixture import Mixture
from clip_core.data.paired import Paired
from clip_core.data.saved import M3it, Saved
from clip_core.data.sbu import Sbu
from clip_core.data.settings import Count, Positive, SettingError, kind_in_place_of_source
from clip_core.data.shapes import TrainingSet
from clip_core.data.table import Table
from clip_core.data.textcaps import TextCaps
from clip_core.data.wds import WdsRetrieval
from clip_core.data.webdataset import WebDataset


class Shapes(SourceSettings):
    """The drawn pictures of `clip_core.data.shapes`; every run seed draws others."""

    kind: Literal["shapes"] = "shapes"
    examples: Count = 1_000_000  # in one epoch

    def open(self, seed: int) -> TrainingSet:
        return TrainingSet(seed, self.examples)


Single = (
    Shapes
    | Table
    | Paired
    | Food101
    | Coco
    | Karpathy
    | Flickr
    | Flickr30k
    | Flickr8k
    | TextCaps
    | Sbu
    | Saved
    | M3it
    | WebDataset
    | WdsRetrieval
)


class Combined(SourceSettings):
    """A mixture of other sources, by default with as many places for each as it has examples."""

    kind: Literal["combined"] = "combined"
    parts: Annotated[
        tuple[Annotated[Single, Field(discriminator="kind"), BeforeValidator(kind_in_place_of_source)], ...],
        Field(min_length=2),
    ]
    weights: tuple[Positive, ...] | None = None  # of each part: its share of the places

    @model_validator(mode="before")
    @classmethod
    def _weights_apart(cls, data: Any) -> Any:
        """Recipes of before have a ``weight`` in each part."""
        parts = data.get("parts") if isinstance(data, dict) and "weights" not in data else None
        if not isinstance(parts, list | tuple) or not all(isinstance(part, dict) for part in parts):
            return data
        weights = [part["weight"] for part in parts if "weight" in part]
        if not weights:
            return data
        if len(weights) < len(parts):
            raise SettingError(("parts",), "{} have a weight in some parts only; give weights, one for each part.")
        own = [{key: value for key, value in part.items() if key != "weight"} for part in parts]
        return data | {"parts": own, "weights": weights}

    @model_validator(mode="after")
    def _a_weight_for_each(self) -> Combined:
        if self.weights is not None and len(self.weights) != len(self.parts):
            found = f"{len(self.weights)} weights for {len(self.parts)} parts"
            raise SettingError(("weights",), f"{{}} has {found}; give one for each part.")
        return self

    def open(self, seed: int) -> Mixture:
        return Mixture([part.open(seed) for part in self.parts], self.weights, seed)


Family = Annotated[Single | Combined, Field(discriminator="kind"), BeforeValidator(kind_in_place_of_source)]

FAMILIES = {family.model_fields["kind"].default: family for family in (*get_args(Single), Combined)}


def source_apart(data: Any, own: Collection[str]) -> Any:
    """A section with the keys of its source in a section of their own.

    Recipes of before name the kind as ``source``, and have its keys beside those of the section, ``own``.
    """
    if not isinstance(data, dict) or not isinstance(data.get("source", "shapes"), str):
        return data
    kind = data.get("source", "shapes")
    of_kind = FAMILIES[kind].model_fields.keys() - own if kind in FAMILIES else set()
    source = {key: value for key, value in data.items() if key in of_kind}
    return {key: value for key, value in data.items() if key not in of_kind} | {"source": {"kind": kind} | source}
