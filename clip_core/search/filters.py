"""Conditions on the columns of an index: SQL expressions that LanceDB evaluates, and nothing but such expressions."""

from __future__ import annotations

import re
from collections.abc import Iterable

from clip_core.errors import ClipError

MOST_CHARACTERS = 10_000  # of a condition; what is nested very deeply would end the process

# Texts in single quotes, and names of columns in double quotes or backticks; a quote in them is doubled.
_QUOTED = re.compile(r"'(?:[^']|'')*'" r'|"(?:[^"]|"")*"' r"|`(?:[^`]|``)*`")


def condition(where: str) -> str:
    """A user's condition in parentheses.

    LanceDB ignores what follows a condition, such as ``; ...`` and ``LIMIT 3``. In parentheses, all of it has to be the
    condition; so it must not close them itself, nor begin a comment.

    Raises:
        ClipError: it is too long, or has parts that belong to no condition.
    """
    if len(where) > MOST_CHARACTERS:
        raise ClipError(f"The condition has {len(where)} characters; at most {MOST_CHARACTERS} are read here.")
    plain = _QUOTED.sub("''", where)
    for mark in (";", "--", "/*", "#", "\0"):
        if mark in plain:
            raise ClipError(f"The condition {where!r:.200} has {mark!r}; give an expression like width > 500 alone.")
    depth = 0
    for mark in re.findall("[()]", plain):
        depth += 1 if mark == "(" else -1
        if depth < 0:
            break
    if depth:
        raise ClipError(f"The condition {where!r:.200} has parentheses that do not match; close each that is opened.")
    return f"({where})"


def any_of(column: str, values: Iterable[str]) -> str:
    """The condition that a column has one of these texts."""
    return f"{column} IN ({', '.join(map(_quoted, values))})"


def fits(column: str, pattern: str) -> str:
    """The condition that a column fits a shell's pattern (``photos/*.jpg``)."""
    return f"regexp_like({column}, {_quoted(_expression(pattern))})"


def _quoted(text: str) -> str:
    doubled = text.replace("'", "''")
    return f"'{doubled}'"


def _expression(pattern: str) -> str:
    """The regular expression of a pattern with ``*``, ``?`` and ``[...]``, in which a ``*`` goes over slashes, too."""
    parts = re.split(r"(\*|\?|\[!?\]?[^\]]*\])", pattern)
    for place, part in enumerate(parts):
        if place % 2 == 0:
            parts[place] = re.sub(r"([\\.+()|^${}\[\]])", r"\\\1", part)
        elif part in "*?":
            parts[place] = ".*" if part == "*" else "."
        else:
            inside = part[1:-1]
            negated = inside.startswith("!")
            characters = re.sub(r"([\\\[\]^&~])", r"\\\1", inside[negated:])
            parts[place] = f"[{'^' * negated}{characters}]"
    return f"(?s)^{''.join(parts)}$"
