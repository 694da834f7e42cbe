"""What every tower is and answers, checks of its fields, and reading them off the shapes of weights.

A tower is a frozen dataclass of numbers. Its forward pass is a class of its own in each backend.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, fields
from math import isqrt
from typing import Any, ClassVar, Literal, Protocol, get_args

from clip_core.errors import CheckpointError, ClipError
from clip_core.parameters import Parameter, Shape
from clip_core.pixels import Interpolation, Pixels, Resize

HEAD_WIDTH = 64  # OpenAI's models have heads of this width in every tower
MLP_RATIO = 4  # of the inner width of a block's MLP to the tower's width
WIDEST = 1024  # of OpenAI's transformers; wider ones that others have trained have heads of 80 and more

# A made-up description must not keep its reader busy with listing parameters.
MAX_LAYERS = 1000
MAX_NUMBER = 10**7

# OpenAI's x * sigmoid(1.702 x), the exact GELU, and its approximation by tanh.
Activation = Literal["quick_gelu", "gelu", "gelu_tanh"]
ACTIVATIONS: tuple[str, ...] = get_args(Activation)
# A residual network's blocks of two convolutions, or of three around a narrow middle (arXiv 1512.03385, figure 5).
ResidualBlock = Literal["basic", "bottleneck"]
RESIDUAL_BLOCKS: tuple[str, ...] = get_args(ResidualBlock)

BLOCK_NOISES = ("dropout", "drop_path")  # of towers of residual blocks
PATCH_NOISES = (*BLOCK_NOISES, "patch_dropout")  # of those that compute any number of patches


class Tower(ABC):
    """One encoder: its numbers are the fields of a frozen dataclass.

    A tower does not know where in a model it is: it speaks of ``ln_pre.weight``, and the architecture mounts it.
    """

    kind: ClassVar[str]  # what descriptions call it
    title: ClassVar[str]  # what people call it
    width: int
    at_root: ClassVar[bool] = False  # whether its parts are the model's own, without a prefix
    mark: ClassVar[str]  # a parameter by whose name the tower is found among those of a larger module
    noises: ClassVar[tuple[str, ...]] = ()  # what it can drop while it is trained (`clip_core.noise`)
    # The fields that tensors do not tell: `infer` takes them to be as usual, and files that say more are believed.
    untold: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def parameters(self, embed_dim: int) -> Iterator[Parameter]:
        """The parameters of the tower that ends in ``embed_dim`` dimensions; own tensors come before those of parts."""

    @classmethod
    @abstractmethod
    def recognises(cls, shapes: Shapes) -> bool:
        """Whether parameters of these names are those of this kind of tower."""

    @classmethod
    @abstractmethod
    def infer(cls, shapes: Shapes) -> Tower:
        """The tower whose parameters have these shapes; what they do not tell is the default of its kind.

        Raises:
            CheckpointError: a tensor that decides it is missing or cannot be of such a tower.
        """

    @abstractmethod
    def multiplications(self, embed_dim: int) -> int:
        """How many one picture or text of full length takes, in matrix products and convolutions."""

    @abstractmethod
    def summary(self) -> str:
        """This tower in some words, for people."""

    def check(self, place: str) -> None:
        """Refuse a tower that cannot be built; subclasses add what relates their fields to each other.

        Args:
            place: ``image`` or ``text``, for messages.

        Raises:
            ClipError: naming the first impossible value.
        """
        for field in fields(self):  # type: ignore[arg-type]  # every tower is a dataclass
            check_field(f"{place}.{field.name}", getattr(self, field.name), _has_several(field))

    def doubts(self, place: str, assumed: Collection[str]) -> Iterator[str]:
        """Why what `infer` takes for the fields ``assumed`` is likely not so, each as a phrase.

        Args:
            place: ``image`` or ``text``.
            assumed: names in `untold`.
        """
        if "heads" in assumed and self.attention_width % HEAD_WIDTH:
            yield f"heads of {HEAD_WIDTH} do not fit the {place} tower's width {self.attention_width}"

    @property
    def attention_width(self) -> int:
        """What the heads divide among themselves."""
        return self.width

    @property
    def output_width(self) -> int | None:
        """What it ends in where it has no projection into the joint space; None where it has one."""
        return None

    @property
    def has_statistics(self) -> bool:
        """Whether it has batch normalisation, which looks at the whole batch while it is trained."""
        return any(parameter.kind == "statistic" for parameter in self.parameters(1))


class ImageTower(Tower):
    """A tower that turns pixels [n, 3, r, r] into features [n, embed_dim]."""

    resolution: int  # pixels along one side
    pixels: Pixels

    def position_grids(self) -> dict[str, tuple[int, int]]:
        """The positions that depend on the resolution: name -> patches along one side, tokens in front of them.

        Raises:
            ClipError: the tower computes at one resolution only, and why.
        """
        return {}


class TextTower(Tower):
    """A tower that turns tokens [n, context_length] into features [n, embed_dim]."""

    context_length: int
    vocabulary_size: int

    @classmethod
    @abstractmethod
    def infer_embed_dim(cls, shapes: Shapes) -> int:
        """The dimensions of the joint space, which the text tower of a model tells.

        Raises:
            CheckpointError: the tensor that decides it is missing.
        """

    @property
    def shortest_length(self) -> int:
        """How many tokens a row must have at least; the context length where the padding takes part."""
        return 1

    @property
    def required_token(self) -> int | None:
        """The token without which a text has no feature; None if there is no such token."""
        return None

    @property
    def padding_token(self) -> int | None:
        """The token that stands behind a text and is passed over; None if the tower looks for none."""
        return None


class Transformer(Protocol):
    """The numbers of a stack of pre-norm blocks, which several towers have."""

    @property
    def width(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def mlp_width(self) -> int: ...
    @property
    def activation(self) -> Activation: ...
    @property
    def epsilon(self) -> float: ...


class Mixer(Protocol):
    """The numbers of a stack of Mixer blocks, which the towers of both sides have."""

    @property
    def tokens(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def token_mlp_width(self) -> int: ...
    @property
    def mlp_width(self) -> int: ...
    @property
    def activation(self) -> Activation: ...
    @property
    def epsilon(self) -> float: ...


@dataclass(frozen=True)
class Shapes:
    """The shapes of a tower's parameters by their names in it.

    Args:
        found: parameter name -> shape.
        prefix: of the tower in the model, for messages.
    """

    found: Mapping[str, Shape]
    prefix: str

    def __iter__(self) -> Iterator[str]:
        return iter(self.found)

    def __contains__(self, name: str) -> bool:
        return name in self.found

    def shape(self, name: str, dimensions: int) -> Shape:
        """The shape of one parameter.

        Raises:
            CheckpointError: it is missing, or has another number of axes.
        """
        full = self.prefix + name
        if name not in self.found:
            raise CheckpointError(f"The weights do not look like a CLIP: {full} is missing.")
        shape = self.found[name]
        if len(shape) != dimensions or 0 in shape:
            raise CheckpointError(
                f"The weights do not look like a CLIP: {full} has shape {shape}, expected {dimensions} axes."
            )
        return shape

    def count(self, prefix: str) -> int:
        """How many parts are below ``prefix``, without trusting that their indices are dense: the table finds gaps."""
        return len({name[len(prefix) :].split(".")[0] for name in self.found if name.startswith(prefix)})

    def grid(self, name: str, leading: int = 1, dimensions: int = 2) -> int:
        """The side of the square of patches that the rows of ``name`` are for, behind ``leading`` other tokens.

        Raises:
            CheckpointError: they are missing, or no square is left.
        """
        rows = self.shape(name, dimensions)[0]
        side = isqrt(max(rows - leading, 0))
        if side < 1 or side * side != rows - leading:
            expected = "a square" + (f" + {leading}" if leading else "")
            raise CheckpointError(
                f"The weights do not look like a CLIP: {self.prefix}{name} has {rows} rows, expected {expected}."
            )
        return side

    def transformer(self, prefix: str, width: int) -> dict[str, Any]:
        """The fields of a transformer ``width`` wide whose blocks are below ``prefix``."""
        # One block speaks for all: the table finds those that differ.
        biases = (
            shape for name, shape in self.found.items() if name.startswith(prefix) and name.endswith("mlp.c_fc.bias")
        )
        mlp_width = next((shape[0] for shape in biases if len(shape) == 1 and shape[0]), MLP_RATIO * width)
        return {
            "width": width,
            "layers": self.count(prefix),
            "heads": max(width // HEAD_WIDTH, 1),
            "mlp_width": mlp_width,
        }


def fill(tower: Tower, name: str, value: Callable[[], int]) -> None:
    """Give a field that was left out the value that follows from others."""
    if getattr(tower, name) is None:
        with suppress(TypeError, ZeroDivisionError):  # what it follows from cannot be, which `check` says
            object.__setattr__(tower, name, value())


def doubts_of_transformer(tower: Transformer, place: str, assumed: Collection[str]) -> Iterator[str]:
    """What `Tower.doubts` adds for a stack of blocks."""
    if "heads" in assumed and tower.width > WIDEST and tower.width % HEAD_WIDTH == 0:
        yield f"the {place} tower is {tower.width} wide"
    if "activation" in assumed and tower.mlp_width != MLP_RATIO * tower.width:
        yield f"the {place} tower's MLP is {tower.mlp_width} wide inside"


def transformer_multiplications(tower: Transformer, tokens: int) -> int:
    """Those of pre-norm blocks over ``tokens`` tokens, all of which ask."""
    per_token = 4 * tower.width**2 + 2 * tower.width * tower.mlp_width + 2 * tokens * tower.width
    return tower.layers * tokens * per_token


def halved(side: int) -> int:
    """The side of a map behind a padded convolution or pool of stride 2."""
    return -(-side // 2)


def tower_from_dict(kind: type[Tower], place: str, data: Mapping[str, Any], activation: Any) -> Any:
    """One tower from plain data; ``activation`` is that of the towers that do not say their own.

    Raises:
        TypeError, ValueError: a field is missing or unknown.
    """
    given = dict(data)
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]  # every tower is a dataclass
    if "activation" in known and given.setdefault("activation", activation) is None:
        del given["activation"]
    if unknown := sorted(map(str, given.keys() - known)):
        raise ValueError(f"its {place} tower has no field {unknown[0]}, only {', '.join(known)}")
    # What is computed may differ between two models of one shape, so it is never left to a default.
    needed = [name for name, field in known.items() if field.default is MISSING or name == "activation"]
    if missing := [name for name in needed if name not in given]:
        raise ValueError(f"its {place} tower lacks {', '.join(missing)}")
    # What is of another type stays as it is: `Tower.check` says what it must be.
    if isinstance(given.get("pixels"), Mapping):
        pixels, names = given["pixels"], [field.name for field in fields(Pixels)]
        if unknown := sorted(map(str, pixels.keys() - names)):
            raise ValueError(f"its {place} tower's pixels have no field {unknown[0]}, only {', '.join(names)}")
        given["pixels"] = Pixels(**{name: _as_tuple(value) for name, value in pixels.items()})
    return kind(**{name: _as_tuple(value) for name, value in given.items()})


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def check_field(name: str, value: Any, several: bool = False) -> None:
    """Refuse a value that no field of this name can have.

    Args:
        several: whether it is for a tuple of numbers.

    Raises:
        ClipError: naming it.
    """
    leaf = name.rpartition(".")[2]
    if leaf == "activation":
        check_choice(name, value, ACTIVATIONS)
    elif leaf == "epsilon":
        check_range(name, value, 1e-12, 1e-3)  # Paddle takes no larger one
    elif leaf == "momentum":
        check_range(name, value, 1e-12, 1)
    elif leaf == "block":
        check_choice(name, value, RESIDUAL_BLOCKS)
    elif leaf in ("end_of_text", "padding"):
        if type(value) is not int or value < 0:
            raise ClipError(f"The architecture's {name} is {value!r}; it must be a whole number from 0.")
    elif leaf == "pixels":
        if not isinstance(value, Pixels):
            names = ", ".join(field.name for field in fields(Pixels))
            raise ClipError(f"The architecture's {name} is {value!r}; it must be a section that has {names}.")
        check_choice(f"{name}.interpolation", value.interpolation, get_args(Interpolation))
        check_choice(f"{name}.resize", value.resize, get_args(Resize))
        # A deviation below one step of a byte would make pixels that no float32 need hold.
        for part, colour, lowest in (("mean", value.mean, 0), ("deviation", value.deviation, 1 / 255)):
            if not isinstance(colour, tuple) or len(colour) != 3:
                raise ClipError(f"The architecture's {name}.{part} is {colour!r}; it must be three numbers.")
            for number in colour:
                check_range(f"{name}.{part}", number, lowest, 1)
    else:
        check_number(name, value, several)


def _has_several(field: Field[Any]) -> bool:
    return str(field.type).startswith("tuple")


def check_number(name: str, value: Any, several: bool = False) -> None:
    """Refuse what is not a whole number above 0, or where there may be ``several``, a tuple of them.

    Raises:
        ClipError: naming it.
    """
    if several and not isinstance(value, tuple):
        raise ClipError(f"The architecture's {name} is {value!r}; it must be a list of whole numbers above 0.")
    for number in value if several else (value,):
        if type(number) is not int or number < 1:
            raise ClipError(f"The architecture's {name} is {value!r}; it must be a whole number above 0.")
        if number > (MAX_LAYERS if name.endswith(("layers", "blocks")) else MAX_NUMBER):
            raise ClipError(f"The architecture's {name} is {value!r}, more than any model that can be built.")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Refuse a word that is none of ``choices``.

    Raises:
        ClipError: naming it.
    """
    if not isinstance(value, str) or value not in choices:
        *others, last = choices
        raise ClipError(f"The architecture's {name} is {value!r}; it must be {', '.join(others)} or {last}.")


def check_range(name: str, value: Any, lowest: float, highest: float) -> None:
    """Refuse what is not a number from ``lowest`` to ``highest``.

    Raises:
        ClipError: naming it.
    """
    if type(value) not in (int, float) or not lowest <= value <= highest:  # false for NaN, too
        raise ClipError(
            f"The architecture's {name} is {value!r}; it must be a number from {lowest:.3g} to {highest:g}."
        )


def check_heads(place: str, tower: Tower, heads: int) -> None:
    """Refuse heads that do not divide the tower's width.

    Raises:
        ClipError: naming both.
    """
    if tower.attention_width % heads:
        raise ClipError(f"The {place} tower's width {tower.attention_width} cannot be divided into {heads} heads.")


def check_token(name: str, token: int, vocabulary_size: int) -> None:
    """Refuse a token that no text can have.

    Raises:
        ClipError: naming both.
    """
    if not token < vocabulary_size:
        raise ClipError(f"The architecture's {name} is {token}, which is outside the vocabulary of {vocabulary_size}.")


def check_resolution(resolution: int, unit: int, unit_name: str) -> None:
    """Refuse pictures that do not divide into whole units.

    Raises:
        ClipError: naming both.
    """
    if resolution % unit:
        raise ClipError(f"The image resolution {resolution} is not a multiple of {unit_name} ({unit}).")
