"""Every fault a user can cause, as one sentence: which file or name, what was found, what was expected, what to do."""

from __future__ import annotations

import re

# Control characters, line and paragraph separators, what changes the direction of writing, and lone surrogates.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

MOST_CHARACTERS = 10_000  # of a sentence: names in a file, which sentences quote, may be as long as the file


class ClipError(RuntimeError):
    """A fault in what the user gave; ``str(error)`` is one sentence, on one line, meant for them.

    It is a ``RuntimeError`` because OpenAI's package raises that for an unknown model or a text that is too long, and
    code written for it should keep working.
    """

    def __init__(self, sentence: str) -> None:
        sentence = visible(sentence)
        if len(sentence) > MOST_CHARACTERS:
            kept = MOST_CHARACTERS // 2 - 50  # at each end, with room for what stands between
            sentence = f"{sentence[:kept]} [{len(sentence) - 2 * kept} characters left out] {sentence[-kept:]}"
        super().__init__(sentence)


class CheckpointError(ClipError):
    """A weights file or a set of weights that is not what it should be."""


class AssumptionWarning(UserWarning):
    """Weights that do not tell all that they need: what was taken to be OpenAI's, and how to state otherwise."""


class ImageError(ClipError):
    """A picture, or an array of pixels, that cannot be used."""


class TextError(ClipError):
    """A text, a list of texts or a token array that cannot be used."""


class DownloadError(ClipError):
    """A file that could not be fetched, or that is not the file that was asked for."""


class BackendMissing(ClipError):
    """A framework that is not installed, is too old, or does not import."""


class EndedBySignal(SystemExit):
    """A signal has ended the command; unlike the exit of a broken framework, nobody takes it for a fault."""


def visible(text: str) -> str:
    """``text`` as one line that shows all of itself: what would move the cursor or hide something is spelt out.

    File names, the names of tensors and what servers answer come from strangers; whoever prints them uses this.
    """
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
