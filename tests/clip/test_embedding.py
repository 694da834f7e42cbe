"""`clip.embed` and ``clip embed``: the model's own numbers, in order, resumed byte for byte, with faults named."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clip
from clip import samples
from clip.embedding import embed_into
from clip_core.embedding.parts import Parts
from clip_core.errors import ClipError
from clip_core.image import open_image
from clip_core.installation import requirement
from clip_core.similarity import normalize
from tests.clip.running import ROOT, assert_refused
from tests.requested import BACKENDS


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """30 pictures, of which two are broken."""
    made = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for number in range(30):
        side = int(generator.integers(20, 80))
        Image.fromarray(generator.integers(0, 256, (40, side, 3), np.uint8)).save(made / f"{number:02}.png")
    (made / "07.png").write_bytes(b"junk")
    (made / "20.png").write_bytes((made / "21.png").read_bytes()[:-40])
    return made


def expected(folder: Path, backend: str) -> tuple[list[str], np.ndarray]:
    """Paths and unit features, of the model and its preprocessing alone."""
    model, preprocess = clip.load("shapes", backend=backend)
    paths = [str(path) for path in sorted(folder.iterdir()) if path.name not in ("07.png", "20.png")]
    pixels = np.stack([preprocess.pixels(open_image(path)) for path in paths])
    return paths, normalize(model.embed_image(pixels))


@pytest.mark.parametrize("backend", BACKENDS)
def test_embeddings_are_those_of_the_model(folder, backend):
    found = clip.embed(str(folder), backend=backend, batch_size=30, fault_share=0.1)
    paths, values = expected(folder, backend)
    assert list(found.ids) == paths
    assert found.array.dtype == np.float32
    np.testing.assert_array_equal(found.array, values)
    assert [(fault.number, Path(fault.name).name) for fault in found.faults] == [(7, "07.png"), (20, "20.png")]
    assert found.stamp.backend == backend
    assert (found.stamp.source, found.stamp.normalized) == ("shapes", True)


def test_pictures_and_texts_that_are_given_as_such(folder):
    paths, values = expected(folder, "numpy")
    first, second, third = (open_image(path) for path in paths[:3])
    given = [first, paths[1], np.asarray(third), Path(paths[3])]
    found = clip.embed(given, backend="numpy")
    assert found.ids == ("0", paths[1], "2", paths[3])
    np.testing.assert_allclose(found.array, values[:4], atol=1e-6)
    np.testing.assert_allclose(clip.embed(second, backend="numpy").array, values[1:2], atol=1e-6)
    model, _ = clip.load("shapes", backend="numpy")
    texts = clip.embed(texts=["a red circle", "two stars"], backend="numpy", normalize=False)
    np.testing.assert_array_equal(texts.array, model.embed_text(model.tokenize(["a red circle", "two stars"])))
    assert texts.ids == ("0", "1")
    assert texts.stamp.difference(found.stamp) is None


def test_what_cannot_be_embedded_is_refused(folder):
    with pytest.raises(ClipError, match=r"^Give either pictures or texts"):
        clip.embed()
    with pytest.raises(ClipError, match=r"as an array float32\(3, 4\); give a path"):
        clip.embed(np.zeros((3, 4), np.float32))
    with pytest.raises(ClipError, match=r"^1 of 30 pictures could not be used.*07\.png: .* is not a picture"):
        clip.embed(str(folder), backend="numpy", batch_size=8)
    with pytest.raises(ClipError, match=r"^1 of 1 texts could not be used.*--truncate"):
        clip.embed(texts="a " * 500, backend="numpy")


def test_the_stamp_does_not_depend_on_the_file(files, checkpoint, other):
    """The same model in other formats, backends and precisions is the same."""
    stamps = [
        clip.embed(texts="a", model=files[suffix], backend="numpy", dtype=dtype).stamp
        for suffix, dtype in ((".pt", "float32"), (".h5", "float16"), (".safetensors", "float32"))
    ]
    assert stamps[0].source == files[".pt"].name
    assert [stamps[0].difference(stamp) for stamp in stamps] == [None] * 3
    found = clip.embed(np.zeros((9, 9, 3), np.uint8), model=other, backend="numpy").stamp
    assert "they cannot be compared" in str(stamps[0].difference(found))


UNGUARDED = """
import numpy as np
import clip
print(clip.embed([np.zeros((8, 8, 3), np.uint8)] * 1000, backend="numpy").array.shape)
"""


def test_a_script_may_embed_many_pictures_without_a_guard(tmp_path):
    script = tmp_path / "unguarded.py"
    script.write_text(UNGUARDED)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script)]
    ended = subprocess.run(command, env=environment, timeout=120, check=True, capture_output=True, text=True)
    assert (ended.stdout, ended.stderr) == ("(1000, 128)\n", "")


def test_a_missing_library_is_told_before_anything_is_embedded(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("clip_core.parquet.find_spec", lambda name: None)
    remedy = re.escape(f"pip install {requirement('data')}, or embed with --format npy")
    with pytest.raises(ClipError, match=rf"needs pyarrow, .* {remedy}"):
        embed_into(tmp_path / "out", [str(folder)], backend="numpy", fault_share=0.1)
    assert not (tmp_path / "out").exists()


KILLED = """
import os, signal, sys
from clip.embedding import embed_into

def end(what, done, total, faults):
    if done >= 22:
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    embed_into(sys.argv[1], [sys.argv[2]], backend="numpy", batch_size=4, part=8, workers=2,
        fault_share=0.1, progress=end)
"""


def test_a_killed_run_goes_on_to_the_same_bytes(folder, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    out, whole = tmp_path / "out", tmp_path / "whole"
    command = [sys.executable, str(script), str(out), str(folder)]
    ended = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=120, check=False)
    assert ended.returncode == -9
    assert sorted(path.name for path in out.glob("*.parquet")) == ["from-00000000.parquet", "from-00000008.parquet"]
    assert len((out / "faults.jsonl").read_text().splitlines()) == 2  # of the part that is not there, too
    options = {"backend": "numpy", "batch_size": 4, "part": 8, "fault_share": 0.1}
    with pytest.raises(ClipError, match="go on with --resume"):
        embed_into(out, [str(folder)], **options)
    told: list[int] = []
    embed_into(out, [str(folder)], **options, resume=True, progress=lambda what, done, *_: told.append(done))
    assert told[0] == 16
    embed_into(whole, [str(folder)], **options)
    names = sorted(path.name for path in whole.iterdir())
    assert len(names) == 6
    for name in names:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    faults = [json.loads(line) for line in (out / "faults.jsonl").read_text().splitlines()]
    assert [(fault["number"], fault["name"]) for fault in faults] == [
        (7, str(folder / "07.png")),
        (20, str(folder / "20.png")),
    ]


def test_texts_of_a_file_whose_name_is_not_utf8(tmp_path):
    file = tmp_path / os.fsdecode(b"caf\xe9.txt")
    file.write_text("a red circle\n")
    (part,) = embed_into(tmp_path / "out", texts=file, backend="numpy")
    assert part.columns["id"] == [r"caf\udce9.txt#0"]


def test_a_run_goes_on_with_nothing_else(folder, tmp_path):
    options = {"backend": "numpy", "part": 16, "fault_share": 0.1, "resume": True}
    embed_into(tmp_path / "out", [str(folder)], **options)
    for change, words in (
        ({"dtype": "float16"}, "made otherwise: dtype float32 and float16"),
        ({"pictures": [str(folder / "00.png")]}, "of another input, of 30 and now 1"),
        ({"part": 8}, "in parts of another size"),
        ({"format": "npy"}, "have the format parquet, not npy"),
    ):
        with pytest.raises(ClipError, match=words):
            embed_into(tmp_path / "out", **({"pictures": [str(folder)], **options} | change))
    (tmp_path / "out" / "from-00000000.parquet").unlink()
    assert len(embed_into(tmp_path / "out", [str(folder)], **options)) == 28


def test_the_command(run, folder, tmp_path):
    out = tmp_path / "out"
    arguments = ["embed", folder, "-o", out, "--backend", "numpy", "--fault-share", 0.1]
    found = run(*arguments, "--json").json
    assert found == {
        **{"folder": str(out), "pictures": 30, "embedded": 28, "faults": 2, "dimension": 128},
        **{"dtype": "float16", "model": "shapes", "backend": "numpy"},
    }
    assert_refused(run(*arguments), f"{out} has embeddings already")
    parts = Parts(out)
    paths, values = expected(folder, "numpy")
    (part,) = parts
    assert part.columns["path"] == paths
    assert (part.columns["width"][0], part.columns["height"][0]) == open_image(paths[0]).size
    np.testing.assert_allclose(part.embeddings, values, atol=1e-3)
    refused = run("embed", folder, "-o", tmp_path / "none", "--backend", "numpy", "--fault-share", 0.03)
    assert_refused(refused, "2 of 30 pictures", "faults.jsonl")


def test_the_command_embeds_texts(run, tmp_path):
    (tmp_path / "t.csv").write_text("text\na red circle\n" + "long " * 200 + "\ntwo stars\n")
    out = tmp_path / "out"
    arguments = ["embed", "--texts", tmp_path / "t.csv", "-o", out, "--backend", "numpy", "--format", "npy"]
    assert_refused(run(*arguments), "1 of 3 texts could not be used", "--truncate")
    found = run(*arguments, "--resume", "--fault-share", 0.5, "--json").json
    assert (found["texts"], found["embedded"], found["faults"]) == (3, 2, 1)
    (part,) = Parts(out)
    assert part.columns == {"id": ["t.csv#0", "t.csv#2"], "text": ["a red circle", "two stars"]}
    assert_refused(run("embed", "-o", tmp_path / "none"), "Give either pictures or, with --texts, a list of texts.")


def test_names_and_captions_that_utf_8_cannot_hold_are_faults(tmp_path):
    """A name of bytes that are no UTF-8, as Linux allows it, and half of a pair of UTF-16 in JSON."""
    (picture, *_) = samples.pictures().values()
    content = picture.read_bytes()
    (tmp_path / "photos").mkdir()
    for name in (b"good.png", b"bad\xff.png"):
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path / "photos"), name))).write_bytes(content)
    (tmp_path / "list.jsonl").write_text(
        '{"image": "photos/good.png", "caption": "\\ud800"}\n{"image": "photos/other.png", "caption": "whole"}\n'
    )
    (tmp_path / "photos" / "other.png").write_bytes(content)
    for source, sentence in (("photos", "its name has characters"), ("list.jsonl", "its caption has characters")):
        out = tmp_path / f"of-{source}"
        embed_into(out, [str(tmp_path / source)], backend="numpy", workers=0, fault_share=0.5)
        found = Parts(out)
        assert len(found) == {"photos": 2, "list.jsonl": 1}[source]
        assert [sentence in fault.sentence for fault in found.faults] == [True]
