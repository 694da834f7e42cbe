"""A recipe of one megabyte is read or refused within ten seconds and three gigabytes, however it is made."""

from __future__ import annotations

from checkpoint_attacks import child

from clip_core.training.plain_yaml import MAXIMUM_BYTES

MEGABYTE = 1 << 20
SMALLEST = "model: {architecture: shapes}\ntraining: {steps: 1}\n"


def doubling() -> str:
    """A list of ten lists of ten lists, twelve times over, in a few hundred bytes."""
    lists = ["&a0 [x, x, x, x, x, x, x, x, x, x]"]
    lists += [f"&a{level} [" + ", ".join([f"*a{level - 1}"] * 10) + "]" for level in range(1, 12)]
    return "".join(f"k{level}: {text}\n" for level, text in enumerate(lists)) + "training: {steps: *a11}\n"


def merging() -> str:
    many = ", ".join(f"k{number}: 1" for number in range(20_000))
    return f"a: &a {{{many}}}\n" + "".join(f"b{number}: {{<<: *a}}\n" for number in range(30_000))


def up_to(size: int, head: str, piece: str, tail: str = "") -> str:
    return head + piece * ((size - len(head) - len(tail)) // len(piece)) + tail


RECIPES = {
    "doubling": doubling,
    "merging": merging,
    **{
        f"{name} of {size}": lambda size=size, parts=parts: up_to(size, *parts)
        for size in (MAXIMUM_BYTES, MEGABYTE)
        for name, parts in {
            "nesting": ("", "["),
            "nested sections": ("", "{a: "),
            "list": ("a: [", "1,", "]"),
            "keys": ("{", "? a,", "}"),
            "lines": (SMALLEST + "data:\n", " b\n"),
            "empty lines": (SMALLEST, "\n"),
            "comments": (SMALLEST, "#\n"),
            "escapes": ('a: "', "\\x41", '"'),
            "folded": ("a: >\n", "  b\n"),
            "digits": ("training: {seed: 1", "0", "}"),
            "base sixty": ("training: {seed: 1", ":10", "}"),
            "hexadecimal": ("training: {seed: 0x", "f", "}"),
            "an alias": ("a: *", "b"),
            "a tag": ("a: !", "b", "!c d"),
            "a key": (SMALLEST, "b", ": 1"),
            "directives": ("", "%A b\n", "--- 1"),
            "documents": ("", "---\n"),
            "templates": (SMALLEST + "data: {source: {kind: food101, folder: f, templates: [", "'a {}',", "'{}']}}"),
            "parts": (SMALLEST + "data: {source: {kind: combined, parts: [", "{kind: shapes},", "]}}"),
            "wrong parts": (SMALLEST + "data: {source: {kind: combined, parts: [", "{kind: x},", "]}}"),
        }.items()
    },
}


def test_every_recipe_of_a_megabyte_is_read_or_refused_in_time(tmp_path):
    for number, make in enumerate(RECIPES.values()):
        (tmp_path / f"{number:03}.yaml").write_text(make())
    found = child(
        f"""
        import time
        from pathlib import Path
        from clip_core.errors import ClipError
        from clip_core.training.recipe import Recipe
        for path in sorted(Path({str(tmp_path)!r}).iterdir()):
            began = time.process_time()
            try:
                Recipe.read(path)
                result = "read"
            except ClipError as error:
                result = "refused" if len(str(error)) < 1000 and str(error).endswith(".") else str(error)
            print(result, time.process_time() - began < 10)
        """,
        megabytes=3 << 10,
        seconds=10 * len(RECIPES),
    )
    told = dict(zip(RECIPES, found.splitlines(), strict=True))
    read = {name for name, result in told.items() if result == "read True"}
    assert {name: told[name] for name in told.keys() - read} == dict.fromkeys(told.keys() - read, "refused True")
    assert read == {f"{name} of {MAXIMUM_BYTES}" for name in ("comments", "empty lines")}
