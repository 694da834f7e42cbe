"""What the shapes of weights do not tell of a model: who says it, what is assumed, and when it must be asked for.

It is settled, in this order, by the user, the file's manifest, a known digest, and a configuration beside the file.
What none of them says is taken to be OpenAI's, and the result says so: weights of equal names and shapes compute other
features with another activation or other heads, and nothing fails.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

from clip_core.architecture import Architecture
from clip_core.errors import CheckpointError, ClipError
from clip_core.layouts.parts import Word
from clip_core.models import OPENAI_VOCABULARY_SIZE, everything
from clip_core.pixels import OPENAI_PIXELS
from clip_core.towers import IMAGE_TOWERS, TEXT_TOWERS
from clip_core.towers.parts import ACTIVATIONS

_UNTOLD = {name for tower in (*IMAGE_TOWERS.values(), *TEXT_TOWERS.values()) for name in tower.untold}
STATE = (
    f"state it with clip convert FILE TARGET --activation {'|'.join(ACTIVATIONS)} --heads IMAGE,TEXT (in Python "
    "activation=..., heads=(IMAGE, TEXT))"
)
_NAME = "name the model that it comes from with clip convert FILE TARGET --like ORIGINAL (in Python like=ORIGINAL)"


NOTHING = Word("nobody", {})


def word_of_the_user(activation: str | None, heads: tuple[int, int] | None) -> Word:
    """What a caller states.

    Args:
        activation: of both towers.
        heads: of the image tower and of the text tower.

    Raises:
        ClipError: there is no such activation, or heads are not two whole numbers above 0.
    """
    if activation is not None and activation not in ACTIVATIONS:
        raise ClipError(f"There is no activation {activation!r}; choose one of {', '.join(ACTIVATIONS)}.")
    if heads is not None and (len(heads) != 2 or not all(type(number) is int and number > 0 for number in heads)):
        raise ClipError(f"The heads are {heads!r}; give two numbers above 0, of the image and of the text tower.")
    fields: dict[str, Any] = {}
    for index, place in enumerate(("image", "text")):
        if activation is not None:
            fields[f"{place}.activation"] = activation
        if heads is not None:
            fields[f"{place}.heads"] = heads[index]
    return Word("what was stated", fields)


def word_of(source: str, architecture: Architecture, assumed: Collection[str] = ()) -> Word:
    """What an architecture says that shapes do not tell, but for what is only ``assumed`` in it."""
    fields = architecture.named_fields
    return Word(source, {name: fields[name] for name in untold(architecture) if name not in assumed})


def untold(architecture: Architecture) -> list[str]:
    """The names of the fields that shapes do not tell, such as ``text.heads``."""
    return [f"{place}.{name}" for place, tower in architecture.towers.items() for name in tower.untold]


def silent(architecture: Architecture, words: Sequence[Word]) -> bool:
    """Whether ``words`` leave something open that shapes do not tell."""
    return any(all(name not in word.fields for word in words) for name in untold(architecture))


def settle(
    inferred: Architecture, words: Sequence[Word], expected: Word | None = None
) -> tuple[Architecture, tuple[str, ...]]:
    """The architecture that the shapes of the weights and ``words`` give together, and the fields that are assumed.

    Args:
        words: the first one that says something of a field settles it.
        expected: what is assumed where they say nothing, in place of OpenAI's.

    Raises:
        CheckpointError: two of them differ, or one differs from the weights, or what they say cannot be.
    """
    known, open_fields = inferred.named_fields, untold(inferred)
    assumed = tuple(name for name in open_fields if all(name not in word.fields for word in words))
    words = [*words, expected] if expected is not None else words
    said = {name: [word for word in words if name in word.fields] for name in known}
    for word in words:
        for name, value in word.fields.items():
            # What one kind of tower has to be told may be said where the other kind has no such field.
            irrelevant = name not in known and name.rpartition(".")[2] in _UNTOLD
            if name not in open_fields and not irrelevant and value != known.get(name):
                raise CheckpointError(
                    f"{name} is {value!r:.80} by {word.source}, but {known.get(name, 'not there')} by the weights; "
                    "correct the one or put the right weights there."
                )
    for name, (first, *others) in ((name, found) for name, found in said.items() if found):
        for other in others:
            if other.fields[name] != first.fields[name]:
                raise CheckpointError(
                    f"{name} is {first.fields[name]!r:.80} by {first.source}, but {other.fields[name]!r:.80} by "
                    f"{other.source}; leave out or correct the one that is wrong."
                )
    towers: dict[str, Any] = {
        place: replace(
            tower,  # type: ignore[type-var]  # every tower is a dataclass
            **{name: found[0].fields[f"{place}.{name}"] for name in tower.untold if (found := said[f"{place}.{name}"])},
        )
        for place, tower in inferred.towers.items()
    }
    result = replace(inferred, **towers)
    try:
        result.check()
    except ClipError as error:
        raise CheckpointError(f"what is said of it cannot be: {error}") from error
    return result, assumed


def question(architecture: Architecture, assumed: Collection[str], own_vocabulary: bool) -> str | None:
    """What has to be asked where the tensors themselves are not OpenAI's, as a phrase; None where nothing has to be.

    Args:
        own_vocabulary: whether the file carries its vocabulary, so that another size is no riddle.
    """
    reasons = [
        reason
        for place, tower in architecture.towers.items()
        for reason in tower.doubts(place, [name for name in tower.untold if f"{place}.{name}" in assumed])
    ]
    size = architecture.text.vocabulary_size
    # Other projects' text towers are known by their names.
    foreign = architecture.text.at_root and size != OPENAI_VOCABULARY_SIZE and not own_vocabulary
    if "text.activation" in assumed and foreign:
        reasons.append(f"the vocabulary has {size} tokens")
    if not reasons:
        return None
    known = known_alike(architecture)
    name, state = known or _NAME, f"{STATE}, without a vocabulary then" if foreign else STATE
    remedy = f"{name}, or {state}" if known or foreign else f"{state}, or {name}"
    fields = {name for tower in architecture.towers.values() for name in tower.untold}
    unsaid = " or ".join(name for name in ("activation", "heads") if name in fields)
    return f"nothing says its {unsaid}, and it is none of OpenAI's models: {', '.join(reasons)}; {remedy}"


def named_alike(architecture: Architecture) -> tuple[str, ...]:
    """The known architectures that differ from this one in nothing but what shapes do not tell, as "NAME (FAMILY)"."""
    told = _told(architecture)
    return tuple(f"{named.name} ({named.family.name})" for named in everything() if _told(named.architecture) == told)


def known_alike(architecture: Architecture) -> str | None:
    """Which known architectures have these shapes, and how one is named, as a phrase; None: none has."""
    if not (names := named_alike(architecture)):
        return None
    return (
        f"these shapes are those of {' and '.join(names)}; name the right one with clip convert FILE TARGET --like "
        "NAME (in Python like='NAME')"
    )


def _told(architecture: Architecture) -> dict[str, Any]:
    """The fields that shapes tell, and the kinds of the towers."""
    told = {name: value for name, value in architecture.named_fields.items() if name not in untold(architecture)}
    return told | {place: tower.kind for place, tower in architecture.towers.items()}


def phrases(architecture: Architecture, assumed: Collection[str]) -> tuple[str, ...]:
    """What is assumed, each as a short phrase with its value."""
    found = []
    # The text tower's first, so that what only the pixels need comes last.
    for name in dict.fromkeys((*architecture.text.untold, *architecture.image.untold)):
        towers: list[Any] = [tower for place, tower in architecture.towers.items() if f"{place}.{name}" in assumed]
        if not towers:
            continue
        if name == "heads":
            value = _either(tower.attention_width // tower.heads for tower in towers)
            found.append(f"heads {value} wide")
        elif name == "pixels":
            pixels, usual = towers[0].pixels, type(towers[0]).pixels
            whose = "OpenAI's" if pixels == OPENAI_PIXELS else f"{towers[0].title}'s" if pixels == usual else None
            found.append(f"pixels {pixels}" if whose is None else f"{whose} pixels")
        else:
            found.append(f"{name.replace('_', ' ')} {_either(getattr(tower, name) for tower in towers)}")
    return tuple(found)


def _either(values: Iterable[object]) -> str:
    return " and ".join(dict.fromkeys(map(str, values)))
