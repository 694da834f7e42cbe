"""Every fault a user can cause, as one sentence: which file or name, what was found, what was expected, what to do."""

from __future__ import annotations


class ClipError(RuntimeError):
    """A fault in what the user gave; ``str(error)`` is one sentence meant for them.

    It is a ``RuntimeError`` because OpenAI's package raises that for an unknown model or a text that is too long, and
    code written for it should keep working.
    """


class CheckpointError(ClipError):
    """A weights file or a set of weights that is not what it should be."""


class ImageError(ClipError):
    """A picture, or an array of pixels, that cannot be used."""


class TextError(ClipError):
    """A text, a list of texts or a token array that cannot be used."""


class DownloadError(ClipError):
    """A file that could not be fetched, or that is not the file that was asked for."""


class BackendMissing(ClipError):
    """A framework that is not installed, is too old, or does not import."""
