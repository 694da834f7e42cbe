"""Prompts for classes: templates with ``{}`` for the class's name, and the names of published sets.

Templates are a list, a file with one in each line, or one of these names:

* ``openai``: those that OpenAI chose for the set.
* ``simple``: the 7 for ImageNet of which OpenAI found that together they do nearly as well as all 80.
* ``low-resource``: the 18 of the Low-resource CLIP, for any set.
* ``simple-clip``: the one of simple-clip, for any set.

The first two are read from an installed clip-benchmark or open_clip. Their files are read as data: nothing of them is
imported, since that would import PyTorch.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import Any

from clip_core.data.listing import lines_of, read_json
from clip_core.data.settings import shown
from clip_core.errors import ClipError

_LOOKS = ("a", "a blurry", "a black and white", "a low contrast", "a high contrast", "a bad", "a good")
_SIZES = ("small", "big")
OURS = {
    "low-resource": tuple(
        template
        for article in ("a", "the")
        for template in (
            *(f"{look} photo of {article} {{}}." for look in _LOOKS),
            *(f"a photo of {article} {size} {{}}." for size in _SIZES),
        )
    ),
    "simple-clip": ("a photo of a {}.",),
}
"""The templates that need no other package."""

NAMES = ("openai", "simple", *OURS)
"""What stands for templates, beside a file."""

_IN_BENCHMARK = {"imagenet": "imagenet1k", "imagenetv2": "imagenet1k"}
"""What clip-benchmark calls a kind of set, where that is another name."""


def prompts_of(classes: Iterable[str], templates: Sequence[str]) -> list[list[str]]:
    """The prompts of each class."""
    return [[template.replace("{}", name) for template in templates] for name in classes]


def resolved(templates: Sequence[str] | str | None, kind: str) -> tuple[str, ...]:
    """The templates that a setting stands for; none if it was left out.

    Args:
        templates: themselves, one of `NAMES`, or a file with one in each line.
        kind: of the set of pictures.

    Raises:
        ClipError: no installed package has them, or the file cannot be read or has a line without ``{}``.
    """
    if templates is None:
        return ()
    if not isinstance(templates, str):
        return tuple(templates)
    if templates in OURS:
        return OURS[templates]
    if templates in NAMES:
        found = _published(kind) if templates == "openai" else _of_open_clip("SIMPLE_IMAGENET_TEMPLATES")
        return tuple(_chosen(found, f"The templates {templates} for {kind}", f"choose {' or '.join(OURS)}, or a file"))
    if not os.path.exists(templates):
        raise ClipError(
            f"The templates {shown(templates)} are neither a file nor one of {', '.join(NAMES)}; give one of them."
        )
    return checked((line for line in lines_of(templates) if line), templates)


def checked(templates: Iterable[str], path: str) -> tuple[str, ...]:
    """The templates of a file.

    Raises:
        ClipError: there are none, or one has no place for the class's name.
    """
    found = tuple(templates)
    if not found:
        raise ClipError(f"{path} has no templates; write one in each line, with {{}} where the class's name goes.")
    for template in found:
        if template.count("{}") != 1:
            raise ClipError(
                f"{path} has the template {shown(template)}; write {{}} once in it, where the class's name goes."
            )
    return found


def openai_names(kind: str, count: int) -> list[str]:
    """The names that OpenAI gave to the classes of a set, in the order of their labels.

    Args:
        count: how many there are to be.

    Raises:
        ClipError: no installed package has them, or it has another number of them.
    """
    key = _IN_BENCHMARK.get(kind, kind)
    found = _of_benchmark("classnames").get(key)
    if found is None and key == "imagenet1k":
        found = _of_open_clip("IMAGENET_CLASSNAMES")
    names = _chosen(found, f"The names of the classes of {kind}", "give a file of names")
    if len(names) != count:
        raise ClipError(f"clip-benchmark has {len(names)} names for {kind}, which has {count} classes; give a file.")
    return names


def _published(kind: str) -> Any:
    """OpenAI's templates for a set; None where no installed package has them."""
    key = _IN_BENCHMARK.get(kind, kind)
    found = _of_benchmark("zeroshot_classification_templates").get(key)
    if isinstance(found, list):
        return [str(template).replace("{c}", "{}") for template in found]
    return _of_open_clip("OPENAI_IMAGENET_TEMPLATES") if key == "imagenet1k" else None


def _chosen(found: Any, what: str, otherwise: str) -> list[str]:
    if isinstance(found, list) and found:
        return [str(each) for each in found]
    missing = [package for module, package in _PACKAGES.items() if _folder(module) is None]
    remedy = f"run pip install {' '.join(missing)}, or {otherwise}" if missing else otherwise
    raise ClipError(f"{what} are read from clip-benchmark or open_clip, and are not found there; {remedy}.")


_PACKAGES = {"clip_benchmark": "clip-benchmark", "open_clip": "open_clip_torch"}
"""The module of each package that has prompts -> what pip installs."""


def _folder(module: str) -> str | None:
    """Where a package is installed, which is not imported for that."""
    found = find_spec(module)
    return next(iter(found.submodule_search_locations or ()), None) if found is not None else None


def _of_benchmark(what: str) -> dict[str, Any]:
    """What clip-benchmark says of each set; empty where it is not installed."""
    folder = _folder("clip_benchmark")
    content = {} if folder is None else read_json(os.path.join(folder, "datasets", f"en_{what}.json"))
    return content if isinstance(content, dict) else {}


def _of_open_clip(constant: str) -> list[str] | None:
    """A constant of open_clip's file of prompts; None where it is not installed, or has no such constant."""
    folder = _folder("open_clip")
    if folder is None:
        return None
    for node in ast.parse("\n".join(lines_of(os.path.join(folder, "zero_shot_metadata.py")))).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == constant:
            return [_text(entry) for entry in node.value.elts] if isinstance(node.value, ast.Tuple | ast.List) else None
    return None


def _text(entry: ast.expr) -> str:
    """A text, or the template that stands in ``lambda c: f"a photo of a {c}."``."""
    if isinstance(entry, ast.Lambda):
        entry = entry.body
    if isinstance(entry, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in entry.values)
    return str(ast.literal_eval(entry))
