"""Sentences that quote what strangers wrote."""

from __future__ import annotations

import copy

import pytest

from clip_core.errors import MOST_CHARACTERS, CheckpointError, ClipError, visible


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("a\nclip: all is well", r"a\nclip: all is well"),
        ("\x1b]0;owned\x07\x1b[31m", r"\x1b]0;owned\x07\x1b[31m"),
        ("a\u202eb\u2028c\ud800d\x85", r"a\u202eb\u2028c\ud800d\x85"),
        ("größe 大小 🎈 C:\\new", "größe 大小 🎈 C:\\new"),
    ],
)
def test_a_sentence_is_one_line_that_shows_all_of_itself(written, shown):
    assert str(CheckpointError(written)) == visible(written) == visible(shown) == shown


def test_a_sentence_is_not_as_long_as_the_file_that_it_quotes():
    error = ClipError("It begins here, " + "x" * 1_000_000 + ", and ends here.")
    assert len(str(error)) < MOST_CHARACTERS
    assert str(error).startswith("It begins here, xxx")
    assert str(error).endswith("xxx, and ends here.")
    assert "[990132 characters left out]" in str(error)


def test_a_copied_error_is_as_it_was():
    error = copy.copy(CheckpointError("a\nb" + "x" * 20_000))  # which is what sending it to another process does
    assert type(error) is CheckpointError
    assert str(error) == str(CheckpointError("a\nb" + "x" * 20_000))
