# %% [markdown]
# # Score regions of a picture by a text
#
# CLIP scores candidate boxes by a sentence, which turns a detector of anything into a detector of what you name.
#
# The candidates are a grid of boxes here; a detector such as YOLO gives better ones. The model `shapes` is part of the
# package and knows drawn shapes only: for photographs, set `MODEL = "ViT-B/32"`, with a picture, boxes and texts of
# your own. The first installed framework computes; without one, NumPy does.

# %%
from random import Random

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from clip.api import open_model
from clip.similarity import similarities
from clip_core.data.shapes import Scene, Thing, draw

MODEL = "shapes"
loaded = open_model(MODEL)

# %% [markdown]
# ## The picture
#
# Six drawn cards lie on a table.

# %%
random = Random(7)
picture = Image.new("RGB", (320, 224), (178, 180, 184))
cards = {
    (16, 16): Thing("star", "red", "large", "striped"),
    (112, 16): Thing("circle", "blue", "large", "solid"),
    (224, 32): Thing("heart", "pink", "large", "dotted"),
    (32, 128): Thing("triangle", "yellow", "large", "solid"),
    (144, 112): Thing("star", "turquoise", "large", "solid"),
    (240, 144): Thing("ring", "red", "large", "solid"),
}
for place, thing in cards.items():
    picture.paste(draw(Scene(thing), random), place)

# %% [markdown]
# ## Candidates
#
# Boxes (left, top, right, bottom) of 64 x 64 pixels, 16 pixels apart.

# %%
SIDE, STEP = 64, 16
boxes = [
    (left, top, left + SIDE, top + SIDE)
    for top in range(0, picture.height - SIDE + 1, STEP)
    for left in range(0, picture.width - SIDE + 1, STEP)
]
print(len(boxes), "boxes")

# %% [markdown]
# ## Scores
#
# The score of a box is the cosine of its content with the text.

# %%
texts = ["a striped red star", "a red ring", "a pink heart", "a turquoise star"]
pixels = np.stack([loaded.preprocess.pixels(picture.crop(box)) for box in boxes])
scores = similarities(loaded, [str(box) for box in boxes], pixels, texts).cosines

# %% [markdown]
# The map shows the mean score of the boxes that cover each place, and the frame is the box with the highest score.

# %%
figure, axes = plt.subplots(2, 2, figsize=(10, 7.2), layout="constrained")
for panel, text, of_boxes in zip(axes.flat, texts, scores.T):
    total, count = np.zeros((2, picture.height, picture.width))
    for (left, top, right, bottom), score in zip(boxes, of_boxes):
        total[top:bottom, left:right] += score
        count[top:bottom, left:right] += 1
    left, top, right, bottom = boxes[of_boxes.argmax()]
    panel.imshow(picture)
    panel.imshow(total / count, cmap="inferno", alpha=0.4)
    panel.add_patch(plt.Rectangle((left, top), right - left, bottom - top, fill=False, color="white", linewidth=3))
    panel.set_title(f"{text}: {of_boxes.max():.2f}")
    panel.axis("off")
plt.show()
