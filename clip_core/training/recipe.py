"""A training recipe: a YAML file whose sections say what is trained, on what, and how. Unknown keys are refused."""

from __future__ import annotations

import os
from difflib import get_close_matches
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from clip_core.architecture import MODELS, Architecture
from clip_core.errors import ClipError
from clip_core.files import read_regular, write_text

MAXIMUM_BYTES = 1 << 20

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A part of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Model(Section):
    """What is trained, from `clip_core.initialize`'s values."""

    architecture: str | dict[str, Any]  # a name that `clip models` lists, or what Architecture.to_dict gives

    @field_validator("architecture")
    @classmethod
    def _known(cls, value: str | dict[str, Any]) -> str | dict[str, Any]:
        if isinstance(value, dict):
            Architecture.from_dict(value)
        elif value not in MODELS:
            raise ClipError(f"there is no model {value!r}; choose one of {', '.join(MODELS)}")
        return value

    def build(self) -> Architecture:
        """The architecture itself."""
        value = self.architecture
        return MODELS[value].architecture if isinstance(value, str) else Architecture.from_dict(value)


class Data(Section):
    """Where pictures and captions come from."""

    source: Literal["shapes"] = "shapes"
    examples: Count = 1_000_000  # in one epoch
    batch_size: Count = 128
    workers: Annotated[int, Field(ge=0)] = 0  # processes that make batches ahead of time; 0: made between the steps


class Loss(Section):
    """What is minimised over the pairs of a batch."""

    kind: Literal["softmax", "sigmoid"] = "softmax"  # CLIP's, or SigLIP's, which also learns a bias
    reduction: Literal["mean", "sum"] = "mean"  # of softmax's two directions; PASSL adds them
    initial_logit_scale: Positive = 1 / 0.07
    initial_logit_bias: Annotated[float, Field(allow_inf_nan=False)] = -10.0


class Optimizer(Section):
    """Adam or AdamW, both as PyTorch defines them."""

    name: Literal["adamw", "adam"] = "adamw"  # decoupled decay, or decay as a part of the gradient
    learning_rate: Positive = 5e-4  # the highest, reached after the warm-up
    image_learning_rate: Positive | None = None  # of the image tower, when it has one of its own
    text_learning_rate: Positive | None = None
    frozen: tuple[Literal["image", "text"], ...] = ()  # towers that keep their weights
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.2
    decay: Literal["matrices", "all"] = "matrices"  # without or with norms, biases, vectors and scalars
    betas: tuple[Share, Share] = (0.9, 0.98)
    epsilon: Positive = 1e-6
    gradient_clip: Positive | None = None  # the largest norm of all gradients together
    logit_scale_bounds: tuple[Positive, Positive] = (0.01, 100.0)  # of the factor, after each step


class Schedule(Section):
    """Linear warm-up, then half a cosine."""

    warm_up_steps: Annotated[int, Field(ge=0)] = 0
    final_share: Annotated[float, Field(ge=0, le=1)] = 0.0  # of the learning rate, left after the last step


class Training(Section):
    """How long, from which random numbers, and how exactly."""

    steps: Count | None = None  # of the whole run; or in place of it
    epochs: Count | None = None  # times that every example comes up
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0  # of the initial weights, the pictures and their order
    precision: Literal["fp32", "bf16"] = "fp32"
    micro_batch_size: Count | None = None  # pairs that are in memory at once; the gradient is still the whole batch's

    @model_validator(mode="after")
    def _one_length(self) -> Training:
        if (self.steps is None) == (self.epochs is None):
            raise ClipError("training needs either steps or epochs, the length of the run; give one of them")
        return self

    def total_steps(self, steps_per_epoch: int) -> int:
        """The length of the whole run."""
        return self.steps if self.steps is not None else (self.epochs or 1) * steps_per_epoch


class Checkpoint(Section):
    """When the training state is kept."""

    every_steps: Count = 1000
    keep: Count = 2  # the newest so many


class Recipe(Section):
    """All of a training run; the backend is chosen apart, and any can follow any recipe."""

    model: Model
    training: Training
    data: Data = Data()
    optimizer: Optimizer = Optimizer()
    loss: Loss = Loss()
    schedule: Schedule = Schedule()
    checkpoint: Checkpoint = Checkpoint()

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Recipe:
        """Read a YAML file.

        Raises:
            ClipError: the file cannot be read or is not YAML, or naming the first key that is unknown (with the
                nearest valid one), missing or out of range.
        """
        try:
            data = yaml.safe_load(read_regular(path, MAXIMUM_BYTES))
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
            raise ClipError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
        return cls.parse(data, str(path))

    @classmethod
    def parse(cls, data: Any, source: str = "The recipe") -> Recipe:
        """A recipe from plain data.

        Raises:
            ClipError: as `read`.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise ClipError(f"{source}: {_sentence(error)}") from error
        except ClipError as error:
            raise ClipError(f"{source}: {error}") from error

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write this recipe, defaults filled in, as YAML that `read` reads back."""
        write_text(path, yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))


def _sentence(error: ValidationError) -> str:
    fault = error.errors()[0]
    *section, key = [str(part) for part in fault["loc"]] or ["recipe"]
    place = ".".join([*section, key])
    if fault["type"] == "extra_forbidden":
        owner: Any = Recipe
        for part in section:
            owner = owner.model_fields[part].annotation
        valid = list(owner.model_fields)
        near = get_close_matches(key, valid, n=1, cutoff=0.0)[0]
        return f"there is no key {place}; did you mean {near}? Valid keys are {', '.join(valid)}."
    if fault["type"] == "missing":
        return f"the key {place} is missing."
    return f"{place} is {fault['input']!r}: {fault['msg'][0].lower()}{fault['msg'][1:]}."
