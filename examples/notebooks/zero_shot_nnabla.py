# %% [markdown]
# # Zero-shot classification in NNabla
#
# CLIP finds the label that fits a picture best, among any labels that you write down.
#
# The model `shapes` is part of the package and knows drawn shapes only. For photographs, write `"ViT-B/32"`, which is
# downloaded once, with pictures and labels of your own. NNabla has no wheel for Python 3.11 or newer: there, run the
# notebook `similarity`, which takes the frameworks that are installed.

# %%
import logging

import matplotlib.pyplot as plt
import numpy as np

import clip
from clip import samples
from clip_core.image import open_image

logging.disable(logging.INFO)  # NNabla reports on itself while it is imported
model, preprocess = clip.load("shapes", backend="nnabla")

# %% [markdown]
# The package has eight drawn pictures. `preprocess` turns each of them into pixels [3, 64, 64].

# %%
pictures = [open_image(path) for path in samples.pictures().values()]
pixels = np.stack([preprocess(picture) for picture in pictures])

# %% [markdown]
# The labels can be any texts. `tokenize` turns them into numbers.

# %%
labels = [
    "a red circle",
    "a blue circle",
    "a yellow triangle",
    "a turquoise star",
    "a striped star",
    "a yellow crescent",
    "three hearts",
    "a square left of a ring",
]
tokens = clip.tokenize(labels)

# %% [markdown]
# Under `auto_forward`, NNabla computes each function when it is called. The logits are the scaled cosines of pictures
# and texts; their softmax says how the probability of each picture is spread over the labels.

# %%
import nnabla as nn
import nnabla.functions as F

with nn.auto_forward():
    logits_per_image, logits_per_text = clip.logits(
        nn.Variable.from_numpy_array(pixels), nn.Variable.from_numpy_array(tokens)
    )
    probabilities = F.softmax(logits_per_image, axis=-1).d

# %% [markdown]
# Each picture, and the three labels that fit it best:

# %%
figure, axes = plt.subplots(4, 4, figsize=(12, 7), layout="constrained", width_ratios=[2, 3, 2, 3])
for (left, right), picture, of_labels in zip(axes.reshape(-1, 2), pictures, probabilities):
    best = np.argsort(-of_labels)[:3]
    left.imshow(picture)
    left.axis("off")
    right.barh([labels[place] for place in best], of_labels[best], color="#4f9d69")
    right.set(xlim=(0, 1), xticks=[0, 0.5, 1])
    right.invert_yaxis()
    right.spines[["top", "right"]].set_visible(False)
plt.show()
