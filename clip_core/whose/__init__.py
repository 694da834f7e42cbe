"""Embeddings of unknown making: the variants of preprocessing and activation that are in use, and which one is nearest.

``variants.py`` is the table of variants, ``resizing.py`` resizes pictures as each of them does, ``reading.py`` reads
embeddings that others have written, and ``verdict.py`` compares.
"""
