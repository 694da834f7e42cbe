# %% [markdown]
# # Weights from one framework to the others
#
# A file of weights becomes a file of NNabla and one of Paddle, and two proofs show that it is still the same model.
#
# Conversion needs no framework. The second proof runs the frameworks that are installed; NNabla has wheels for Python
# 3.10 and older only, and is left out on a newer Python. The source is the embedded model `shapes`: for OpenAI's, set
# `MODEL = "ViT-B/32"`, which is downloaded once.

# %%
import logging
import tempfile
import warnings
from pathlib import Path

import h5py

import backends
import converters
from clip.api import open_model, weights_file
from clip.command.output import print_table
from clip.command.parity import print_report
from clip.parity import compare_models, sample_inputs
from clip_core.embedding.stamp import weights_digest

logging.disable(logging.INFO)  # NNabla reports on itself while it is imported
warnings.filterwarnings("ignore", "No ccache found")  # Paddle looks for it, and needs none here

# %%
MODEL = "shapes"
source, _ = weights_file(MODEL)
temporary = tempfile.TemporaryDirectory()  # is removed with the kernel
folder = Path(temporary.name)

# %% [markdown]
# ## Convert
#
# The suffix of the target says which format it gets, and its usual names. Each file is read back and compared before it
# gets its name. In a terminal, `clip convert SOURCE TARGET` does the same.

# %%
files = {"nnabla": folder / "model.h5", "paddle": folder / "model.pdparams", "torch": folder / "model.pt"}
reports = [converters.convert(source, path) for path in files.values()]
print_table(
    ["file", "layout", "tensors", "parameters", "type", "difference"],
    [[Path(r.target).name, r.layout, r.tensors, r.parameters, r.dtype, r.max_abs_difference] for r in reports],
)

# %% [markdown]
# The projects name and store the same weights in different ways. These are the first names in NNabla's file:

# %%
with h5py.File(files["nnabla"]) as file:
    stored = []
    file.visititems(lambda name, found: stored.append((name, found)) if isinstance(found, h5py.Dataset) else None)
    print_table(["name in NNabla", "shape"], [[name, found.shape] for name, found in stored[:6]])

# %% [markdown]
# ## Proof 1: the weights are the same
#
# A digest of all weights under their canonical names does not depend on the format.

# %%
digests = {path.name: weights_digest(converters.read(path).weights) for path in (source, *files.values())}
print_table(["file", "SHA-256 of the weights"], digests.items())
assert len(set(digests.values())) == 1

# %% [markdown]
# ## Proof 2: the numbers are the same
#
# Each framework loads its own file, and gets the same pictures and texts. The differences are those from NumPy in
# float64; each has to be within its bound. In a terminal, `clip parity FILE` compares the frameworks on one file.

# %%
judge = open_model(source, backend="numpy", precision="fp64")
models = (
    open_model(path, backend=name, device="cpu").model for name, path in files.items() if name in backends.available()
)
report = compare_models(source.name, judge.model, models, sample_inputs(judge))
print_report(report)
assert report.passed
