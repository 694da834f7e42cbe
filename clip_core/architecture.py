"""What shape a CLIP has: its two towers and the space they share, as JSON, checked, and read off the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypeVar

from clip_core.errors import CheckpointError, ClipError
from clip_core.parameters import Parameter, Place, Shape
from clip_core.towers import IMAGE_TOWERS, TEXT_TOWERS
from clip_core.towers.parts import Activation, Shapes, Tower, check_number, tower_from_dict

T = TypeVar("T", bound=Tower)
_PREFIXES = {"image": "visual.", "text": "text."}
_KINDS: dict[str, dict[str, Any]] = {"image": IMAGE_TOWERS, "text": TEXT_TOWERS}


@dataclass(frozen=True)
class Architecture:
    """A whole CLIP: two towers that end in a joint space of ``embed_dim`` dimensions."""

    embed_dim: int
    image: Any  # an ImageTower
    text: Any  # a TextTower
    logit_bias: bool = False  # whether a learnt number is added to the logits, as the sigmoid loss wants it

    @property
    def towers(self) -> dict[Place, Tower]:
        """The towers by their place."""
        return {"image": self.image, "text": self.text}

    @property
    def named_fields(self) -> dict[str, Any]:
        """Every field of a tower by its place and name, such as ``text.heads``; those of no tower by their name."""
        towers = self.towers
        return {name: value for name, value in vars(self).items() if name not in towers} | {
            f"{place}.{name}": value for place, tower in towers.items() for name, value in vars(tower).items()
        }

    @property
    def transformers(self) -> dict[Place, Any]:
        """The towers whose activation is a field, by their place."""
        return {place: tower for place, tower in self.towers.items() if hasattr(tower, "activation")}

    def prefix(self, place: Place) -> str:
        """What stands before the names of a tower's parameters, such as ``visual.``."""
        return "" if self.towers[place].at_root else _PREFIXES[place]

    def mounted(self, place: Place) -> list[Parameter]:
        """The parameters of one tower, under their names in the model."""
        prefix = self.prefix(place)
        return [
            replace(parameter, name=prefix + parameter.name, tower=place)
            for parameter in self.towers[place].parameters(self.embed_dim)
        ]

    def with_activation(self, activation: Activation) -> Architecture:
        """This architecture with ``activation`` in every tower that can have one."""
        towers: dict[str, Any] = {
            place: replace(tower, activation=activation) for place, tower in self.transformers.items()
        }
        return replace(self, **towers)

    def to_dict(self) -> dict[str, Any]:
        """This architecture as plain data for JSON; `from_dict` reads it back."""
        return vars(self) | {place: plain(tower) for place, tower in self.towers.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Architecture:
        """Read what `to_dict` wrote.

        One ``activation`` beside the towers stands for that of both, as in older descriptions, whose text towers do not
        say their kind; what else they leave out is OpenAI's.

        Raises:
            ClipError: a field is missing, unknown, or not of its type.
        """
        try:
            given = dict(data)
            activation = given.pop("activation", None)
            expected = {field.name for field in fields(cls)}
            if given.keys() | {"logit_bias"} != expected:  # files written for models without one leave it out
                raise ValueError(f"its fields are {sorted(data)}, expected {sorted(expected)}")
            for place, kinds in _KINDS.items():
                if not isinstance(given[place], Mapping):
                    raise ValueError(f"its {place} is {given[place]!r}, expected the kind and the fields of a tower")
                tower = dict(given[place])
                kind = tower.pop("kind", next(iter(kinds)) if place == "text" else None)
                if kind not in kinds:
                    raise ValueError(f"its {place} tower is of the kind {kind!r}, expected one of {', '.join(kinds)}")
                given[place] = tower_from_dict(kinds[kind], place, tower, activation)
            result = cls(**given)
        except (TypeError, ValueError) as error:
            raise ClipError(f"The description of the architecture cannot be read: {error}.") from error
        result.check()
        return result

    def check(self) -> None:
        """Refuse an architecture that cannot be built.

        Raises:
            ClipError: naming the first impossible value.
        """
        check_number("embed_dim", self.embed_dim)
        for place, tower in self.towers.items():
            tower.check(place)
            if tower.output_width not in (None, self.embed_dim):
                raise ClipError(
                    f"The architecture's embed_dim is {self.embed_dim}, and the {place} tower ends in its width "
                    f"{tower.output_width} without a projection; make both the same."
                )
        if type(self.logit_bias) is not bool:
            raise ClipError(f"The architecture's logit_bias is {self.logit_bias!r}; it must be true or false.")


def differences(found: Architecture, expected: Architecture) -> list[str]:
    """Every field in which two architectures differ, as ``text.heads 4 rather than 8``."""

    def leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict):
            for name, part in value.items():
                yield from leaves(part, f"{place}.{name}" if place else name)
        else:
            yield place, value

    ours, theirs = dict(leaves(found.to_dict(), "")), dict(leaves(expected.to_dict(), ""))
    return [
        f"{place} {ours.get(place, 'none')} rather than {theirs.get(place, 'none')}"
        for place in ours | theirs
        if ours.get(place) != theirs.get(place)
    ]


def plain(tower: Any) -> dict[str, Any]:
    """A tower as plain data for JSON, its kind first."""
    return {"kind": tower.kind} | asdict(tower, dict_factory=_with_lists)


def _with_lists(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in items}


def infer(shapes: Mapping[str, Shape]) -> Architecture:
    """Read the architecture off the shapes of weights under canonical names.

    What they do not tell is OpenAI's: heads 64 wide, activation, epsilon, end of text and pixels.

    Args:
        shapes: parameter name -> shape.

    Raises:
        CheckpointError: a tensor that decides the architecture is missing or cannot be of a CLIP.
    """
    result = infer_unchecked(shapes)
    try:
        result.check()
    except ClipError as error:
        raise CheckpointError(f"The weights do not look like a CLIP: {error}") from error
    return result


def infer_unchecked(shapes: Mapping[str, Shape]) -> Architecture:
    """`infer` for shapes that may be in another axis order: the kinds are right, and numbers may not go together."""
    image_shapes, text_shapes = (_below(prefix, shapes) for prefix in _PREFIXES.values())
    if not text_shapes.found:
        text_shapes = Shapes(shapes, "")
    text = _recognised(TEXT_TOWERS, text_shapes)
    embed_dim = text.infer_embed_dim(text_shapes)
    image = _recognised(IMAGE_TOWERS, image_shapes)
    return Architecture(embed_dim, image.infer(image_shapes), text.infer(text_shapes), "logit_bias" in shapes)


def _below(prefix: str, shapes: Mapping[str, Shape]) -> Shapes:
    return Shapes({name[len(prefix) :]: shape for name, shape in shapes.items() if name.startswith(prefix)}, prefix)


def _recognised(kinds: Mapping[str, type[T]], shapes: Shapes) -> type[T]:
    found = (kind for kind in kinds.values() if kind.at_root != bool(shapes.prefix) and kind.recognises(shapes))
    return next(found, next(iter(kinds.values())))
