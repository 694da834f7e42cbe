"""A training recipe: a YAML file whose sections say what is trained, on what, and how. Unknown keys are refused."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

import clip_core
from clip_core.architecture import Architecture
from clip_core.data import families
from clip_core.data.augmentation import Augmentation
from clip_core.data.settings import (
    LARGEST,
    Count,
    Number,
    Positive,
    Section,
    SettingError,
    Share,
    UnknownKey,
    brief,
    sections_in,
    setting_error,
    shown,
)
from clip_core.errors import ClipError
from clip_core.evaluation import sentences as of_sentences
from clip_core.evaluation import sets
from clip_core.files import read_regular, write_text
from clip_core.models import architecture_of, written_out
from clip_core.noise import HIGHEST_RATE
from clip_core.training import plain_yaml
from clip_core.training.checkpoint import LAST_STEP


class Pretrained(Section):
    """Towers that start from weights trained before, but for their heads.

    Each is a path, or a name in PyTorch's cache, such as ``torchvision/resnet50``, or in Hugging Face's, such as
    ``distilbert-base-uncased``.
    """

    image: str | None = None  # of the kind and size of the recipe's image tower
    text: str | None = None  # likewise; brings its tokenizer along, unless model.vocabulary names another


class Model(Section):
    """What is trained, from `clip_core.initialize`'s values unless ``pretrained`` says otherwise."""

    # A name that `clip models` lists, or a description by numbers, whose towers may be names, too.
    architecture: str | dict[str, Any]
    vocabulary: str | None = None  # a merges file; by default OpenAI's, or for another size learnt from the captions
    pretrained: Pretrained = Pretrained()

    @field_validator("architecture", mode="before")
    @classmethod
    def _known(cls, value: Any) -> str | dict[str, Any]:
        if isinstance(value, dict):
            try:
                return Architecture.from_dict(
                    written_out(value)
                ).to_dict()  # with all that older descriptions leave out
            except ClipError as error:
                raise SettingError((), f"{{}}: {error}") from error
        if not isinstance(value, str) or architecture_of(value) is None:
            raise ValueError("there is no such model; choose one that clip models lists, such as ViT-B/32")
        return value

    def build(self) -> Architecture:
        """The architecture itself."""
        value = self.architecture
        named = architecture_of(value) if isinstance(value, str) else Architecture.from_dict(value)
        assert named is not None, "_known has looked"
        return named


class Data(Section):
    """Where pictures and captions come from, and what batches are made of them."""

    source: families.Family = families.Shapes()  # pictures with captions
    batch_size: Count = 128  # of all processes together, 2 or more
    # Processes that make batches ahead of time; 0: they are made between the steps.
    workers: Annotated[int, Number, Field(ge=0, le=1024)] = 0
    augmentation: Augmentation = Augmentation()
    fault_share: Share = 0.01  # the run ends when more of the examples cannot be used

    @field_validator("batch_size")
    @classmethod
    def _others_to_tell_from(cls, value: int) -> int:
        if value < 2:
            raise ValueError("a picture has to be told from others of its batch, so give 2 or more")
        return value

    @model_validator(mode="before")
    @classmethod
    def _source_apart(cls, data: Any) -> Any:
        return families.source_apart(data, cls.model_fields)


class Loss(Section):
    """What is minimised over the pairs of a batch."""

    kind: Literal["softmax", "sigmoid"] = "softmax"  # CLIP's, or SigLIP's, which also learns a bias
    reduction: Literal["mean", "sum"] = "mean"  # of softmax's two directions; PASSL adds them
    initial_logit_scale: Positive = 1 / 0.07  # the factor of the cosines
    initial_logit_bias: Annotated[float, Number, Field(ge=-1e37, le=1e37)] = -10.0  # of sigmoid


class Optimizer(Section):
    """Adam or AdamW, both as PyTorch defines them."""

    name: Literal["adamw", "adam"] = "adamw"  # decoupled decay, or decay as a part of the gradient
    learning_rate: Positive = 5e-4  # the highest, reached after the warm-up
    image_learning_rate: Positive | None = None  # of the image tower, when it has one of its own
    text_learning_rate: Positive | None = None  # of the text tower, likewise
    frozen: tuple[Literal["image", "text"], ...] = ()  # towers that keep their weights
    # Times the learning rate, it is the share of a weight that a step takes away; of adam, a part of the gradient.
    weight_decay: Annotated[float, Number, Field(ge=0, le=1e37)] = 0.2
    decay: Literal["matrices", "all"] = "matrices"  # without or with norms, biases, vectors and scalars
    betas: tuple[Share, Share] = (0.9, 0.98)  # of the moving averages of the gradient and of its square
    epsilon: Positive = 1e-6  # beside the root of the second average
    gradient_clip: Positive | None = None  # the largest norm of all gradients together
    logit_scale_bounds: tuple[Positive, Positive] = (0.01, 100.0)  # of the factor, after each step
    ema_decay: Annotated[float, Number, Field(gt=0, lt=1)] | None = None  # of a moving average of the weights

    @field_validator("logit_scale_bounds")
    @classmethod
    def _rising(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError("give the lower bound first")
        return value

    @model_validator(mode="after")
    def _leaves_something(self) -> Optimizer:
        highest = max(self.learning_rate, self.image_learning_rate or 0.0, self.text_learning_rate or 0.0)
        if self.name == "adamw" and highest * self.weight_decay >= 1:
            raise SettingError(
                ("weight_decay",),
                f"{{}} is {self.weight_decay:g}, and a learning rate {highest:g}, whose product is the share of each "
                "weight that a step takes away; it has to be below 1.",
            )
        return self


Rate = Annotated[float, Number, Field(ge=0, le=HIGHEST_RATE)]


class Noise(Section):
    """What the blocks of one tower drop at random while they are trained (`clip_core.noise`)."""

    dropout: Rate = 0.0  # of the numbers that attention and MLP add
    drop_path: Rate = 0.0  # of the examples to which attention or MLP of the last block add nothing


class ImageNoise(Noise):
    """What the image tower leaves out at random besides."""

    patch_dropout: Share = 0.0  # of the patches of each picture


class Regularization(Section):
    """Noise of training, the same in every framework."""

    image: ImageNoise = ImageNoise()
    text: Noise = Noise()


class Schedule(Section):
    """Linear warm-up, then half a cosine."""

    warm_up_steps: Annotated[int, Number, Field(ge=0, le=LARGEST)] = 0  # in which the learning rate rises
    final_share: Annotated[float, Number, Field(ge=0, le=1)] = 0.0  # of the learning rate, left after the last step


class Training(Section):
    """How long, from which random numbers, and how exactly."""

    steps: Annotated[int, Number, Field(ge=1, le=LAST_STEP)] | None = None  # of the whole run; give these or epochs
    epochs: Count | None = None  # times that every example comes up
    seed: Annotated[int, Number, Field(ge=0, lt=2**32)] = 0  # of the initial weights, the pictures and their order
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of matrix products; weights and updates are fp32
    micro_batch_size: Count | None = None  # pairs that are in memory at once; the gradient is still the whole batch's
    gradient_checkpointing: bool = False  # compute each block again in the backward pass instead of keeping it
    compile: bool = False  # with torch.compile; PyTorch alone
    fully_sharded: bool = False  # weights and moments spread over the processes (FSDP2); PyTorch alone

    @model_validator(mode="after")
    def _one_length(self) -> Training:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either training.steps or training.epochs, the length of the run")
        return self

    def total_steps(self, steps_per_epoch: int) -> int:
        """The length of the whole run.

        Raises:
            ClipError: it is more than checkpoints have names for.
        """
        total = self.steps if self.steps is not None else (self.epochs or 1) * steps_per_epoch
        if total > LAST_STEP:
            raise ClipError(f"training.epochs makes {total:,} steps, and a run has at most {LAST_STEP:,}; lower it.")
        return total


class CheckpointSettings(Section):
    """When the training state is kept."""

    every_steps: Count = 1000  # and after the last
    keep: Count = 2  # the newest so many
    background: bool = False  # write while training goes on


class Log(Section):
    """What a run writes for other programs, beside its own metrics."""

    tensorboard: bool = False  # event files
    nnabla_monitor: bool = False  # text files as nnabla.monitor writes them


class Evaluation(Section):
    """Scores on data that training does not see, while it goes on and after its last step."""

    every_steps: Count  # and after the last
    examples: Count = 5000  # at most so many of each data set, the first ones
    batch_size: Count = 128  # pairs among which the loss is computed, and pictures that are in memory at once
    retrieval: families.Family | None = None  # pictures with captions, for the loss and for retrieval
    zero_shot: sets.Family | None = None  # pictures with classes, which the model is to tell by prompts
    sentences: of_sentences.Family | None = None  # pairs of sentences, whose cosines are to go with what people judge

    @model_validator(mode="after")
    def _of_something(self) -> Evaluation:
        if self.retrieval is None and self.zero_shot is None and self.sentences is None:
            raise ValueError(
                "there is nothing to score the model on; give evaluation.retrieval, evaluation.zero_shot or "
                "evaluation.sentences"
            )
        return self


class Recipe(Section):
    """All of a training run; the backend is chosen apart, and any can follow any recipe."""

    model: Model
    training: Training
    data: Data = Data()
    optimizer: Optimizer = Optimizer()
    loss: Loss = Loss()
    regularization: Regularization = Regularization()
    schedule: Schedule = Schedule()
    checkpoint: CheckpointSettings = CheckpointSettings()
    log: Log = Log()
    evaluation: Evaluation | None = None

    @classmethod
    def read(cls, path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None) -> Recipe:
        """Read a YAML file.

        Args:
            overrides: keys, as in ``data.augmentation.crop``, -> values in place of the file's; ``None`` removes what
                is there, and sections that a key goes through are made.

        Raises:
            ClipError: the file cannot be read or is not plain YAML, or naming the first key that is unknown (with the
                nearest valid one), missing or out of range.
        """
        data = plain_yaml.load(read_regular(path, plain_yaml.MAXIMUM_BYTES), str(path))
        if not isinstance(data, dict):
            raise ClipError(f"{path} is no recipe, which has sections such as model and training; give one.")
        model = data.get("model")
        if isinstance(model, dict) and model.get("name") == "CLIPWrapper":
            raise ClipError(
                f"{path} is a configuration of PASSL, expected a recipe; clip/vit-b-32 is that of its CLIP here, and "
                "docs/migrating.md says what each of its keys becomes."
            )
        return cls.parse(data, str(path), overrides)

    @classmethod
    def parse(
        cls, data: dict[str, Any], source: str = "The recipe", overrides: Mapping[str, Any] | None = None
    ) -> Recipe:
        """A recipe from plain data.

        Args:
            source: where it is from, for error messages.
            overrides: as in `read`.

        Raises:
            ClipError: as `read`.
        """
        overrides = overrides or {}
        for key, value in overrides.items():
            if key.startswith("model.architecture."):
                data = _with_the_architecture_written_out(data)
            try:
                data = _changed(data, key.split("."), value)
            except SettingError as error:
                raise ClipError(f"The override {brief(key)}: {error}") from error
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            found = setting_error(error, cls)
            if isinstance(found, UnknownKey):
                elsewhere = list(dict.fromkeys(keys for keys in _all_keys(cls) if keys[-1] == found.keys[-1]))
                found = UnknownKey(found.keys, found.valid, elsewhere)
            for key in overrides:
                if found.keys[: key.count(".") + 1] == tuple(key.split(".")):
                    source = f"The override {brief(key)}"
            raise ClipError(f"{source}: {found}") from error

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write this recipe, defaults filled in, as YAML that `read` reads back."""
        write_text(path, yaml.dump(self.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False))


class _Dumper(yaml.SafeDumper):
    """Writes what is there twice twice, rather than as an anchor and an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_implicit_resolver(*plain_yaml.EXPONENT)  # so that a text that looks like one is quoted


def _changed(data: Any, keys: Sequence[str], value: Any, place: tuple[str, ...] = ()) -> Any:
    """``data``, to which ``place`` has led, with ``value`` where ``keys`` lead to; ``None`` removes what is there.

    Raises:
        SettingError: the keys lead through something that is no section.
    """
    if not keys:
        return value
    if data is None:
        if value is None:
            return None  # there is nothing to remove
        data = {}
    key, *rest = keys
    if isinstance(data, list) and key.isdecimal() and int(key) < len(data):
        entry = _changed(data[int(key)], rest, value, (*place, key))
        return [*data[: int(key)], *([] if entry is None else [entry]), *data[int(key) + 1 :]]
    if not isinstance(data, dict):
        raise SettingError(place, f"{{}} is {shown(data)}, so it has no {brief(key)} that could be set; set all of it.")
    entry = _changed(data.get(key), rest, value, (*place, key))
    return {name: old for name, old in data.items() if name != key} | ({} if entry is None else {key: entry})


def _with_the_architecture_written_out(data: dict[str, Any]) -> dict[str, Any]:
    """``data`` with descriptions in place of the names of a model and of towers, so that parts of them can be set."""
    model = data.get("model")
    architecture = model.get("architecture") if isinstance(model, dict) else None
    named = architecture_of(architecture) if isinstance(architecture, str) else None
    if named is not None:
        architecture = named.to_dict()
    elif isinstance(architecture, dict):
        with suppress(ClipError):  # the section's own checks refuse it
            architecture = written_out(architecture)
    return data | {"model": model | {"architecture": architecture}} if isinstance(model, dict) else data


def _all_keys(section: type[BaseModel], place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """All keys of a section and those below them, but for those in lists."""
    for name, field in section.model_fields.items():
        yield (*place, name)
        if get_origin(field.annotation) is not tuple:
            for inner in sections_in(field.annotation):
                yield from _all_keys(inner, (*place, name))


def installed_recipes() -> dict[str, Path]:
    """The recipes that come along, by name: ``shapes``, ``clip/vit-b-32`` and the like."""
    package = Path(clip_core.__file__).parent
    folders = package / "configs", package.parent / "configs"  # of an installed package, of a checkout
    folder = next((folder for folder in folders if folder.is_dir()), folders[0])
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def recipe_file(name: str | os.PathLike[str]) -> Path:
    """The file at this path, or else the installed recipe of this name.

    Raises:
        ClipError: there is neither.
    """
    path, installed = Path(name), installed_recipes()
    if name in installed and not path.is_file():
        return installed[str(name)]
    if not path.exists():
        raise ClipError(
            f"There is no recipe {name}; give a YAML file or the name of an installed one: {', '.join(installed)}."
        )
    return path
