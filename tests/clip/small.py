"""The small model that the command's tests run, and the suffixes of its files."""

from __future__ import annotations

from clip_core.architecture import Architecture
from clip_core.towers.text_transformer import TextTransformer
from clip_core.towers.vision_transformer import VisionTransformer

MERGES = 20
ARCHITECTURE = Architecture(
    embed_dim=32,
    image=VisionTransformer(resolution=48, patch=16, width=64, layers=2, heads=1),
    text=TextTransformer(context_length=77, vocabulary_size=514 + MERGES, width=128, layers=2, heads=2),
)
SUFFIXES = (".pt", ".pth", ".bin", ".safetensors", ".h5", ".hdf5", ".pdparams", ".pd")
