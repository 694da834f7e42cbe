"""Pictures that clients send: base64, data: URIs, uploads, and addresses if the server may fetch them."""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

import numpy as np

from clip.api import Preprocess
from clip_core.data.collection.fetching import Fetcher
from clip_core.errors import ImageError
from clip_core.image import image_size, open_image

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def content_of(picture: str | bytes, fetcher: Fetcher | None) -> bytes:
    """The bytes of a picture's file.

    Args:
        picture: an uploaded file, or a text: a data: URI, an address, or base64.
        fetcher: by which addresses are fetched; None if they are not.

    Raises:
        ImageError: the text is nothing of that, or an address while there is no ``fetcher``.
        DownloadError: as `Fetcher.fetch`.
    """
    if isinstance(picture, bytes):
        return picture
    if picture[:5].lower() == "data:":
        head, comma, content = picture.partition(",")
        if not comma:
            raise ImageError("the data: URI has no comma, behind which its content would be.")
        return _decoded(content) if head.lower().endswith(";base64") else unquote_to_bytes(content)
    if is_address(picture):
        if fetcher is None:
            raise ImageError("it is an address, and this server fetches none; send the picture itself in base64.")
        return fetcher.fetch(picture)
    return _decoded(picture)


def is_address(text: str) -> bool:
    """Whether a text is meant as an address; base64 has no colon."""
    return _ADDRESS.match(text) is not None


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:  # the latter of text that is not ASCII
        raise ImageError(f"it is not base64 ({str(error).rstrip('.')}); encode the picture's file whole.") from error


def pixels_of(picture: str | bytes, fetcher: Fetcher | None, preprocess: Preprocess, most_pixels: int) -> np.ndarray:
    """Pixels float32 [3, r, r] of a picture, given as for `content_of`.

    Raises:
        ImageError: it cannot be used, or declares more than ``most_pixels``.
        DownloadError: as `content_of`.
    """
    content = content_of(picture, fetcher)
    width, height = image_size(content)
    if width * height > most_pixels:
        raise ImageError(f"it has {width} x {height} pixels; at most {most_pixels} are decoded, so send it smaller.")
    return preprocess.pixels(open_image(content))
