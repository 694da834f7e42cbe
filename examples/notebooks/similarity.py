# %% [markdown]
# # Similarity of pictures and texts
#
# Every picture is compared with every text, in each installed framework, and the frameworks agree to the sixth digit.
#
# The photographs come with scikit-image (`pip install scikit-image`). The embedded model `shapes` knows drawn shapes
# only: for the photographs, set `MODEL = "ViT-B/32"`, which is downloaded once. A framework that is missing is left
# out; NNabla has wheels for Python 3.10 and older only.

# %%
import logging
import warnings
from pathlib import Path

import numpy as np
import skimage.data
from IPython.display import Image

import backends
from clip import samples
from clip.api import open_model
from clip.figures import png
from clip.similarity import heat_map, largest_difference, similarities
from clip_core.image import open_image

logging.disable(logging.INFO)  # NNabla reports on itself while it is imported
warnings.filterwarnings("ignore", "No ccache found")  # Paddle looks for it, and needs none here

# %%
MODEL = "shapes"
models = {name: open_model(MODEL, backend=name, device="cpu") for name in backends.available()}
print(*models)

# %% [markdown]
# ## Drawn pictures
#
# `shapes` was trained on pictures like these, each of which is named by its caption. `compare` gives the cosines [n, m]
# of n pictures and m texts in each framework.


# %%
def compare(paths, texts):
    pictures = [open_image(path) for path in paths]
    found = []
    for loaded in models.values():
        pixels = np.stack([loaded.preprocess.pixels(picture) for picture in pictures])
        found.append(similarities(loaded, [path.name for path in paths], pixels, texts))
    print("largest difference between frameworks:", largest_difference(found))
    return Image(png(heat_map(found[0], pictures)), width=900)


# %%
drawn = samples.pictures()
compare(list(drawn.values()), list(drawn))

# %% [markdown]
# The highest cosine of each picture is that of its own caption, on the diagonal.
#
# ## Photographs
#
# `shapes` has seen no photograph, so its cosines say nothing about these. The frameworks agree all the same. With
# `ViT-B/32`, the diagonal has the highest cosines here, too.

# %%
described = {
    "page.png": "a page of a printed book",
    "chelsea.png": "the face of a tabby cat",
    "astronaut.png": "an astronaut in front of a flag",
    "rocket.jpg": "a rocket on its launch pad",
    "motorcycle_right.png": "a motorcycle in a workshop",
    "camera.png": "a photographer behind a camera",
    "horse.png": "the black outline of a horse",
    "coffee.png": "a cup of coffee with a spoon",
}
folder = Path(skimage.data.__file__).parent
compare([folder / name for name in described], list(described.values()))
