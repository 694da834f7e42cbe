# %% [markdown]
# # Parity, and the first block that differs
#
# Every framework is compared with NumPy in float64, block by block, so that a single wrong weight is found where it is.
#
# It takes the frameworks that are installed; NNabla has wheels for Python 3.10 and older only, and is left out on a
# newer Python. For OpenAI's model, set `MODEL = "ViT-B/32"`, which is downloaded once.

# %%
import logging
import warnings

import matplotlib.pyplot as plt

from clip.api import open_model
from clip.command.parity import print_report
from clip.parity import compare, compare_models, sample_inputs

logging.disable(logging.INFO)  # NNabla reports on itself while it is imported
warnings.filterwarnings("ignore", "No ccache found")  # Paddle looks for it, and needs none here
MODEL = "shapes"

# %% [markdown]
# ## All frameworks
#
# The same pictures and tokens go through each framework. The bounds follow from float32's rounding. In a terminal,
# `clip parity shapes --layers` prints the same.

# %%
intact = compare(MODEL, layers=True)
print_report(intact)
assert intact.passed

# %% [markdown]
# ## One wrong weight
#
# In the first installed framework, one of the many weights of the third block of the image tower is changed by 0.5.

# %%
judge = open_model(MODEL, backend="numpy", precision="fp64")
model = open_model(MODEL, device="cpu").model
weights = model.export()
weights["visual.transformer.resblocks.2.mlp.c_fc.weight"][5, 7] += 0.5
model.load(weights)

# %%
damaged = compare_models("shapes with one weight changed", judge.model, [model], sample_inputs(judge), layers=True)
(comparison,) = damaged.comparisons
print("beyond its bound first:", comparison.faults(damaged.bounds)[0])
assert comparison.faults(damaged.bounds)[0] == "visual.transformer.resblocks.2"

# %% [markdown]
# The blocks before the changed one are as exact as ever, and so is the text tower. A difference of 0, as that of the
# looked-up tokens, has no place on this axis.

# %%
before = next(each for each in intact.comparisons if each.backend == model.backend)
figure, axes = plt.subplots(figsize=(10, 4), layout="constrained")
axes.semilogy(list(before.layers), list(before.layers.values()), "o", color="#4f9d69", label="as it is")
axes.semilogy(
    list(comparison.layers), list(comparison.layers.values()), "x", color="#c1443c", label="one weight changed"
)
axes.axhline(damaged.bounds["layer"], color="#888888", linewidth=1, label="bound")
axes.set(ylabel="largest relative difference", title=f"{model.backend} and NumPy in float64")
axes.tick_params("x", rotation=35)
plt.setp(axes.get_xticklabels(), ha="right")
axes.legend()
plt.show()
