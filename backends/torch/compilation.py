"""Compilation of a model's blocks by ``torch.compile``, for training and for inference."""

from __future__ import annotations

import logging
import time

import numpy as np
import torch

from backends.torch.inductor import VERSIONS
from backends.torch.layers import Block, Transformer
from backends.torch.model import CLIP
from clip_core.errors import ClipError

LOG = logging.getLogger(__name__)


def compile_blocks(model: CLIP) -> None:
    """Compile the blocks of both towers by ``torch.compile`` when they are first used.

    Raises:
        ClipError: it does not work here, for example for want of a C++ compiler.
    """
    _check_compiler(model.device, "training.compile", "the key")
    # All blocks share the 8 versions that PyTorch allows by default, and each kind has some: with gradient and without,
    # one batch size or any. This is the name that all releases know recompile_limit by.
    torch._dynamo.config.cache_size_limit = VERSIONS
    for name, block in model.named_modules():
        if isinstance(block, Block):
            block.compile(dynamic=not name.startswith("visual."))  # the longest text of a batch varies, pictures do not


def compile_inference(model: CLIP) -> None:
    """Compile the blocks of both towers' transformers for inference, now, and log how long that took.

    The code is for batches of any size. Where a model is trained, or other code looks at what it computes, it computes
    as it is.

    Raises:
        ClipError: neither tower is a transformer; or compilation does not work here, for example for want of a C++
            compiler.
    """
    towers = {"image": model.visual, "text": model if model.architecture.text.at_root else model.text}
    transformers = {
        name: part for name, tower in towers.items() for part in tower.children() if isinstance(part, Transformer)
    }
    if not transformers:
        raise ClipError(f"{model.source} has no transformer that could be compiled; leave compile out.")
    _check_compiler(model.device, "compile=True", "it")
    start = time.monotonic()
    for transformer in transformers.values():
        transformer.compiled = True
    # One row is another kind of batch than several.
    for count in (2, 1):
        if "image" in transformers:
            resolution = model.architecture.image.resolution
            model.embed_image(np.zeros((count, 3, resolution, resolution), np.float32))
        if "text" in transformers:
            model.embed_text(_texts(model, count))
    LOG.warning(
        "%s was compiled for inference in %.0f s; the code is kept in %s, where later processes find it.",
        model.source,
        time.monotonic() - start,
        _cache_folder(),
    )


def _texts(model: CLIP, count: int) -> np.ndarray:
    """Tokens [count, context] of texts, none of which is a prefix of another."""
    end = model.tower.required_token
    tokens = np.zeros((count, model.context_length), np.int64)
    tokens[:, 0] = [token for token in range(count + 1) if token != end][:count]
    if end is not None:
        tokens[:, 2:] = end
    return tokens


def _cache_folder() -> str:
    from torch._inductor.runtime.runtime_utils import cache_dir

    return cache_dir()


def _check_compiler(device: torch.device, option: str, left_out: str) -> None:
    """Refuse ``option`` where ``torch.compile`` does not work."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ClipError(
            f"{option} needs torch.compile, which does not work here: {reason}. Install a C++ compiler, such as g++, "
            f"or leave {left_out} out."
        ) from error
