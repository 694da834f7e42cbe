"""Who may ask: whoever has the token, or, without one, programs on this machine."""

from __future__ import annotations

import hmac
import os
import stat
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from clip.serving.refusals import Refusal
from clip_core import files
from clip_core.errors import ClipError

SHORTEST_TOKEN = 16
LONGEST_TOKEN = 4096
OPEN = ("/healthz", "/readyz")
"""Paths that need no token, since what watches over a server has none."""

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


def read_token(path: Path) -> bytes:
    """The token in a file, without line ends around it.

    Raises:
        ClipError: it cannot be read, other users may read or write it, or it is not one line of visible ASCII
            characters, `SHORTEST_TOKEN` or more.
    """
    token = files.read_regular(path, LONGEST_TOKEN).strip(b"\r\n")
    if os.name == "posix" and path.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH):
        raise ClipError(f"{path} holds a token, and every user may read or write it; run: chmod 600 {path}.")
    if len(token) < SHORTEST_TOKEN or not all(0x21 <= byte <= 0x7E for byte in token):
        raise ClipError(
            f"{path} holds no token; write one line of {SHORTEST_TOKEN} or more letters, digits and signs into it, as "
            "openssl rand -hex 32 gives it."
        )
    return token


class Access:
    """Decides whether a request is answered.

    With a token, each request needs it. Without one, a page of another site that is open in a browser on this machine
    could ask, even under a name of its own that it has made lead to 127.0.0.1: requests by other names, and those that
    a browser sends for other pages, are refused.
    """

    def __init__(self, token: bytes | None) -> None:
        self._digest = None if token is None else sha256(token).digest()

    def check(self, path: str, headers: Headers) -> None:
        """Refuse a request that may not be answered.

        Raises:
            Refusal: it may not.
        """
        if self._digest is None:
            self._check_names(headers)
        elif path not in OPEN:
            self._check_token(headers)

    def _check_token(self, headers: Headers) -> None:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        # Digests have one length, so that the comparison tells nothing of the token.
        found = hmac.compare_digest(sha256(given.strip().encode("latin-1")).digest(), self._digest or b"")
        if scheme.lower() != "bearer" or not found:
            what = "needs a token" if not given else "has another token than this server's"
            raise Refusal(
                401,
                f"The request {what}; send the header Authorization: Bearer TOKEN.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _check_names(self, headers: Headers) -> None:
        # HTTP/1.0 needs no name of a host, and is what watches over a server often speaks; no browser speaks it.
        if "host" in headers and host_of(f"//{headers['host']}") not in LOCAL_NAMES:
            raise Refusal(
                403,
                "The request is for another host; without a token file this server answers to localhost, 127.0.0.1 and "
                "::1 only.",
            )
        if "origin" in headers and host_of(headers["origin"]) not in LOCAL_NAMES:
            raise Refusal(403, "The request comes from a web page of another site, which this server does not answer.")


def host_of(address: str) -> str | None:
    """The host that an address, an origin, or ``//`` and the header Host name; None if that is none."""
    try:
        return urlsplit(address).hostname
    except ValueError:  # it is no address
        return None
