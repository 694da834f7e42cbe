"""The part of docs/recipes.md that follows from the code: ``python -m tests.recipe_keys`` writes it there.

What a key is for stands in the comment beside it in the code.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from types import ModuleType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic.fields import FieldInfo

from clip_core.architecture import Architecture
from clip_core.data import families
from clip_core.data.example import SourceSettings
from clip_core.data.families import FAMILIES
from clip_core.data.settings import Section, sections_in
from clip_core.evaluation import sentences, sets
from clip_core.evaluation.sentences import SENTENCES, SentenceSettings
from clip_core.evaluation.sets import SETS
from clip_core.towers import IMAGE_TOWERS, TEXT_TOWERS
from clip_core.towers.parts import Pixels
from clip_core.training.recipe import Recipe

DOCUMENT = Path(__file__).parents[1] / "docs" / "recipes.md"
BEGIN, END = "<!-- python -m tests.recipe_keys -->\n", "<!-- end -->\n"
TOWERS = {place: f"[a tower](#{place}-towers), or the name of a model that has it" for place in ("image", "text")}
LARGE, SMALL = 1e9, 1e-30  # limits beyond are there for slips alone


def keys() -> str:
    """All sections, kinds of data and towers as Markdown."""
    parts: list[str] = []
    for name, field in Recipe.model_fields.items():
        section = next(sections_in(field.annotation))
        parts += [f"## `{name}`", summary(section), table(rows(section, name))]
    parts += ["## Sources", "Each has the key `kind`, as in `data.source.kind: table`.", *kinds(FAMILIES, families)]
    parts += ["## Classes", markdown(sets.__doc__), "Each has the key `kind`; without one it is `folders`."]
    parts += kinds(SETS, sets)
    parts += ["## Sentences", markdown(sentences.__doc__), "Each has the key `kind`.", *kinds(SENTENCES, sentences)]
    parts += ["## Architectures", summary(Architecture), table(of_dataclass(Architecture))]
    for title, towers in (("Image towers", IMAGE_TOWERS), ("Text towers", TEXT_TOWERS)):
        parts.append(f"## {title}")
        for kind, tower in towers.items():
            parts += [f"### `kind: {kind}`", f"{tower.title}. {summary(tower)}", table(of_dataclass(tower))]
    parts += ["## Pixels", summary(Pixels), table(of_dataclass(Pixels))]
    return "\n\n".join(part for part in parts if part) + "\n"


def kinds(found: Mapping[str, type[Any]], registry: ModuleType) -> Iterator[str]:
    """The kinds of a table, each with the docstring of its file unless the one before it has had that."""
    shown: ModuleType | None = registry
    for kind, family in found.items():
        module = inspect.getmodule(family)
        own = module not in (registry, shown)  # a file that is about this kind
        yield from kind_of(kind, family, markdown(module.__doc__) if own else summary(family))
        shown = module


def kind_of(kind: str, family: type[Any], about: str) -> list[str]:
    return [f"### `kind: {kind}`", about, table(row for row in rows(family) if row[0] != "`kind`")]


def table(found: Iterable[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(row)} |".replace("|  |", "| |") for row in found]
    return "\n".join(["| key | value | default | |", "| --- | --- | --- | --- |", *lines]) if lines else ""


def rows(section: type[Any], place: str = "") -> Iterator[tuple[str, ...]]:
    """Key, values, default and purpose of each key, those of sections inside it in its place."""
    comments = comments_of(section)
    for name, field in section.model_fields.items():
        key = f"{place}.{name}" if place else name
        inside = list(sections_in(field.annotation))
        if len(inside) == 1 and isinstance(field.annotation, type):
            yield from rows(inside[0], key)
            continue
        values = described(field.annotation, field.metadata)
        default = "needed" if field.is_required() else written(field.default)
        yield f"`{key}`", values, default, comments.get(name, "")


def of_dataclass(kind: type[Any]) -> Iterator[tuple[str, ...]]:
    hints, comments = get_type_hints(kind), comments_of(kind)
    for field in fields(kind):
        # What is computed may differ between two models of one shape, so it is never left to a default.
        needed = field.default is MISSING or field.name == "activation"
        values = TOWERS.get(field.name) or described(hints[field.name])
        yield f"`{field.name}`", values, "needed" if needed else written(field.default), comments.get(field.name, "")


def described(annotation: Any, limits: Iterable[Any] = ()) -> str:
    """The values of a type, in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return described(arguments[0], arguments[1:])
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin in (Union, UnionType) and all(isinstance(each, type) and issubclass(each, Section) for each in arguments):
        if issubclass(arguments[0], SentenceSettings):
            return "[sentences](#sentences)"
        sources = issubclass(arguments[0], SourceSettings)
        return "[a source](#sources)" if sources else "[classes](#classes)"
    if origin in (Union, UnionType):
        return " or ".join(described(each) for each in arguments if each is not type(None))
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"list: {described(arguments[0])}"
    if origin is tuple:
        return f"list of {len(arguments)}: {described(arguments[0])}"
    if origin is dict:
        return "[an architecture](#architectures)"
    if annotation is Pixels:
        return "[pixels](#pixels)"
    words = {int: "whole number", float: "number", bool: "`true`, `false`", str: "text"}
    return words.get(annotation, "section") + interval(limits)


def interval(limits: Iterable[Any]) -> str:
    flat = [each for limit in limits for each in (limit.metadata if isinstance(limit, FieldInfo) else [limit])]
    bound = {name: getattr(each, name) for each in flat for name in ("ge", "gt", "le", "lt") if hasattr(each, name)}
    words = ""
    if "gt" in bound or 0 < bound.get("ge", 0) < SMALL:
        words += " above 0"
    elif bound.get("ge", -LARGE) > -LARGE:
        words += f" from {bound['ge']}"
    if bound.get("le", LARGE) < LARGE:
        words += f" to {bound['le']:.8g}"
    elif bound.get("lt", LARGE) < LARGE:
        words += f", below {bound['lt']}"
    return words


def written(value: Any) -> str:
    """A default as a recipe would have it."""
    if isinstance(value, Section):
        return f"`kind: {value.kind}`"  # type: ignore[attr-defined]  # other sections are written key by key
    if isinstance(value, Pixels):
        return (
            f"mean {written(value.mean)}, deviation {written(value.deviation)}, {value.interpolation}, {value.resize}"
        )
    if isinstance(value, tuple):
        return "`[" + ", ".join(written(each).strip("`") for each in value) + "]`"
    if isinstance(value, float):
        return f"`{value:.6g}`"
    return f"`{value}`" if isinstance(value, str) and value.isidentifier() else f"`{json.dumps(value)}`"


def summary(kind: type[Any]) -> str:
    """The first paragraph of its docstring."""
    return " ".join(markdown(kind.__doc__).split("\n\n")[0].split())


def markdown(docstring: str | None) -> str:
    text = inspect.cleandoc(docstring or "").replace("``", "`")
    return re.sub(r"::$", ":", re.sub(r"^::\n\n", "", text, flags=re.M), flags=re.M)


def comments_of(kind: type[Any]) -> dict[str, str]:
    """Field -> what stands about it: behind it, in comment lines before it, or in a text after it."""
    found: dict[str, str] = {}
    for each in kind.__mro__:
        if not each.__module__.startswith("clip_core"):
            continue
        source = inspect.getsource(each)
        lines = source.splitlines()
        body = ast.parse(source).body[0].body  # type: ignore[attr-defined]
        for node, behind in zip(body, [*body[1:], None]):
            if not isinstance(node, ast.AnnAssign):
                continue
            above = node.lineno - 1
            while lines[above - 1].lstrip().startswith("#"):
                above -= 1
            texts = [line.strip(" #") for line in lines[above : node.lineno - 1]]
            texts += re.findall(r"  # (?!type:)(.+)$", lines[node.end_lineno - 1])
            if isinstance(behind, ast.Expr) and isinstance(behind.value, ast.Constant):
                texts.append(" ".join(markdown(str(behind.value.value)).split()))
            if texts:
                text = re.sub(r"\bNone\b", "`null`", " ".join(texts))
                found.setdefault(ast.unparse(node.target), text[0].upper() + text[1:])
    return found


if __name__ == "__main__":
    before, rest = DOCUMENT.read_text().split(BEGIN)
    DOCUMENT.write_text(before + BEGIN + keys() + END + rest.split(END)[1])
