"""Whether Python finds the packages that TriCLIP consists of, and not others of their names."""

from __future__ import annotations

import os
import warnings
from functools import cache
from importlib.util import find_spec

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
                    "pip install --force-reinstall --no-deps triclip."
                )
    if os.path.exists(os.path.join(home, "clip", OTHERS_VOCABULARY)):
        warnings.warn(
            f"OpenAI's package clip, or a copy of it, is installed into TriCLIP's folder {os.path.join(home, 'clip')}, "
            "and uninstalling it would remove files of TriCLIP; afterwards run: pip install --force-reinstall "
            "--no-deps triclip.",
            stacklevel=2,
        )
