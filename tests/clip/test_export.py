"""``clip export``: the files, their metadata and their proof; what is beyond its budget leaves nothing behind."""

from __future__ import annotations

import json
import sys
import zipfile
from functools import partial
from time import sleep
from unittest.mock import Mock

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

import converters
from backends.onnx.session import Session
from clip import samples
from clip.api import RESOURCES, open_model
from clip.export import export
from clip.proof import BUDGETS, Budget, Proof
from clip_core.errors import ClipError
from clip_core.image import open_image
from clip_core.installation import requirement
from clip_core.similarity import normalize
from exporters.onnx import storage
from exporters.onnx.storage import metadata_of, read
from exporters.openvino import storage as vino
from tests.clip.running import assert_refused, process
from tests.training.disturbances import largest_file
from tests.weights import same

CIRCLE = samples.pictures()["a large solid red circle"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "shapes"
    return folder, export("shapes", folder)


def test_the_files_and_the_report(exported):
    folder, report = exported
    assert sorted(path.name for path in folder.iterdir()) == ["both.onnx", "export.json", "image.onnx", "text.onnx"]
    assert json.loads((folder / "export.json").read_text()) == report
    assert {name: facts["bytes"] for name, facts in report["files"].items()} == {
        path.name: path.stat().st_size for path in folder.glob("*.onnx")
    }
    found = report["proof"]
    assert found["largest_difference"].keys() == {"image_embedding", "text_embedding", "logits"}
    assert 0 < max(found["largest_difference"].values()) < 1e-4
    assert min(found["least_cosine"].values()) == pytest.approx(1)
    assert found["top1_agreement"] == 1
    assert found["batches_of_pictures"] == [1, 2, 12]
    assert found["batches_of_texts"] == [[1, 77], [1, 2], [8, 7], [12, 77]]
    assert (report["opset"], report["budget"]) == (17, {"embedding": 1e-4})


def test_a_file_is_readable_by_the_canonical_names(exported):
    folder, _ = exported
    weights = {
        name: array.astype(np.float32)
        for name, array in converters.read(RESOURCES / "shapes.safetensors").weights.items()
    }
    found = {name: array for name, array in read(folder / "both.onnx").items() if not name.startswith("constant_")}
    assert same({name: found[name] for name in weights}, weights)
    assert found.keys() == weights.keys()
    of_towers = [{name for name in read(folder / file) if name in weights} for file in ("image.onnx", "text.onnx")]
    assert of_towers[0] | of_towers[1] == weights.keys() - {"logit_scale"}
    assert of_towers[0] & of_towers[1] == set()


def test_the_metadata_is_all_that_a_program_needs(exported):
    """A picture and texts, through what the files themselves say, in onnxruntime alone."""
    folder, report = exported
    for name in ("image", "text", "both"):
        model = onnx.load(str(folder / f"{name}.onnx"))
        assert (model.producer_name, model.ir_version, model.opset_import[0].version) == ("triclip", 8, 17)
        found = metadata_of(folder / f"{name}.onnx")
        definition = found["tokenizer"].pop("definition")
        assert definition == converters.read(RESOURCES / "shapes.safetensors").vocabulary
        assert found == {key: report[key] for key in found}
    loaded = open_model("shapes", backend="numpy")
    wanted = report["preprocessing"]
    assert (wanted["resolution"], wanted["resize"], wanted["interpolation"]) == (64, "shortest", "bicubic")
    texts = ["a red circle", "a blue circle", "a red star"]
    session = onnxruntime.InferenceSession(folder / "both.onnx", providers=["CPUExecutionProvider"])
    inputs = {"image": loaded.preprocess.pixels(open_image(CIRCLE))[None], "text": loaded.model.tokenize(texts)}
    per_image, per_text = session.run(None, inputs)
    assert per_image.shape == (1, 3)
    assert per_image.argmax() == 0
    assert np.array_equal(per_text, per_image.T)
    image, text = loaded.model.embed_image(inputs["image"]), loaded.model.embed_text(inputs["text"])
    expected = report["logit_scale"] * normalize(image) @ normalize(text).T
    assert per_image == pytest.approx(expected, abs=1e-4)


def test_graphs_that_take_decoded_pictures(run, tmp_path):
    result = run("export", "shapes", "-o", tmp_path / "decoded", "--image", "--both", "--preprocessing")
    assert "pixels: 0.0e+00 of all values differ from Pillow's" in result.out
    report = json.loads((tmp_path / "decoded" / "export.json").read_text())
    assert report["preprocessing"]["in_graph"]
    assert report["proof"]["pixels"] == {
        "sizes": [[64, 64], [64, 64], [85, 129], [129, 33]],
        "largest_difference": 0,
        "share_that_differs": 0,
    }
    assert report["proof"]["batches_of_pictures"] == [8, 1, 2, 1]
    picture = np.asarray(open_image(CIRCLE).resize((300, 200)))
    loaded = open_model("shapes", backend="numpy")
    session = onnxruntime.InferenceSession(tmp_path / "decoded" / "image.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": picture[None]})
    expected = loaded.model.embed_image(loaded.preprocess.pixels(Image.fromarray(picture))[None])
    assert normalize(found) == pytest.approx(normalize(expected), abs=1e-6)


@pytest.mark.slow
def test_integers_take_decoded_pictures_too(tmp_path):
    report = export("shapes", tmp_path / "decoded", parts=["image"], precision="int8", preprocessing=True)
    assert report["proof"]["pixels"]["share_that_differs"] == 0
    assert report["proof"]["shapes"]["agreement"] >= 0.99


def test_half_precision_halves_the_file(exported, tmp_path):
    report = export("shapes", tmp_path / "half", precision="fp16", parts=["image"], opset=20)
    assert report["files"]["image.onnx"]["bytes"] == pytest.approx(
        exported[1]["files"]["image.onnx"]["bytes"] / 2, rel=0.1
    )
    assert 1e-6 < report["proof"]["largest_difference"]["image_embedding"] < 5e-3
    assert {array.dtype.name for array in read(tmp_path / "half" / "image.onnx").values()} == {"float16", "int64"}


def test_integers_of_eight_bits(run, tmp_path):
    (tmp_path / "texts.txt").write_text("a red circle\n\na small blue star\n")
    calibration = ["--calibration-picture", CIRCLE, "--calibration-texts", tmp_path / "texts.txt"]
    report = run(
        "export", "shapes", "--precision", "int8", "-o", tmp_path / "int8", "--text", *calibration, "--json"
    ).json
    assert 0.99 <= report["proof"]["least_cosine"]["text_embedding"] < 0.99999
    shapes = report["proof"]["shapes"]
    assert (shapes["pictures"], shapes["classes"]) == (162, 81)
    assert 0.97 < shapes["top1_before"] <= 1
    assert abs(shapes["top1_after"] - shapes["top1_before"]) < 0.02
    assert shapes["agreement"] >= 0.99
    assert sorted(path.name for path in (tmp_path / "int8").iterdir()) == ["export.json", "text.onnx"]
    matrices = [
        each for each in onnx.load(str(tmp_path / "int8" / "text.onnx")).graph.initializer if len(each.dims) > 1
    ]
    assert {each.data_type for each in matrices} == {onnx.TensorProto.INT8, onnx.TensorProto.FLOAT}
    assert metadata_of(tmp_path / "int8" / "text.onnx")["precision"] == "int8"


@pytest.mark.parametrize("precision", ["fp32", pytest.param("int8", marks=pytest.mark.slow)])
def test_openvino(precision, exported, tmp_path):
    report = export("shapes", tmp_path / "vino", to="openvino", precision=precision, parts=["image", "both"])
    assert list(report["files"]) == ["both.bin", "both.xml", "image.bin", "image.xml"]
    assert min(report["proof"]["least_cosine"].values()) > (0.99 if precision == "int8" else 1 - 1e-9)
    if precision == "int8":
        assert report["proof"]["shapes"]["agreement"] >= 0.99
        assert report["files"]["image.bin"]["bytes"] < exported[1]["files"]["image.onnx"]["bytes"] / 3
    found = vino.metadata_of(tmp_path / "vino" / "both.xml")
    assert found["tokenizer"].pop("definition") == converters.read(RESOURCES / "shapes.safetensors").vocabulary
    assert found == {key: report[key] for key in found}
    assert found["precision"] == precision


@pytest.mark.needs("torch")
@pytest.mark.parametrize(
    ("to", "suffix"), [("torchscript", ".pt"), pytest.param("torch-export", ".pt2", marks=pytest.mark.slow)]
)
def test_pytorch(to, suffix, exported, tmp_path):
    """Files of each tower alone, for any batch and length; the proof has loaded them from the disk."""
    report = export("shapes", tmp_path / "native", to=to, parts=["image", "text"])
    assert list(report["files"]) == [f"image{suffix}", f"text{suffix}"]
    assert 0 < max(report["proof"]["largest_difference"].values()) < 1e-4
    assert report["proof"]["batches_of_texts"] == [[1, 77], [1, 2], [8, 7], [12, 77]]
    for part in ("image", "text"):
        size = exported[1]["files"][f"{part}.onnx"]["bytes"]
        assert report["files"][part + suffix]["bytes"] == pytest.approx(size, rel=0.3)
        with zipfile.ZipFile(tmp_path / "native" / (part + suffix)) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith("extra/triclip.json"))
            found = json.loads(archive.read(name))
        assert found["tokenizer"].pop("definition") == converters.read(RESOURCES / "shapes.safetensors").vocabulary
        assert found == {key: report[key] for key in found}


def test_weights_beside_a_file_that_would_be_too_large(monkeypatch, tmp_path):
    monkeypatch.setattr(storage, "MOST_INSIDE", 1000)
    report = export("shapes", tmp_path / "large", parts=["image", "text"], preprocessing=True)
    assert report["files"].keys() == {"image.onnx", "image.onnx.data", "text.onnx", "text.onnx.data"}
    assert report["files"]["text.onnx"]["bytes"] < 100_000
    assert report["proof"]["top1_agreement"] == 1
    expected = converters.read(RESOURCES / "shapes.safetensors").weights["text_projection"]
    assert np.array_equal(read(tmp_path / "large" / "text.onnx")["text_projection"], expected)
    with pytest.raises(ClipError, match="The weights of the text graph have more than 2 GB, which cannot be quantised"):
        export("shapes", tmp_path / "none", parts=["text"], precision="int8")


def test_a_file_that_cannot_be_loaded(monkeypatch, tmp_path):
    monkeypatch.setattr(storage, "with_metadata", lambda path, _: path.write_bytes(b"damaged"))
    with pytest.raises(ClipError, match=r"^Nothing was exported, since text.onnx cannot be loaded \(\w+: .*Protobuf"):
        export("shapes", tmp_path / "none", parts=["text"], precision="int8")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.needs("torch")
@pytest.mark.parametrize(
    ("options", "megabytes"),
    [
        (["--to", "onnx"], 1),
        (
            ["--to", "onnx", "--precision", "int8"],
            3.39,
        ),  # room for the exact file, and none for what onnxruntime writes
        (["--to", "openvino"], 3.39),
        (["--to", "torchscript"], 1),
    ],
    ids=["onnx", "int8", "openvino", "torchscript"],
)
def test_a_full_disk(options, megabytes, run, tmp_path, monkeypatch):
    if options[-1] == "openvino":  # its library does not notice, so a full disk is simulated behind it
        monkeypatch.setattr(vino.openvino, "save_model", Mock(side_effect=RuntimeError("basic_ios::clear")))
    with largest_file(int(megabytes * 1e6)):
        result = run("export", "shapes", "-o", tmp_path / "none", "--image", *options)
    assert_refused(result, "cannot be written", "space")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_export_leaves_nothing_but_what_the_next_removes(tmp_path):
    folder = tmp_path / "killed"
    killed = process("export", "shapes", "-o", folder, "--image")
    while not list(tmp_path.glob(".killed.*/image.onnx")):
        assert killed.poll() is None
        sleep(0.01)
    killed.kill()
    killed.communicate()
    assert not folder.exists()
    assert len(list(tmp_path.iterdir())) == 1
    export("shapes", folder, parts=["text"])
    assert [path.name for path in tmp_path.iterdir()] == ["killed"]
    assert sorted(path.name for path in folder.iterdir()) == ["export.json", "text.onnx"]


def test_what_is_beyond_its_budget_leaves_nothing_behind(run, monkeypatch, tmp_path):
    monkeypatch.setitem(BUDGETS, "fp32", Budget(embedding=1e-12))
    result = run("export", "shapes", "-o", tmp_path / "none")
    assert_refused(
        result, "Nothing was exported, since image_embedding differs from the reference by", "1.0e-12 is allowed"
    )
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setitem(BUDGETS, "int8", Budget(cosine=0.5, agreement=1.1))
    result = run("export", "shapes", "-o", tmp_path / "none", "--precision", "int8", "--text")
    assert_refused(result, "int8 puts 1", "of drawn pictures into the same class as fp32")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("part", "output", "stage"),
    [
        ("image", "image_features", "image_embedding"),
        ("text", "text_features", "text_embedding"),
        ("both", "logits_per_image", "logits"),
        ("both", "logits_per_text", "logits"),
    ],
)
def test_a_wrong_number_anywhere_is_noticed(part, output, stage, exported):
    """The twin of the proof: one value of one output, in the batch of two or of all."""
    judge = open_model("shapes", backend="numpy", precision="fp64")
    session = Session(exported[0] / f"{part}.onnx")

    def wrong(inputs, batch, value):
        found = session(inputs)
        if len(found[output]) >= batch:
            found[output][-1, 0] = value(found[output][-1, 0])
        return found

    assert Proof({part: session}, judge, BUDGETS["fp32"]).run()["top1_agreement"] == 1
    for batch, value in ((2, lambda x: x + 0.5), (3, lambda x: x - 0.5), (3, lambda x: np.nan)):
        with pytest.raises(ClipError, match=f"Nothing was exported, since {stage} differs"):
            Proof({part: partial(wrong, batch=batch, value=value)}, judge, BUDGETS["fp32"]).run()
    with pytest.raises(ClipError, match=rf"The export gives {stage} of shape .*, expected"):
        Proof(
            {part: lambda inputs: {name: array[:, :-1] for name, array in session(inputs).items()}},
            judge,
            BUDGETS["fp32"],
        ).run()


def test_existing_files(run, exported, tmp_path):
    folder = tmp_path / "there"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    assert run("export", "shapes", "-o", folder, "--image", "--text").code == 0
    before = (folder / "image.onnx").read_bytes()
    result = run("export", "shapes", "-o", folder, "--image")
    assert_refused(result, f"{folder / 'image.onnx'} is there already; give another name, or --force")
    assert (folder / "image.onnx").read_bytes() == before
    assert run("export", "shapes", "-o", folder, "--image", "--force").code == 0
    # The other tower would not be that of the report.
    assert sorted(path.name for path in folder.iterdir()) == ["export.json", "image.onnx", "mine.txt"]
    result = run("export", "shapes", "-o", folder / "mine.txt", "--image")
    assert_refused(result, f"{folder / 'mine.txt'} cannot be the folder of the files; give the name of another one.")


def test_files_of_another_export_that_ended_meanwhile(monkeypatch, tmp_path):
    tmp_path.joinpath("there").mkdir()
    prove = Proof.run

    def slowly(proof: Proof) -> dict:
        monkeypatch.undo()
        export("shapes", tmp_path / "there", parts=["text"])
        return prove(proof)

    monkeypatch.setattr(Proof, "run", slowly)
    export("shapes", tmp_path / "there", parts=["image"], force=True)
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["export.json", "image.onnx"]


@pytest.mark.parametrize(("source", "to"), [("image.bin", "openvino"), ("text.pt", "onnx")])
def test_the_model_itself_is_neither_replaced_nor_removed(source, to, run, tmp_path):
    path = tmp_path / source
    converters.convert(RESOURCES / "shapes.safetensors", path)
    before = path.read_bytes()
    (tmp_path / "export.json").write_text(json.dumps({"files": {"text.pt": {}}}))  # as an earlier export into it has
    result = run("export", path, "--to", to, "--image", "-o", tmp_path, "--force")
    assert_refused(result, f"{path} is a file that is read here itself; give another name for the result.")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--opset", "17", "--to", "openvino"],
            "An opset is of ONNX alone; leave it out, or export",
        ),
        (
            ["--precision", "int8", "--to", "torchscript"],
            "There is no 'int8' in torchscript; choose one of fp32",
        ),
        (["--opset", "16"], "The opset 16 is not written here; choose one from 17 to 22."),
        (["--preprocessing", "--to", "openvino"], "Only graphs of ONNX preprocess; leave that out, or export to onnx"),
        (["--preprocessing", "--text"], "The text tower takes no pictures; leave preprocessing out, or export the"),
        (
            ["--calibration-picture", CIRCLE],
            "Nothing is calibrated in fp32; leave pictures and texts out, or choose int8.",
        ),
        (["--precision", "int8", "--calibration-picture", "none.png"], "none.png cannot be read"),
    ],
)
def test_what_is_refused(arguments, sentence, run, tmp_path):
    assert_refused(run("export", "shapes", "-o", tmp_path / "none", *arguments), sentence)
    assert list(tmp_path.iterdir()) == []


def test_texts_that_cannot_be_used(run, tmp_path):
    for data, sentence in ((b"\n \n", "has no text in it"), (b"\xff", "is not UTF-8 text")):
        (tmp_path / "texts.txt").write_bytes(data)
        result = run(
            "export",
            "shapes",
            "-o",
            tmp_path / "none",
            "--precision",
            "int8",
            "--calibration-texts",
            tmp_path / "texts.txt",
        )
        assert_refused(result, sentence)
    assert [path.name for path in tmp_path.iterdir()] == ["texts.txt"]


def test_without_nncf(run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "nncf", None)
    monkeypatch.delitem(sys.modules, "exporters.openvino.quantization", raising=False)
    result = run("export", "shapes", "--to", "openvino", "--precision", "int8", "-o", tmp_path / "none")
    remedy = f"pip install {requirement('nncf')}, or export int8 to onnx, whose files OpenVINO reads"
    assert_refused(result, remedy)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("library", ["onnx", "openvino"])
def test_without_the_library(library, run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, library, None)
    result = run("export", "shapes", "--to", library, "-o", tmp_path / "none")
    assert_refused(result, f"install it with: pip install {requirement(library)}.")
