"""Where OpenAI's vocabulary comes from. It is not part of this project; it is found, or fetched once, and checked."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from clip_core import files
from clip_core.download import cache_folder, download
from clip_core.errors import ClipError, DownloadError, TextError

NAME = "bpe_simple_vocab_16e6.txt.gz"
ADDRESS = f"https://github.com/openai/CLIP/raw/main/clip/{NAME}"
SIZE = 1_356_917
SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
TEXT_SHA256 = "67603cfda2e032ad77b5f8808af37789d590db664b26df8705d2bf8b3c553fc8"
"""Of the decompressed text."""

MERGES = 48_894
"""The file has 262,143 merges; the published models know the first of them only, 49,408 ids with bytes and specials."""

MERGES_SHA256 = "f61f2adf497e6f5357c347aeb4646fabe82f341e946de5bdec5d2858e41bef4a"
"""Of those merges, one a line, without the header and without a line end at the end."""

_LARGEST = 8 << 20  # bytes, compressed or not: more than any copy of this file can have
_GZIP = zlib.MAX_WBITS | 16


def openai_merges() -> str:
    """The merges file of OpenAI's tokenizer: its header and the first 48,894 merges.

    Raises:
        TextError, DownloadError: as `openai_vocabulary`.
    """
    return _found()[1]


def openai_vocabulary() -> Path:
    """A copy of OpenAI's vocabulary file.

    ``$CLIP_VOCABULARY`` names a copy of the file, and then no other source is tried. Else it is taken from the cache
    folder, an installed ``open_clip`` (which is not imported), or OpenAI's repository. A fetched copy stays in the
    cache folder.

    Raises:
        TextError: ``$CLIP_VOCABULARY`` cannot be read or is not OpenAI's file; the sentence says what differs.
        DownloadError: no source has the file; the sentence names them all.
    """
    return _found()[0]


def vocabulary_at_hand() -> Path:
    """The copy of OpenAI's file that `openai_vocabulary` takes, unless it would fetch one.

    Raises:
        TextError, DownloadError: as `openai_vocabulary`.
    """
    return _found((_cached, _installed))[0]


def merges_of(path: str | os.PathLike[str]) -> str:
    """The merges of a copy of OpenAI's file.

    Raises:
        TextError: it is not OpenAI's file; the sentence says what differs.
        ClipError: it cannot be read.
    """
    return _merges(files.read_regular(path, limit=_LARGEST), str(path))


def are_openais(merges: Sequence[str]) -> bool:
    """Whether these merges, each ``left right``, are those of `openai_merges`, which need not be at hand."""
    return len(merges) == MERGES and hashlib.sha256("\n".join(merges).encode()).hexdigest() == MERGES_SHA256


def _found(sources: Sequence[Callable[[], Path]] | None = None) -> tuple[Path, str]:
    """The copy of OpenAI's file from the first of these sources that has it, and its merges."""
    if chosen := os.environ.get("CLIP_VOCABULARY"):
        try:
            return Path(chosen), merges_of(chosen)
        except ClipError as error:
            raise TextError(f"$CLIP_VOCABULARY cannot be used: {error}") from error
    tried = []
    for source in sources or (_cached, _installed, _fetched):
        try:
            path = source()
            return path, merges_of(path)
        except ClipError as error:
            tried.append(str(error).rstrip("."))
    raise DownloadError(
        f"OpenAI's vocabulary was not found: {'; '.join(tried)}. "
        f"Set $CLIP_VOCABULARY to a copy of {NAME}, or run: pip install --no-deps open_clip_torch."
    )


def _in_cache() -> Path:
    return cache_folder() / NAME


def _cached() -> Path:
    if not _in_cache().exists():
        raise DownloadError(f"{_in_cache()} is not there.")
    return _in_cache()


def _installed() -> Path:
    specification = importlib.util.find_spec("open_clip")
    if specification is None or not specification.submodule_search_locations:
        raise DownloadError("open_clip is not installed.")
    return Path(specification.submodule_search_locations[0]) / NAME


def _fetched() -> Path:
    return download(ADDRESS, _in_cache(), SHA256, expected_size=SIZE)


def _merges(data: bytes, name: str) -> str:
    """Check the bytes of the compressed file and give its merges; ``name`` is what an error calls the file."""
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise TextError(f"{name} is not OpenAI's {NAME} (SHA-256 {SHA256}): {_difference(data)}; fetch it again.")
    text = zlib.decompress(data, wbits=_GZIP)
    return "\n".join(text.decode().split("\n")[: MERGES + 1]) + "\n"


def _difference(data: bytes) -> str:
    """What is wrong with a file that has not the right SHA-256."""
    if _is_the_text(data):
        return "it has the right text but is not compressed"
    stream = zlib.decompressobj(wbits=_GZIP)
    try:
        text = stream.decompress(data, _LARGEST)
    except zlib.error as error:
        return f"it does not decompress ({error}, {len(data)} bytes instead of {SIZE})"
    if stream.unconsumed_tail:
        return f"it decompresses to more than {_LARGEST} bytes"
    if not stream.eof:
        return f"it is cut short ({len(data)} bytes instead of {SIZE})"
    if _is_the_text(text):
        return "it has the right text but was compressed anew"
    if _is_the_text(text.replace(b"\r\n", b"\n")):
        return "its line ends are CRLF instead of LF"
    return f"its text is another one, of {len(text.splitlines())} lines"


def _is_the_text(text: bytes) -> bool:
    return hashlib.sha256(text).hexdigest() == TEXT_SHA256
