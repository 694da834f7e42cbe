"""Whether Python finds the packages that TriCLIP consists of, and not others of their names; and where pip got them."""

from __future__ import annotations

import json
import os
import shlex
import warnings
from functools import cache
from importlib.util import find_spec
from urllib.parse import urlsplit
from urllib.request import url2pathname

from clip_core.errors import ClipError

FIRST_LINES = {
    "backends": '"""The backends, all with the same interface;',
    "clip": '"""CLIP in NNabla, Paddle, PyTorch and NumPy,',
    "converters": '"""Weights files in and out:',
    "exporters": '"""Models for the runtimes of others:',
}
"""Of each package whose name others may use: how its file starts."""

OTHERS_VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
"""What OpenAI's package, and each copy of it, has beside its modules, and TriCLIP has not."""


@cache
def check() -> None:
    """Look for packages of others in the place of TriCLIP's; warn if only files of OpenAI's lie among them.

    Raises:
        ClipError: a package is another's, is overwritten, or is missing.
    """
    home = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))  # also where one package alone is linked to
    for name, start in FIRST_LINES.items():
        expected = os.path.join(home, name, "__init__.py")
        found = find_spec(name)
        if found is None:
            raise ClipError(f"This TriCLIP is not whole, it lacks its package {name}; install it again.")
        place = found.origin or next(iter(found.submodule_search_locations or ()), "")
        if not os.path.exists(expected) or not os.path.samefile(place, expected):
            raise ClipError(
                f"Python finds the package {name} of another project at {place}, and TriCLIP's own {expected} is "
                f"hidden by it; start Python in another folder, or rename what is there."
            )
        with open(expected, encoding="utf-8") as file:
            if not file.readline().startswith(start):
                raise ClipError(
                    f"Another project has overwritten {expected}; uninstall the project that brought it, and run: "
                    f"pip install --force-reinstall --no-deps {requirement()}."
                )
    if os.path.exists(os.path.join(home, "clip", OTHERS_VOCABULARY)):
        warnings.warn(
            f"OpenAI's package clip, or a copy of it, is installed into TriCLIP's folder {os.path.join(home, 'clip')}, "
            "and uninstalling it would remove files of TriCLIP; afterwards run: pip install --force-reinstall "
            f"--no-deps {requirement()}.",
            stacklevel=2,
        )


def requirement(extra: str = "") -> str:
    """What ``pip install`` is to be given for this TriCLIP, with an extra: the folder, file or address that it was
    installed from, or its name where that was an index, or is gone."""
    from importlib import metadata

    extras = extra and f"[{extra}]"
    records = (each.read_text("direct_url.json") for each in metadata.distributions(name="triclip"))
    origin = json.loads(next(filter(None, records), "{}"))  # of PEP 610; an index leaves no record
    url = origin.get("url", "")
    if url.startswith("file:"):
        path = url2pathname(urlsplit(url).path)
        editable = "-e " if origin.get("dir_info", {}).get("editable") else ""
        return editable + shlex.quote(path + extras) if os.path.exists(path) else shlex.quote("triclip" + extras)
    if "vcs_info" in origin:
        url = f"{origin['vcs_info']['vcs']}+{url}@{origin['vcs_info']['commit_id']}"
    return shlex.quote(f"triclip{extras}" + (url and f" @ {url}"))
