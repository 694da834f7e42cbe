"""The drawn combinations of shape and colour that no training on `shapes` shows, among all combinations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from clip_core.data.settings import Count
from clip_core.data.shapes import HELD_OUT
from clip_core.evaluation.sets.labelled import LabelledSettings
from clip_core.evaluation.shapes import SingleThings


class Shapes(LabelledSettings):
    """Drawn pictures of one thing each, as `clip_core.evaluation.shapes` has them."""

    kind: Literal["shapes"] = "shapes"
    scores: ClassVar[Mapping[str, int]] = {"held_out_top1": 1}

    pictures_per_class: Count = 20

    def labelled(self) -> SingleThings:
        return SingleThings(HELD_OUT, "held out", self.pictures_per_class)
