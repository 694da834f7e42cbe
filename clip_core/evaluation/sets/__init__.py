"""Pictures with classes, one file for each published layout.

All are read as they are on disk, archives included; only what gzip compresses is kept a second time, in the cache
folder. Pictures come in the order: the first of each class, the second of each class, and so on. Any number of the
first ones therefore has nearly as many of each class.

``names`` is a file with the names of the classes, as the kind ``folders`` describes it, or ``openai``: the names that
OpenAI gave them. ``templates`` is a list, a file with a template in each line, or ``openai``, ``simple``,
``low-resource`` or ``simple-clip``; ``{}`` stands for the name of the class. Without templates, those in the set's own
files count, else the default of the set, which is ``a photo of a {}.`` unless said otherwise. What is OpenAI's, and
``simple``, is read from an installed clip-benchmark or open_clip.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, get_args

from pydantic import BeforeValidator, Field

from clip_core.data.settings import kind_in_place_of_source
from clip_core.evaluation.sets.caltech101 import Caltech101
from clip_core.evaluation.sets.cifar import Cifar10, Cifar100
from clip_core.evaluation.sets.folders import Folders
from clip_core.evaluation.sets.food101 import Food101Classes
from clip_core.evaluation.sets.imagenet import ImageNet, ImageNetV2
from clip_core.evaluation.sets.labelled import LabelledSettings
from clip_core.evaluation.sets.mnist import FashionMnist, Mnist
from clip_core.evaluation.sets.parquet import Parquet
from clip_core.evaluation.sets.shapes import Shapes
from clip_core.evaluation.sets.stl10 import Stl10
from clip_core.evaluation.sets.wds import Wds

_Single = (
    Folders
    | ImageNet
    | ImageNetV2
    | Cifar10
    | Cifar100
    | Stl10
    | Caltech101
    | Food101Classes
    | Mnist
    | FashionMnist
    | Parquet
    | Wds
    | Shapes
)

Family = Annotated[
    _Single,
    Field(discriminator="kind"),
    BeforeValidator(partial(kind_in_place_of_source, default="folders")),
]

SETS: dict[str, type[LabelledSettings]] = {each.model_fields["kind"].default: each for each in get_args(_Single)}
"""Kind -> the settings of the set."""
