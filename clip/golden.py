"""Golden files: what a checkpoint makes of canary inputs, kept so that a later version can be held to it.

A golden file is JSON: the tokens of texts, the digest of each picture's pixels, and the embeddings of both by the NumPy
reference in float64, beside the model's architecture, the digests of its files, and the versions that it was made with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from clip import parity, proof
from clip.api import LoadedModel, open_model, weights_file
from clip.parity import Inputs
from clip.versions import versions
from clip_core import files
from clip_core.architecture import Architecture, differences
from clip_core.data.settings import Section, setting_error
from clip_core.errors import ClipError
from converters import files_of

ENDING = ".golden.json"
DIGITS = 9  # of a component of an embedding; 1e-9 is far below every bound
MAX_BYTES = 64 << 20
TEXTS = ("A photo of two cats, in 1997!", "naïve café · 猫 ❤️", "it's  &amp; they've", "word " * 100)

Rows = tuple[tuple[float, ...], ...]


class Golden(Section):
    """A golden file."""

    format: Literal[1] = 1
    model: str
    files: dict[str, str]  # name -> SHA-256
    architecture: dict[str, Any]
    versions: dict[str, str]
    logit_scale: float
    logit_bias: float | None
    tokens: Annotated[tuple[tuple[int, ...], ...], Field(min_length=1)]  # [m, context]
    pixels: Annotated[tuple[str, ...], Field(min_length=1)]  # SHA-256 of each picture's float32 [3, r, r]
    image_embedding: Rows  # of length 1, [n, d]
    text_embedding: Rows  # [m, d]


@dataclass(frozen=True)
class Outcome:
    """What a model gives now, beside its golden file."""

    report: parity.Report
    files: bool  # whether the model's files are those that the golden file was made of
    versions: dict[str, tuple[str, str]]  # what has another version -> then and now

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return self.report.to_dict() | {
            "files_equal": self.files,
            "versions": {name: {"then": then, "now": now} for name, (then, now) in self.versions.items()},
        }


def default_file(model: str | Path) -> Path:
    """The golden file of a model in the current folder."""
    return Path(weights_file(model)[0].stem + ENDING)


def write(
    model: str | Path,
    target: str | Path | None = None,
    *,
    activation: str | None = None,
    heads: tuple[int, int] | None = None,
    force: bool = False,
) -> Path:
    """Write the golden file of a model, and give its name.

    Args:
        model: a model's name, a weights file, or a folder with one.
        target: by default `default_file`.
        activation, heads: as for `clip.load`.
        force: replace a file that is there.

    Raises:
        ClipError: the model cannot be used, or the file cannot be written.
    """
    path = weights_file(model)[0]
    target = default_file(model) if target is None else target
    files.check_target(target, files_of(path), force)
    loaded = open_model(model, backend="numpy", precision="fp64", activation=activation, heads=heads)
    inputs = canaries(loaded)
    image, text = parity.embeddings(loaded.model, inputs)
    if not (np.isfinite(image).all() and np.isfinite(text).all()):
        raise ClipError(f"{path} gives features that are not finite numbers; look at its weights with clip inspect.")
    golden = Golden(
        model=loaded.name,
        files=_digests(path),
        architecture=loaded.model.architecture.to_dict(),
        versions=versions("numpy"),
        logit_scale=loaded.logit_scale,
        logit_bias=loaded.logit_bias,
        tokens=inputs.tokens.tolist(),
        pixels=_pixel_digests(inputs.pixels),
        image_embedding=image.round(DIGITS).tolist(),
        text_embedding=text.round(DIGITS).tolist(),
    )
    with files.atomic_open(target, replace=force) as file:
        file.write(json.dumps(golden.model_dump(mode="json")).encode() + b"\n")
    return Path(target)


def check(
    model: str | Path,
    file: str | Path | None = None,
    *,
    backend: str | None = None,
    activation: str | None = None,
    heads: tuple[int, int] | None = None,
) -> Outcome:
    """Compute the canaries of a model again, on the CPU, and compare them with its golden file.

    The text tower is given the tokens of the file, so a tokenizer that has changed is a fault of the tokens alone. Of
    pixels the file has digests; where these differ, so does what is made of them.

    Args:
        model, activation, heads: as for `write`.
        file: by default `default_file`.
        backend: as for `clip.load`.

    Raises:
        ClipError: the file cannot be read, or is of a model with another architecture.
    """
    source = default_file(model) if file is None else file
    golden = _read(source)
    loaded = open_model(model, backend=backend, device="cpu", activation=activation, heads=heads)
    found, expected = loaded.model.architecture, Architecture.from_dict(golden.architecture)
    if found != expected:
        raise ClipError(
            f"{source} is of another model, {golden.model}: {model} has {', '.join(differences(found, expected)[:3])}; "
            "give the golden file of this model, or write one with clip golden write."
        )
    now, tokens = canaries(loaded), np.array(golden.tokens, np.int64)
    image, text = parity.embeddings(loaded.model, Inputs(now.pixels, tokens))
    then_image, then_text = np.array(golden.image_embedding), np.array(golden.text_embedding)
    if then_image.shape != image.shape or then_text.shape != text.shape:
        raise ClipError(
            f"{source} has embeddings of shape {then_image.shape} and {then_text.shape}, expected {image.shape} and "
            f"{text.shape}; write it again with clip golden write."
        )
    comparison = parity.Comparison(
        backend=loaded.model.backend,
        tokens_equal=np.array_equal(now.tokens, tokens),
        pixels_equal=_pixel_digests(now.pixels) == golden.pixels,
        image_embedding=parity.difference(image, then_image),
        text_embedding=parity.difference(text, then_text),
        logits=parity.difference(
            parity.logits(loaded.model, Inputs(now.pixels, tokens)),
            then_image @ then_text.T * golden.logit_scale + (golden.logit_bias or 0),
        ),
    )
    return Outcome(
        parity.Report(loaded.name, parity.bounds(golden.logit_scale), [comparison], loaded.assumed),
        sorted(_digests(weights_file(model)[0]).values()) == sorted(golden.files.values()),
        _changes(golden.versions, versions("numpy")),
    )


def canaries(loaded: LoadedModel) -> Inputs:
    """Drawn pictures and random ones that are wide and high, and texts with all that tokenizers differ in.

    Where the model's vocabulary cannot be had, random tokens stand in the place of texts.
    """
    pixels = np.concatenate([proof.preprocessed(loaded, batch) for batch in proof.decoded_pictures(loaded)])
    tokens = parity.sample_inputs(loaded).tokens
    with suppress(ClipError):
        context_length = loaded.model.architecture.text.context_length
        tokens = np.concatenate([tokens, loaded.model.tokenizer.tokenize(TEXTS, context_length, truncate=True)])
    return Inputs(pixels, tokens)


def _read(source: str | Path) -> Golden:
    try:
        given = json.loads(files.read_regular(source, MAX_BYTES))
        if not isinstance(given, dict):
            raise ValueError("it holds no object")
        return Golden.model_validate(given)
    except ValidationError as error:
        raise ClipError(f"{source} is not a golden file: {setting_error(error, Golden)}") from error
    except (ValueError, RecursionError) as error:
        raise ClipError(f"{source} is not a golden file: {error}; write one with clip golden write.") from error


def _digests(path: Path) -> dict[str, str]:
    return {part.name: files.sha256(part) for part in files_of(path)}


def _pixel_digests(pixels: np.ndarray) -> tuple[str, ...]:
    return tuple(hashlib.sha256(each.tobytes()).hexdigest() for each in pixels)


def _changes(then: Mapping[str, str], now: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    return {name: (then.get(name, "none"), version) for name, version in now.items() if then.get(name) != version}
