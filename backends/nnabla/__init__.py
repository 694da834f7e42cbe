"""CLIP in NNabla."""

import sys

import nnabla_ext.cpu

from backends.nnabla.model import CLIP, to_array, to_tensor

__all__ = ["CLIP", "to_array", "to_tensor"]

# With each look at a variable's array, NNabla imports this extension, and looks for it as a module of its own package
# first, where it is not. The search takes 15 times as long as the look, and Python 3.10 answers it with a KeyError when
# the garbage collector runs another import in the middle of it.
for extension in (nnabla_ext, nnabla_ext.cpu):
    sys.modules.setdefault(f"nnabla.{extension.__name__}", extension)
