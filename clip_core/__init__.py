"""What CLIP is, in NumPy, Pillow, regex and ftfy. No deep-learning framework is imported here; no network is needed."""
