"""NNabla-CLIP: canonical names with slashes, ``W`` and ``b``."""

from __future__ import annotations

import re

from clip_core.layouts.parts import Layout

# What an archive of ``clip export`` has beside what NNabla wants in it.
METADATA = "triclip.json"  # a member: what there is to know of the model, and for a whole one its manifest
TRANSPOSED = "_transposed"  # the end of the name of a matrix that is stored as [inputs, outputs]
OF_CHANNELS = "_of_channels"  # of a vector that is stored as [1, channels, 1, 1]


def _spell(name: str) -> str:
    # NNabla's own converter replaces plain substrings in this order.
    name = name.replace("running_mean", "mean").replace("running_var", "var")
    return name.replace("weight", "W").replace("bias", "b").replace(".", "/")


def _canonical(name: str) -> str:
    canonical = re.sub("(?<=[/_])W$", "weight", name)
    canonical = re.sub("(?<=[/_])b$", "bias", canonical)
    canonical = re.sub("/(mean|var)$", r"/running_\1", canonical).replace("/", ".")
    # Files written by a general converter keep the statistics' own names.
    spelled = name.replace("running_mean", "mean").replace("running_var", "var")
    return canonical if _spell(canonical) == spelled else name


LAYOUT = Layout("nnabla", lambda weights: any("/" in name for name in weights), _spell, _canonical)
