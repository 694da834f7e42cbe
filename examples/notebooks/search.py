# %% [markdown]
# # Search pictures by a sentence
#
# 300 pictures are embedded once, and an index finds them by a text, by another picture, or by both.
#
# It needs `pip install -e '.[search]'`; the first installed framework computes, and without one, NumPy does. The model
# `shapes` is part of the package and knows drawn shapes only: for photographs, set `MODEL = "ViT-B/32"`, and `photos`
# to their folder in place of drawing.

# %%
import tempfile
from pathlib import Path

from IPython.display import Image

import clip
from clip import samples
from clip.contact_sheet import Cell, Row, contact_sheet
from clip.figures import png
from clip_core.data.shapes import training_example

MODEL = "shapes"
temporary = tempfile.TemporaryDirectory()  # is removed with the kernel
folder = Path(temporary.name)

# %% [markdown]
# ## Pictures
#
# Drawn pictures under plain numbers: their names tell nothing.

# %%
photos = folder / "photos"
photos.mkdir()
for number in range(300):
    training_example(seed=1, index=number).picture.save(photos / f"{number:03}.png")

# %% [markdown]
# ## Embed and index
#
# In a terminal, `clip embed photos -o out` and `clip index build out -o index.lance` do the same for millions of
# pictures.

# %%
embeddings = clip.embed(str(photos), model=MODEL)
index = clip.Index.build(embeddings, folder / "index.lance")
print(len(index), "pictures,", embeddings.array.shape[1], "numbers each")

# %% [markdown]
# ## Search
#
# A query is a text, a picture, or both; with `minus`, results are far from another text. The number below each picture
# is its cosine with the query.

# %%
star = samples.pictures()["a large striped red star"]
queries = {
    "three small pink hearts": index.search("three small pink hearts", count=5),
    "a green square left of something": index.search("a green square left of something", count=5),
    "like the striped red star": index.search(image=star, count=5),
    "like the striped red star, but blue": index.search("blue", image=star, minus="red", count=5),
}

# %%
rows = [Row(query, [Cell(hit.row["path"], f"{hit.score:.2f}") for hit in hits]) for query, hits in queries.items()]
Image(png(contact_sheet(rows)), width=700)
