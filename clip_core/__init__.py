"""CLIP without a deep-learning framework: NumPy, Pillow, regex and ftfy. Nothing here needs a network."""
