"""Pictures with classes, one file for each published layout.

All are read as they are on disk. Pictures come in the order: the first of each class, the second of each class, and so
on. Any number of the first ones therefore has nearly as many of each class.

``templates`` are a list, the name of one (`clip_core.evaluation.prompts`), or a file with one template in each line;
``{}`` stands for the class. Without them, those in the set's own files count, else the set's default.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, get_args

from pydantic import BeforeValidator, Field

from clip_core.data.settings import kind_in_place_of_source
from clip_core.evaluation.sets.cifar import Cifar10
from clip_core.evaluation.sets.folders import Folders
from clip_core.evaluation.sets.food101 import Food101Classes
from clip_core.evaluation.sets.labelled import LabelledSettings
from clip_core.evaluation.sets.shapes import Shapes

_Single = Folders | Cifar10 | Food101Classes | Shapes

Family = Annotated[
    _Single,
    Field(discriminator="kind"),
    BeforeValidator(partial(kind_in_place_of_source, default="folders")),
]

SETS: dict[str, type[LabelledSettings]] = {each.model_fields["kind"].default: each for each in get_args(_Single)}
"""Kind -> the settings of the set."""
