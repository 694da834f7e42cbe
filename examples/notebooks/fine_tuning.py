# %% [markdown]
# # Fine-tuning on a small data set
#
# The embedded model `shapes` knows English captions only; in less than a minute, it learns German ones from 504
# pictures.
#
# To fine-tune OpenAI's model, set `MODEL = "ViT-B/32"`, and name the pictures and captions of your own in a table; that
# takes minutes to hours. The training runs in the first framework that is installed, or in the one that `$CLIP_BACKEND`
# names: `torch`, `paddle`, or `nnabla` on Python 3.10.

# %%
import json
import tempfile
from pathlib import Path
from random import Random

import matplotlib.pyplot as plt
import numpy as np

import backends
import clip
from clip.api import open_model
from clip.zero_shot import Classifier
from clip_core.data.shapes import HELD_OUT, KINDS, TEXTURES, TRAINED, Scene, Thing, draw

MODEL = "shapes"
temporary = tempfile.TemporaryDirectory()  # is removed with the kernel
folder = Path(temporary.name)

# %% [markdown]
# ## Data
#
# A picture shows one of 81 combinations of shape and colour. The training pictures show 63 of them, each eight times;
# the test pictures show the other 18.

# %%
GERMAN = {
    **{"circle": "Kreis", "square": "Quadrat", "triangle": "Dreieck", "diamond": "Raute", "star": "Stern"},
    **{"cross": "Kreuz", "heart": "Herz", "ring": "Ring", "crescent": "Mond"},
    **{"red": "Rot", "orange": "Orange", "yellow": "Gelb", "green": "Grün", "turquoise": "Türkis"},
    **{"blue": "Blau", "purple": "Lila", "pink": "Rosa", "brown": "Braun"},
}
captions = {
    "English": [f"a {colour} {shape}" for shape, colour in KINDS],
    "German": [f"{GERMAN[shape]} in {GERMAN[colour]}" for shape, colour in KINDS],
}


# %%
def picture_of(kind, random):
    return draw(Scene(Thing(*kind, random.choice(["small", "large"]), random.choice(TEXTURES))), random)


# %% [markdown]
# The table of the training data has a path and a caption in each line.

# %%
random, lines = Random(0), ["filepath\ttitle"]
for number, kind in enumerate(TRAINED * 8):
    picture_of(kind, random).save(folder / f"{number}.png")
    lines.append(f"{number}.png\t{captions['German'][KINDS.index(kind)]}")
(folder / "train.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
print(*lines[:4], sep="\n")

# %% [markdown]
# ## Before
#
# The accuracy is the share of test pictures whose own caption is the nearest of all 81.

# %%
tests, random = HELD_OUT * 5, Random(1)
pictures = [picture_of(kind, random) for kind in tests]
truth = [KINDS.index(kind) for kind in tests]


def accuracy(model, language):
    loaded = open_model(model)
    pixels = np.stack([loaded.preprocess.pixels(picture) for picture in pictures])
    logits = Classifier(loaded, captions[language], "{}").score(pixels).logits
    return float((logits.argmax(axis=1) == truth).mean())


before = {language: accuracy(MODEL, language) for language in captions}
print(before)

# %% [markdown]
# ## Training
#
# The image tower sees what it has to, so it is frozen, and the text tower learns the words. In a terminal,
# `clip train -c RECIPE --load shapes` does the same.

# %%
recipe = {
    "model": {"architecture": MODEL},
    "data": {"source": {"kind": "table", "file": str(folder / "train.tsv")}, "batch_size": 32},
    "optimizer": {"learning_rate": 1e-3, "frozen": ["image"]},
    "schedule": {"warm_up_steps": 10},
    "training": {"steps": 60},
}
trained = clip.train(recipe, backends.default(), output=folder / "run", load=MODEL)

# %% [markdown]
# ## After
#
# The model names combinations in German that were in no training picture, and has kept its English. Some captions occur
# twice in a batch, so the loss does not reach 0, nor the share of the nearest 1.

# %%
after = {language: accuracy(trained.model, language) for language in captions}
metrics = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
steps = [line["step"] for line in metrics]

figure, (of_loss, of_share, scores) = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
of_loss.plot(steps, [line["loss"] for line in metrics], color="#2a6fbb")
of_loss.set(title="loss", xlabel="step", ylim=0)
of_share.plot(steps, [line["top1"] for line in metrics], color="#2a6fbb")
of_share.set(title="nearest in the batch", xlabel="step", ylim=(0, 1))
for offset, (name, found) in enumerate({"before": before, "after": after}.items()):
    places = np.arange(len(found)) + 0.4 * offset
    bars = scores.bar(places, list(found.values()), 0.38, label=name, color=["#b9c7d8", "#2a6fbb"][offset])
    scores.bar_label(bars, [f"{share:.0%}" for share in found.values()])
scores.set(title="accuracy on new combinations", xticks=np.arange(2) + 0.2, xticklabels=before, ylim=(0, 1.1))
scores.legend(loc="center left")
plt.show()
