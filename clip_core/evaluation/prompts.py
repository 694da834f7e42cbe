"""Prompts for classes: templates with ``{}`` for the class's name, and the names of published sets.

Templates are a list, a file with one in each line, or one of these names:

* ``openai``: those that OpenAI chose for the set.
* ``simple``: the 7 for ImageNet that OpenAI found to do nearly as well together as all 80.
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

from clip_core.data.listing import lines_of, read_json
from clip_core.data.settings import shown
from clip_core.errors import ClipError

_LOOKS = ("a", "a blurry", "a black and white", "a low contrast", "a high contrast", "a bad", "a good")
LOW_RESOURCE = tuple(
    template
    for article in ("a", "the")
    for template in (
        *(f"{look} photo of {article} {{}}." for look in _LOOKS),
        f"a photo of {article} small {{}}.",
        f"a photo of {article} big {{}}.",
    )
)
OURS = {"low-resource": LOW_RESOURCE, "simple-clip": ("a photo of a {}.",)}
"""The templates that need no other package."""

NAMES = ("openai", "simple", *OURS)

# The name that clip-benchmark has for a kind of set, where it is another.
_ELSEWHERE = {"imagenet": "imagenet1k", "imagenetv2": "imagenet1k"}


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
    if templates == "openai":
        return _openai_templates(kind)
    if templates == "simple":
        return _templates_of_open_clip("SIMPLE_IMAGENET_TEMPLATES", "simple")
    return _templates_in(templates)


def imagenet_names() -> list[str]:
    """The names that OpenAI gave the 1,000 classes of ImageNet, in the order of their folders.

    Raises:
        ClipError: neither clip-benchmark nor open_clip is installed.
    """
    names = openai_names("imagenet")
    if names is None:
        names = [str(name) for name in _literal_of_open_clip("IMAGENET_CLASSNAMES") or ()]
    if not names:
        raise ClipError(
            "The names of ImageNet's classes are read from clip-benchmark or open_clip, and neither is installed; run "
            "pip install clip-benchmark, or give names, a file of them."
        )
    return names


def openai_names(kind: str) -> list[str] | None:
    """The names that an installed clip-benchmark has for the classes of a set; None where it has none."""
    names = _of_benchmark("classnames").get(_ELSEWHERE.get(kind, kind))
    return [str(name) for name in names] if isinstance(names, list) else None


def _templates_in(path: str) -> tuple[str, ...]:
    if not os.path.exists(path):
        raise ClipError(
            f"The templates {shown(path)} are neither a file nor one of {', '.join(NAMES)}; give one of them."
        )
    templates = tuple(line for line in lines_of(path) if line)
    if not templates:
        raise ClipError(f"{path} has no templates; write one in each line, with {{}} where the class's name goes.")
    for template in templates:
        if template.count("{}") != 1:
            raise ClipError(
                f"{path} has the template {shown(template)}; write {{}} once in it, where the class's name goes."
            )
    return templates


def _openai_templates(kind: str) -> tuple[str, ...]:
    of_kind = _of_benchmark("zeroshot_classification_templates").get(_ELSEWHERE.get(kind, kind))
    if isinstance(of_kind, list):
        return tuple(str(template).replace("{c}", "{}") for template in of_kind)
    if _ELSEWHERE.get(kind) == "imagenet1k":
        return _templates_of_open_clip("OPENAI_IMAGENET_TEMPLATES", "openai")
    if find_spec("clip_benchmark") is None:
        raise ClipError(
            f"The templates openai for {kind} are read from clip-benchmark, which is not installed; run pip install "
            f"clip-benchmark, or give the templates {', '.join(OURS)} or a file."
        )
    raise ClipError(
        f"The installed clip-benchmark has no templates for {kind}; give {', '.join(OURS)}, or a file of templates."
    )


def _of_benchmark(what: str) -> dict[str, object]:
    """Of each set that an installed clip-benchmark describes; empty where it is not installed."""
    found = find_spec("clip_benchmark")
    if found is None or not found.submodule_search_locations:
        return {}
    folder = found.submodule_search_locations[0]
    content = read_json(os.path.join(folder, "datasets", f"en_{what}.json"))
    return content if isinstance(content, dict) else {}


def _templates_of_open_clip(constant: str, name: str) -> tuple[str, ...]:
    templates = _literal_of_open_clip(constant)
    if templates is None:
        raise ClipError(
            f"The templates {name} are read from open_clip, which is not installed; run pip install open_clip_torch, "
            f"or give the templates {', '.join(OURS)} or a file."
        )
    return tuple(map(str, templates))


def _literal_of_open_clip(constant: str) -> list[str] | None:
    """A constant of its file of prompts, a tuple of texts or of functions that put a name into a text.

    None where open_clip is not installed.
    """
    found = find_spec("open_clip")
    if found is None or not found.submodule_search_locations:
        return None
    path = os.path.join(found.submodule_search_locations[0], "zero_shot_metadata.py")
    for node in ast.parse("\n".join(lines_of(path))).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == constant:
            return [_text(entry) for entry in node.value.elts] if isinstance(node.value, ast.Tuple | ast.List) else []
    return []


def _text(entry: ast.expr) -> str:
    """A text, or the template that stands in ``lambda c: f"a photo of a {c}."``."""
    if isinstance(entry, ast.Lambda):
        entry = entry.body
    if isinstance(entry, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in entry.values)
    return str(ast.literal_eval(entry))
