"""Every tower as a file of NNabla: the reference's numbers, by NNabla's own functions, for batches of any size."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nnabla.utils.converter import get_function_info
from nnabla.utils.load import load

import backends
import clip
import converters
from backends.nnabla import functions
from backends.nnabla.exported import Session, save
from clip.api import RESOURCES
from clip.export import export
from clip_core.architecture import Architecture
from clip_core.errors import CheckpointError, ClipError
from clip_core.layouts import LAYOUTS
from clip_core.naming import Weights
from clip_core.similarity import normalize
from converters import nnp
from tests import tolerances
from tests.models import reference_stages, sample_pixels, sample_tokens, sample_weights
from tests.towers import EXAMPLES
from tests.weights import same

pytestmark = pytest.mark.needs("nnabla")


@pytest.fixture(params=EXAMPLES.values(), ids=EXAMPLES.keys())
def architecture(request) -> Architecture:
    return request.param


def inputs_of(architecture: Architecture) -> dict[str, np.ndarray]:
    return {"image": sample_pixels(architecture), "text": sample_tokens(architecture)}


def files_of(architecture: Architecture, folder: Path, **changed: np.ndarray) -> list[Path]:
    model = backends.get("nnabla").CLIP(architecture, sample_weights(architecture) | changed, device="cpu")
    paths = [folder / f"{part}.nnp" for part in ("image", "text", "both")]
    for path in paths:
        save(model, path.stem, path, inputs_of(architecture), {})
    return paths


def weights_of(path: Path) -> Weights:
    return LAYOUTS["nnabla"].to_canonical(nnp.read(path.read_bytes()).tensors)


def functions_in(path: Path) -> set[str]:
    with zipfile.ZipFile(path) as archive:
        network = archive.read("network.nntxt").decode()
    return set(re.findall(r'^  function {\n(?:    .*\n)*?    type: "(\w+)"', network, re.MULTILINE))


def test_stages_are_those_of_the_reference(architecture, tmp_path):
    paths, inputs, expected = files_of(architecture, tmp_path), inputs_of(architecture), reference_stages(architecture)
    image, text, both = map(Session, paths)
    found = {
        "image_embedding": normalize(image(inputs)["image_features"]),
        "text_embedding": normalize(text(inputs)["text_features"]),
        "logits": both(inputs)["logits_per_image"],
    }
    assert tolerances.beyond(found, expected) == {}
    fewer = both({"image": inputs["image"][1:2], "text": inputs["text"][:3]})
    bound = tolerances.CONTRACT["logits"].bound
    assert tolerances.difference(fewer["logits_per_image"], expected["logits"][1:2, :3]) <= bound
    assert np.array_equal(fewer["logits_per_text"], fewer["logits_per_image"].T)
    for path in paths:
        assert {"Affine"} <= functions_in(path) <= get_function_info().keys()
    assert same(weights_of(paths[2]), sample_weights(architecture))


def test_the_bias_of_the_logits(tmp_path):
    architecture = replace(EXAMPLES["siglip and siglip"], logit_bias=True)
    inputs = inputs_of(architecture)
    *_, both = files_of(architecture, tmp_path)
    expected, _ = backends.get("numpy").CLIP(architecture, sample_weights(architecture))(*inputs.values())
    found = Session(both)(inputs)["logits_per_image"]
    assert tolerances.difference(found, expected) <= tolerances.CONTRACT["logits"].bound
    assert same(weights_of(both), sample_weights(architecture))


def test_a_changed_weight_is_noticed(tmp_path):
    architecture = EXAMPLES["vit and transformer"]
    changed = sample_weights(architecture)["visual.proj"].copy()
    changed[::7] += 0.1
    path, *_ = files_of(architecture, tmp_path, **{"visual.proj": changed})
    found = normalize(Session(path)(inputs_of(architecture))["image_features"])
    expected = reference_stages(architecture)["image_embedding"]
    assert tolerances.difference(found, expected) > tolerances.CONTRACT["image_embedding"].bound


def test_nothing_but_a_file_is_without_numpys_functions():
    with functions.for_a_file():
        assert not functions.by_numpy()
    assert functions.by_numpy()


def test_what_depends_on_a_batch_in_another_way_is_noticed(monkeypatch, tmp_path):
    monkeypatch.setattr(functions, "put_in_front", lambda x, _: functions.F.concatenate(x[:, :1], x, axis=1))
    monkeypatch.setattr("backends.nnabla.towers.vision_transformer.put_in_front", functions.put_in_front)
    with pytest.raises(AssertionError, match="nothing but shapes may depend on the size of a batch"):
        files_of(EXAMPLES["vit and transformer"], tmp_path)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "shapes"
    return folder, export("shapes", folder, to="nnp")


def test_the_report(exported):
    folder, report = exported
    assert sorted(path.name for path in folder.iterdir()) == ["both.nnp", "export.json", "image.nnp", "text.nnp"]
    proof = report["proof"]
    assert 0 < max(proof["largest_difference"].values()) < 1e-4
    assert proof["batches_of_pictures"] == [1, 2, 12]
    assert proof["batches_of_texts"] == [[1, 77], [1, 77], [8, 77], [12, 77]]
    with zipfile.ZipFile(folder / "text.nnp") as archive:
        metadata = json.loads(archive.read("triclip.json"))
    assert metadata["tokenizer"].pop("definition") == converters.read(RESOURCES / "shapes.safetensors").vocabulary
    assert metadata == {key: report[key] for key in metadata}


def test_nnabla_loads_and_runs_it(exported):
    """By the executor that the file has, for a batch whose size is told when it is loaded."""
    folder, _ = exported
    model, _ = clip.load("shapes", backend="numpy")
    inputs = inputs_of(model.architecture)
    inputs["text"] = model.tokenize(["a red circle", "a star", "two"])
    info = load([str(folder / "both.nnp")], batch_size=3)
    (executor,) = info.executors.values()
    for variable, name in executor.dataset_assign.items():
        variable.variable_instance.d = inputs[name][:3]
    executor.forward_target.forward(clear_buffer=True)
    found = {name: variable.variable_instance.d for variable, (_, name) in executor.output_assign.items()}
    expected, _ = model(inputs["image"][:3], inputs["text"])
    assert tolerances.difference(found["logits_per_image"], expected) <= tolerances.CONTRACT["logits"].bound
    assert np.array_equal(found["logits_per_text"], found["logits_per_image"].T)


def test_the_file_of_both_is_a_weights_file(exported):
    folder, _ = exported
    found, original = converters.read(folder / "both.nnp"), converters.read(RESOURCES / "shapes.safetensors")
    weights = {name: array.astype(np.float32) for name, array in original.weights.items()}
    assert same(found.weights, weights)
    assert (found.architecture, found.vocabulary) == (original.architecture, original.vocabulary)
    model, _ = clip.load(folder / "both.nnp")
    assert model.backend == "nnabla"
    for part in ("image", "text"):
        with pytest.raises(CheckpointError, match=rf"^{folder}/{part}\.nnp: The weights do not look like a CLIP: "):
            clip.load(folder / f"{part}.nnp")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (b"{", r"the archive's member triclip\.json is not as clip export writes it; export it again\."),
        (b"[]", r"the archive's member triclip\.json is not as clip export writes it; export it again\."),
        (b'{"manifest": 1}', r"the manifest cannot be read \(.*"),
        (b"[" * 100_000, r"the archive's member triclip\.json is not as clip export writes it; export it again\."),
        (b'{"manifest": "{}"}', r"the manifest cannot be read \(.*"),
    ],
)
def test_damaged_metadata(metadata, message, exported, tmp_path):
    folder, _ = exported
    path = tmp_path / "damaged.nnp"
    with zipfile.ZipFile(folder / "both.nnp") as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, metadata if name == "triclip.json" else old.read(name))
    with pytest.raises(CheckpointError, match=rf"^{path}: {message}$"):
        converters.read(path)


def test_a_weight_that_is_not_that_of_the_manifest(exported, tmp_path):
    folder, _ = exported
    path = tmp_path / "changed.nnp"
    with zipfile.ZipFile(folder / "both.nnp") as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = bytearray(old.read(name))
            if name == "parameter.h5":
                array = converters.read(folder / "both.nnp").weights["visual.proj"]
                data[data.index(array.tobytes())] ^= 1
            new.writestr(name, bytes(data))
    with pytest.raises(CheckpointError, match=r"visual\.proj does not match its SHA-256 in the manifest"):
        converters.read(path)


def test_what_there_is_not(tmp_path):
    with pytest.raises(ClipError, match=r"^There is no 'fp16' in nnp; choose one of fp32\.$"):
        export("shapes", tmp_path / "half", to="nnp", precision="fp16")
    assert not (tmp_path / "half").exists()


def run_nnabla(*arguments: str | Path, folder: Path) -> None:
    code = "import sys; from nnabla.utils.cli.cli import main; sys.argv[0] = 'nnabla_cli'; main()"
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_nnablas_command_runs_it(exported, tmp_path):
    folder, _ = exported
    model, _ = clip.load("shapes", backend="numpy")
    pixels = sample_pixels(model.architecture)
    with open(tmp_path / "pictures.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image"])
        for index, each in enumerate(pixels):
            np.save(tmp_path / f"{index}.npy", each)
            writer.writerow([f"{index}.npy"])
    (tmp_path / "found").mkdir()
    run_nnabla("forward", "-c", folder / "image.nnp", "-d", "pictures.csv", "-o", "found", folder=tmp_path)
    with open(tmp_path / "found" / "output_result.csv", newline="") as file:
        _, *rows = csv.reader(file)
    found = np.array([[float(value) for value in row[1:]] for row in rows])
    expected = model.embed_image(pixels)
    assert tolerances.difference(normalize(found), normalize(expected)) < 1e-5


@pytest.mark.slow
def test_nnablas_converter_takes_it(architecture, tmp_path):
    """Into the C runtime's format and into C code, of which the first prepares the matrices of affine functions."""
    for path in files_of(architecture, tmp_path):
        run_nnabla("convert", "-b", "1", path, path.with_suffix(".nnb"), folder=tmp_path)
        assert path.with_suffix(".nnb").stat().st_size > sum(array.nbytes for array in weights_of(path).values()) / 2
        (tmp_path / path.stem).mkdir()
        run_nnabla("convert", "-b", "1", "-O", "CSRC", path, path.stem, folder=tmp_path)
        names = {f"{path.stem}_{name}.c" for name in ("example", "inference", "parameters")}
        assert {file.name for file in (tmp_path / path.stem).glob("*.c")} == names
