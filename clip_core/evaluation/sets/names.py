"""Which class of a set has which name in a file of names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from clip_core.data.listing import lines_of
from clip_core.data.settings import shown
from clip_core.errors import ClipError


def in_order(folders: Iterable[str]) -> list[str]:
    """Folders by their names, or by their numbers when all names are such."""
    names = sorted(folders)
    return sorted(names, key=int) if all(map(_is_number, names)) else names


def names_in(path: str, folders: Sequence[str], source: str, by_label: bool = False) -> list[str]:
    """The name of each class in a file (`clip_core.evaluation.sets.folders` has the rules).

    Args:
        folders: what the set itself calls its classes, in the order of `in_order`.
        source: where they are, for messages.
        by_label: whether the order is that of labels in the set instead, of which there is only one.

    Raises:
        ClipError: the file cannot be read, or it is not certain which of its names belongs to which class.
    """
    lines = [line for line in lines_of(path) if line]
    if any("\t" in line for line in lines):
        named: dict[str, str] = {}
        for folder, name in (map(str.strip, line.split("\t", 1)) for line in lines if "\t" in line):
            if folder in named:
                raise ClipError(f"{path} names the folder {folder} twice; keep one of its lines.")
            named[folder] = name
        missing = [folder for folder in folders if not named.get(folder)]
        if missing:
            raise ClipError(f"{path} has no name for the folder {missing[0]} of {source}; add it.")
        return [named[folder] for folder in folders]
    if len(lines) != len(folders):
        raise ClipError(
            f"{path} has {len(lines)} names, and {source} has {len(folders)} folders; give a name for "
            "each, in the order of the sorted folders."
        )
    by_name = {_plain(line): line for line in lines}
    if by_name.keys() == {_plain(folder) for folder in folders} and len(by_name) == len(folders):
        return [by_name[_plain(folder)] for folder in folders]
    folders_by_key = {_key(folder): folder for folder in folders}
    for folder, line in zip(folders, lines):
        if (stated := _stated(line, folder, folders_by_key)) is not None:
            raise ClipError(
                f"{path} is a plain list, and its line {shown(line)}, by its place that of the folder "
                f"{folder}, names the folder {stated}; write each line as folder<tab>name."
            )
    other = None if by_label else _other_order(folders)
    if other is not None:
        here, there = next(pair for pair in zip(folders, other) if pair[0] != pair[1])
        raise ClipError(
            f"{path} is a plain list, and whether {here} or {there} comes first among the folders of "
            f"{source} depends on who sorts them; write each line as folder<tab>name."
        )
    return lines


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal()


def _plain(name: str) -> str:
    return name.replace("_", " ").casefold()


def _key(name: str) -> str:
    """What is the same for all spellings of a folder's name, or of its number."""
    return (name.lstrip("0") or "0") if _is_number(name) else _plain(name)


def _stated(line: str, folder: str, folders_by_key: Mapping[str, str]) -> str | None:
    """The folder that a line of a plain list names, if that is not ``folder`` or the line is numbered.

    "cat" and "cat, Siamese" may be the line of the folder ``cat``, but "0: cat" not even that of ``0``.
    """
    first = re.split(r"[\s.:,;)=]", line, maxsplit=1)[0]
    if first != line and _is_number(first) and _key(first) in folders_by_key:
        return folders_by_key[_key(first)]
    stated = folders_by_key.get(_key(line), folders_by_key.get(_key(first), folder))
    return None if stated == folder else stated


def _other_order(folders: Sequence[str]) -> list[str] | None:
    """Another order in which someone may have listed the sorted ``folders``; ``None`` when theirs is the only one."""
    if all(map(_is_number, folders)) and [int(name) for name in folders] in (
        list(range(len(folders))),
        list(range(1, len(folders) + 1)),
    ):
        return None
    ways = [
        lambda name: name,  # Python
        str.casefold,  # file managers
        lambda name: re.sub(r"[\W_]", "", name).casefold(),  # ls, in most languages
        lambda name: [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)],
    ]
    return next((order for order in (sorted(folders, key=way) for way in ways) if order != list(folders)), None)
