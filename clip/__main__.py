"""``python -m clip`` is the ``clip`` command."""

import os
import sys

if __package__ in (None, ""):
    # A launcher that runs this file as a script puts its folder in front, where clip.py would hide the package.
    sys.path[:] = [
        place for place in sys.path if os.path.realpath(place) != os.path.dirname(os.path.realpath(__file__))
    ]

from clip.command import main

if __name__ == "__main__":
    main()
