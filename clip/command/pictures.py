"""Pictures and texts that commands are given: files, folders, patterns, and lists in files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Sequence
from glob import glob
from pathlib import Path

import numpy as np
from PIL import Image

from clip.api import Preprocess
from clip_core import files
from clip_core.data.listing import tree, warn_of_rest
from clip_core.errors import ClipError, ImageError, TextError
from clip_core.image import SUFFIXES, open_image

MAX_LIST_BYTES = 16 << 20


def pictures_of(argument: str, known: Collection[str] = ()) -> list[str]:
    """A file itself, the pictures in a folder and below it, or both for all that fits a pattern.

    What is passed over in a folder is said in a warning.

    Args:
        known: names of files in a folder that are something else, which needs no warning.

    Raises:
        ClipError: there are none, or a folder cannot be read.
    """
    if os.path.lexists(argument) or "://" in argument or not re.search("[*?[]", argument):
        fitting = [argument]
    else:
        fitting = sorted(glob(argument, recursive=True))
    found = []
    for name in fitting:
        if not os.path.isdir(name):
            found.append(name)
            continue
        inside, again = tree(name)
        found += [path for path in inside if Path(path).suffix.lower() in SUFFIXES]
        others = [path for path in inside if Path(path).suffix.lower() not in SUFFIXES]
        warn_of_rest(name, [path for path in others if os.path.basename(path) not in known], again)
    if not found:
        raise ClipError(f"{argument} names no pictures ({', '.join(SUFFIXES)}); check the path or the pattern.")
    return list(dict.fromkeys(found))  # a pattern with ** fits a folder, and what is in it as well


def texts_of(file: Path) -> list[str]:
    """The lines of a text file that are not blank, without blanks around them.

    Raises:
        ClipError: it cannot be read.
        TextError: it is not UTF-8 text.
    """
    data = files.read_regular(file, MAX_LIST_BYTES)
    try:
        text = data.decode("utf-8-sig")  # some editors start a file with a byte order mark
    except UnicodeDecodeError as error:
        raise TextError(f"{file} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    if "\0" in text:
        raise TextError(f"{file} is not a text: it holds zero bytes; save it as UTF-8.")
    return [line.strip() for line in text.splitlines() if line.strip()]


def labels_of(labels: Sequence[str] | None, file: Path | None) -> list[str]:
    """What ``--labels``, each with commas, and ``--labels-file`` give together.

    Raises:
        ClipError: as `texts_of`.
    """
    given = [label.strip() for option in labels or () for label in option.split(",") if label.strip()]
    return given + ([] if file is None else texts_of(file))


def pixels_of(name: str, preprocess: Preprocess, picture_of: Callable[[str], Image.Image] = open_image) -> np.ndarray:
    """Pixels float32 [3, r, r] of a picture.

    Args:
        name: of the picture, by default of its file.
        picture_of: gives the picture of a name.

    Raises:
        ImageError: naming the picture, which cannot be used.
    """
    image = picture_of(name)
    try:
        return preprocess.pixels(image)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error
