"""Flickr8k (Hodosh and others 2013) and Flickr30k (Young and others 2014), with the captions in any of three forms.

::

    1000268201.jpg#0<tab>A child in a pink dress .      Flickr8k.token.txt, results_20130124.token
    1000268201.jpg,A child , in a pink dress            captions.txt, after the line image,caption
    1000092795.jpg| 0| Two young guys , outside .       results.csv, after the line image_name| comment_number| comment

Every picture is one example with its captions, five. In the second form a caption is all that follows the first comma
and may be in quotation marks. ``listed`` is a file with the names of the pictures of a split, one in each line, such as
``Flickr_8k.testImages.txt``; names in it may lack ``.jpg``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from clip_core.data.example import PictureFiles, SourceSettings, grouped
from clip_core.data.listing import lines_of
from clip_core.data.settings import shown
from clip_core.errors import ClipError

_COMMAS, _BARS = "image,caption", "image_name|comment_number|comment"


class Flickr(SourceSettings):
    """The file of the captions, the folder of the pictures, and a file that names those of a split."""

    kind: Literal["flickr"] = "flickr"
    captions: str  # the file
    images: str  # the folder
    listed: str | None = None  # the file of a split; by default all pictures

    def open(self, seed: int) -> PictureFiles:
        examples = grouped(self._rows())
        if self.listed is not None:
            by_name = dict(examples)
            names = [name if name.endswith(".jpg") else f"{name}.jpg" for name in lines_of(self.listed) if name]
            missing = [name for name in names if name not in by_name]
            if missing:
                raise ClipError(f"{self.listed} names {shown(missing[0])}, and {self.captions} has no caption for it.")
            examples = [(name, by_name[name]) for name in dict.fromkeys(names)]
        return PictureFiles(self.captions, self.images, examples)

    def _rows(self) -> Iterator[tuple[str, str]]:
        """Name and caption of each line."""
        lines = lines_of(self.captions)
        first = lines[0].replace(" ", "").lower() if lines else ""
        separate = _by_tabs
        if first in (_COMMAS, _BARS):
            separate, lines = (_by_commas if first == _COMMAS else _by_bars), ["", *lines[1:]]
        for number, line in enumerate(lines, 1):
            if not line:
                continue
            name, caption = separate(line)
            if not name.lower().endswith(".jpg"):
                raise ClipError(
                    f"{self.captions} has in line {number} {shown(line)}, which does not begin with the name of a "
                    f"picture; give a file of name.jpg#0<tab>caption, or one that begins with {_COMMAS} or with "
                    "image_name| comment_number| comment."
                )
            yield name, caption


def _by_tabs(line: str) -> tuple[str, str]:
    name, _, caption = line.partition("\t")
    return name.rpartition("#")[0], caption.strip()


def _by_commas(line: str) -> tuple[str, str]:
    name, _, caption = line.partition(",")
    if len(caption) > 1 and caption[0] == caption[-1] == '"':
        caption = caption[1:-1].replace('""', '"')
    return name, caption.strip()


def _by_bars(line: str) -> tuple[str, str]:
    name, _, rest = line.partition("|")
    return name.strip(), rest.partition("|")[2].strip()
