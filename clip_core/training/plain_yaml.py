"""YAML as recipes need it: values, lists and sections, without what makes a short file stand for an endless one."""

from __future__ import annotations

import re
from typing import Any

import yaml

from clip_core.data.settings import brief
from clip_core.errors import ClipError

MAXIMUM_BYTES = 1 << 18  # of a file, which the caller sees to
MAXIMUM_NODES = 20_000  # values, keys, lists and sections
MAXIMUM_DEPTH = 20  # of lists and sections within each other
MAXIMUM_DIGITS = 100  # of a number
MESSAGE = 300  # characters of what PyYAML says of a fault

# How a resolver of PyYAML tells a number with an exponent: kind, pattern, first characters. YAML 1.1 asks for a point
# and a sign in it; JSON, and who writes 1e-5, do not.
EXPONENT = (
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    [*"-+.0123456789"],
)


def load(text: bytes | str, source: str) -> Any:
    """What ``text`` says: ``None``, ``bool``, ``int``, ``float``, ``str``, and lists and dictionaries of these.

    Args:
        source: where it is from, for error messages.

    Raises:
        ClipError: naming the line, when it is not YAML, names a key twice, has a key that is not a text, uses anchors,
            aliases, merge keys or tags, or is beyond the limits above.
    """
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except _Refused as error:
        raise ClipError(f"{source}, line {error.line}: {error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ClipError(f"{source} is not YAML: {' '.join(str(error).split())[:MESSAGE]}.") from error


def load_value(text: str, source: str) -> Any:
    """What ``text`` says, or ``text`` itself when it is no YAML.

    Raises:
        ClipError: it begins as a list or a section, or is YAML that `load` refuses.
    """
    try:
        return load(text, source)
    except ClipError as error:
        if isinstance(error.__cause__, yaml.YAMLError) and not text.lstrip().startswith(("[", "{", '"', "'")):
            return text
        raise


class _Refused(Exception):
    def __init__(self, mark: yaml.Mark, reason: str) -> None:
        super().__init__(reason)
        self.line = mark.line + 1


class _Loader(yaml.SafeLoader):
    def __init__(self, text: bytes | str) -> None:
        super().__init__(text)
        self._nodes = self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise _Refused(event.start_mark, "there are no anchors (&) and aliases (*) in a recipe; write it out.")
        if event.tag is not None:
            raise _Refused(event.start_mark, "there are no tags (!) in a recipe; leave it out, or quote the text.")
        self._nodes += 1
        if self._nodes > MAXIMUM_NODES:
            raise _Refused(event.start_mark, f"there are more than {MAXIMUM_NODES:,} values; shorten the recipe.")
        self._depth += 1
        if self._depth > MAXIMUM_DEPTH:
            raise _Refused(event.start_mark, f"more than {MAXIMUM_DEPTH} lists and sections are within each other.")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value == "<<" and key.style is None:
                raise _Refused(key.start_mark, "there are no merge keys (<<) in a recipe; write the keys out.")
            if key.tag != "tag:yaml.org,2002:str":
                raise _Refused(key.start_mark, "a key is not a text; write the name of a setting there.")
            if key.value in seen:
                raise _Refused(key.start_mark, f"the key {brief(key.value)} is there twice; remove one of them.")
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """A number in YAML's notations, all of which Python can take, and few of which are long."""
        if len(node.value) > MAXIMUM_DIGITS:
            raise _Refused(node.start_mark, f"a number has more than {MAXIMUM_DIGITS} digits; shorten it.")
        try:
            is_whole = node.tag == "tag:yaml.org,2002:int"
            return self.construct_yaml_int(node) if is_whole else self.construct_yaml_float(node)
        except (ValueError, OverflowError) as error:
            raise _Refused(
                node.start_mark, f"{brief(node.value)} is no number; correct it, or quote a text."
            ) from error


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_number)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_number)
# A date is a text, as in the name of a folder; "<<" and "=" are too.
_TEXTS = {f"tag:yaml.org,2002:{kind}" for kind in ("timestamp", "merge", "value")}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _TEXTS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(*EXPONENT)
