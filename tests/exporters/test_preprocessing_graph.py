"""Preprocessing in a graph gives Pillow's pixels in onnxruntime, and nearly all of them in OpenVINO."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import skimage.data
from PIL import Image

from backends.onnx.session import Session as Onnxruntime
from backends.openvino.session import Session as OpenVINO
from clip.api import open_model
from clip.proof import MOST_OTHER_PIXELS, decoded_pictures, drift_of_pixels
from clip_core.errors import ClipError
from clip_core.pixels import OPENAI_PIXELS, TORCHVISION_PIXELS, Pixels
from clip_core.preprocess import pixels
from clip_core.similarity import normalize
from exporters.onnx import model, preprocessing, storage
from exporters.onnx.graph import NEWEST_OPSET, OLDEST_OPSET, inside
from tests.towers import IMAGES

SIDE = 32
WAYS = {
    "shortest, bicubic": OPENAI_PIXELS,
    "squash, bilinear": TORCHVISION_PIXELS,
    "squash, bicubic": Pixels((0.5,) * 3, (0.5,) * 3, "bicubic", "squash"),
    "shortest, bilinear": replace(OPENAI_PIXELS, interpolation="bilinear"),
}
SIZES = ((1, 1), (3, 7), (31, 33), (32, 32), (33, 129), (64, 128), (100, 37), (301, 47), (448, 640))
REAL = ("astronaut", "coffee", "chelsea", "rocket")


@pytest.fixture(params=WAYS.values(), ids=WAYS.keys())
def tower(request):
    return replace(IMAGES[0], resolution=SIDE, pixels=request.param)


def by_pillow(pictures: np.ndarray, tower) -> np.ndarray:
    return pixels([Image.fromarray(each) for each in pictures], tower.resolution, tower.pixels)


def test_every_value_is_that_of_pillow_in_onnxruntime(tower):
    session, generator = Onnxruntime(preprocessing.write(tower)), np.random.default_rng(0)
    for height, width in SIZES:
        noise = generator.integers(0, 256, (2, height, width, 3), np.uint8)
        extremes = np.where(noise > 127, 255, 0).astype(np.uint8)  # bicubic weights go beyond the range then
        for pictures in (noise, extremes):
            found = session({"image": pictures})["pixels"]
            assert np.array_equal(found, by_pillow(pictures, tower)), (height, width)


def test_openvino_rounds_few_values_otherwise(tower, tmp_path):
    """It computes the weights in float32."""
    session, generator = OpenVINO(preprocessing.write(tower)), np.random.default_rng(0)
    steps = 255 * np.array(tower.pixels.deviation)[:, None, None]
    differences = []
    for height, width in SIZES:
        pictures = generator.integers(0, 256, (2, height, width, 3), np.uint8)
        differences.append(np.abs(session({"image": pictures})["pixels"] - by_pillow(pictures, tower)) * steps)
    assert max(each.max() for each in differences) < 1.5
    assert np.mean([(each > 0.5).mean() for each in differences]) < MOST_OTHER_PIXELS


@pytest.mark.parametrize("opset", [OLDEST_OPSET, NEWEST_OPSET])
def test_the_graph_is_valid_in_every_opset(tower, opset, tmp_path):
    written = preprocessing.write(tower).model("pixels", opset, {}, inside)
    onnx.checker.check_model(written, full_check=True)
    (tmp_path / "pixels.onnx").write_bytes(written.SerializeToString())
    pictures = np.random.default_rng(1).integers(0, 256, (1, 40, 50, 3), np.uint8)
    found = Onnxruntime(tmp_path / "pixels.onnx")({"image": pictures})["pixels"]
    assert np.array_equal(found, by_pillow(pictures, tower))


@pytest.mark.parametrize("runtime", [Onnxruntime, OpenVINO], ids=["onnxruntime", "openvino"])
def test_embeddings_of_real_pictures(runtime, tmp_path):
    judge = open_model("shapes", backend="numpy", precision="fp64")
    tower, weights = judge.model.architecture.image, judge.model.export()
    path = tmp_path / "image.onnx"
    storage.save(model.write(judge.model.architecture, weights, "image"), path, OLDEST_OPSET, {})
    storage.put_before(path, "image", preprocessing.write(tower), "pixels")
    session, alone = runtime(path), runtime(preprocessing.write(tower))
    pictures = [np.asarray(getattr(skimage.data, name)())[None] for name in REAL]
    drift = drift_of_pixels(alone, judge, pictures)
    assert drift["sizes"] == [[512, 512], [400, 600], [300, 451], [427, 640]]
    assert (drift["largest_difference"] == 0) == (runtime is Onnxruntime)
    for picture in pictures:
        found = normalize(session({"image": picture})["image_features"])
        expected = normalize(judge.model.encode_image(by_pillow(picture, tower)))
        assert np.abs(found - expected).max() < (1e-6 if runtime is Onnxruntime else 1e-4)


def test_a_file_keeps_its_names_and_metadata(tmp_path):
    judge = open_model("shapes", backend="numpy")
    architecture, weights = judge.model.architecture, judge.model.export()
    path = tmp_path / "both.onnx"
    storage.save(model.write(architecture, weights, "both"), path, OLDEST_OPSET, {"key": ["value"]})
    before = storage.read(path)
    storage.put_before(path, "image", preprocessing.write(architecture.image), "pixels")
    graph = onnx.load(str(path)).graph
    assert [each.name for each in graph.input] == ["image", "text"]
    assert [each.name for each in graph.output] == ["logits_per_image", "logits_per_text"]
    axes = [each.dim_param or each.dim_value for each in graph.input[0].type.tensor_type.shape.dim]
    assert axes == ["images", "height", "width", 3]
    assert graph.name == "both"
    assert storage.metadata_of(path) == {"key": ["value"]}
    added = storage.read(path).keys() - before.keys()
    assert added
    assert all(name.startswith("pixels/constant_") for name in added)


def test_wrong_pixels_are_noticed():
    judge = open_model("shapes", backend="numpy", precision="fp64")
    graph = Onnxruntime(preprocessing.write(judge.model.architecture.image))
    pictures = decoded_pictures(judge)
    assert drift_of_pixels(graph, judge, pictures)["share_that_differs"] == 0
    step = np.float32(1 / 255 / judge.model.architecture.image.pixels.deviation[0])

    def wrong(inputs, values: int, by: float) -> dict[str, np.ndarray]:
        found = graph(inputs)["pixels"]
        found.reshape(-1)[:values] += by * step
        return {"pixels": found}

    assert drift_of_pixels(lambda inputs: wrong(inputs, 1, 1), judge, pictures)["share_that_differs"] > 0
    for values, by in ((1, 2), (1000, 1), (1, np.nan)):
        with pytest.raises(ClipError, match=r"preprocessing in the graph gives .* leave out --preprocessing\.$"):
            drift_of_pixels(lambda inputs, values=values, by=by: wrong(inputs, values, by), judge, pictures)
