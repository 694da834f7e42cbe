"""Compilation of a model's blocks by ``torch.compile``."""

from __future__ import annotations

import torch

from backends.torch.layers import Block
from backends.torch.model import CLIP
from clip_core.errors import ClipError


def compile_blocks(model: CLIP) -> None:
    """Compile the blocks of both towers by ``torch.compile`` when they are first used.

    Raises:
        ClipError: it does not work here, for example for want of a C++ compiler.
    """
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=model.device))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ClipError(
            f"training.compile needs torch.compile, which does not work here: {reason}. Install a C++ compiler, such "
            "as g++, or leave the key out."
        ) from error
    # All blocks share the 8 versions that PyTorch allows by default, and each kind has some: with gradient and without,
    # one batch size or any. This is the name that all releases know recompile_limit by.
    torch._dynamo.config.cache_size_limit = 64
    for name, block in model.named_modules():
        if isinstance(block, Block):
            block.compile(dynamic=not name.startswith("visual."))  # the longest text of a batch varies, pictures do not
