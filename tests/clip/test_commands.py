"""The ``clip`` command: what it prints, how it exits, and that a fault is one sentence and leaves nothing behind."""

from __future__ import annotations

import csv
import hashlib
import importlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from safetensors.numpy import save_file

import backends
import clip
import converters
from backends.numpy import CLIP as Reference
from clip import api, samples
from clip.command import app
from clip.command.lazily import SUMMARIES
from clip.command.output import Console
from clip.zero_shot import Classifier
from clip_core import tolerances
from clip_core.errors import ClipError
from clip_core.files import atomic_open
from clip_core.image import open_image
from clip_core.installation import requirement
from clip_core.models import MODELS, OPENAI, SHAPES
from clip_core.naming import count, parameters
from clip_core.preprocess import preprocess
from clip_core.similarity import logits as reference_logits
from clip_core.similarity import probabilities
from clip_core.text.bpe import BytePairTokenizer, openai
from converters import ModelFile
from tests.clip.running import ROOT, Ended, assert_refused, ended, process
from tests.clip.small import ARCHITECTURE
from tests.models import sample_weights
from tests.requested import BACKENDS

INSTALLED = [name for name in ("numpy", "torch", "paddle", "nnabla") if name in backends.available()]
CIRCLE = samples.pictures()["a large solid red circle"]
STAR = samples.pictures()["a large solid turquoise star"]
COMMANDS = [
    *("models", "inspect", "convert", "export", "parity", "classify", "similarity"),
    *("attention", "tokenize", "download"),
    *("train", "recipes", "embed", "label", "search", "duplicates", "cluster", "serve", "web", "whose", "doctor"),
    "demo",
]
GROUPS = ["tokenizer", "evaluate", "data", "index", "golden"]


# All commands ---------------------------------------------------------------------------------------------------------


def test_all_commands_are_there(run):
    assert list(typer.main.get_command(app).commands) == [*COMMANDS, *GROUPS]
    for text in (run("--help").out, run().err or run().out):
        assert all(f" {command} " in text for command in (*COMMANDS, *GROUPS))


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command, run):
    result = run(command, "--help")
    assert (result.code, result.err) == (0, "")
    assert f"clip {command}" in result.out
    documented = importlib.import_module(f"clip.command.{command}").run.__doc__
    assert " ".join(documented.split()) in " ".join(result.out.split())


def test_entry_points_name_the_same_function():
    text = (ROOT / "setup.cfg").read_text()
    assert "clip = clip.command:main" in text
    assert "from clip.command import main" in (ROOT / "clip" / "__main__.py").read_text()


@pytest.mark.parametrize(
    "arguments",
    [
        *(["paint"], ["models", "--yaml"], ["convert", "one.pt"], ["convert", "a.pt", "b.h5", "--dtype", "int8"]),
        *(["evaluate", "imagenet"], ["tokenize", "--context-length", "1", "a"], ["train"], ["classify"], ["inspect"]),
        *(["tokenize", "--context-length", "1000000000000", "a"], ["classify", "a.png", "--batch-size", "0"]),
        ["--threads", "0", "models"],
    ],
)
def test_wrong_usage(arguments, run):
    result = run(*arguments)
    assert (result.code, result.out) == (2, "")
    assert "Usage: " in result.err
    assert "Traceback" not in result.err


def test_reader_that_goes_away():
    """As in ``clip models --json | head -1``."""
    command = process("models", "--json")
    command.stdout.close()
    assert command.stderr.read() == ""
    assert command.wait(timeout=60) == 1
    command.stderr.close()


def test_full_disk_behind_standard_output():
    with open("/dev/full", "w") as full:
        result = ended(process("models", stdout=full))
    assert result.code == 1
    assert result.err == "clip: The output cannot be used: No space left on device.\n"


def test_help_imports_no_command(run):
    """Its summaries are those of the commands, and it is quick: the libraries behind them stay where they are."""
    for name, summary in SUMMARIES.items():
        assert " ".join(typer.main.get_command(app).commands[name].help.split("\n\n")[0].split()) == summary
    code = "import sys; from clip.command import app; app(['--help'], standalone_mode=False); print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    modules = set(shown.splitlines()[-1].split())
    assert "clip.command" in modules
    assert not modules & {"clip.api", "clip.command.classify", "numpy", "pydantic", "PIL", "h5py", "ftfy", "converters"}


def test_version(run):
    result = run("--version")
    assert (result.code, result.out) == (0, f"triclip {clip.__version__}\n")


@pytest.mark.parametrize("wish", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_every_framework_computes_with_the_threads_that_are_wished(wish):
    """One thread is the process itself, in which all of them compute one after the other."""
    arguments = ["--threads", str(wish), "parity", "shapes", "--backends", ",".join(BACKENDS)]
    code = (
        "import os; from clip.command import app; from clip_core.chunks import threads; "
        f"app({arguments}, standalone_mode=False); print(threads(), len(os.listdir('/proc/self/task')))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "parity: PASS" in shown
    counted, running = map(int, shown.splitlines()[-1].split())
    assert counted == wish
    assert running == 1 if wish == 1 else running >= wish


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_leave_nothing_behind(number, run, monkeypatch, tmp_path):
    def work(prog_name: str) -> None:
        with atomic_open(tmp_path / "half.bin") as file:
            file.write(b"half")
            os.kill(os.getpid(), number)
            time.sleep(10)

    monkeypatch.setattr("clip.command.app", work)
    result = run("convert")
    assert (result.code, result.out, result.err) == (128 + number, "", "")
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(number) is signal.SIG_DFL


def test_memory_that_runs_out_is_a_sentence(run, monkeypatch):
    def too_much(prog_name: str) -> None:
        raise MemoryError

    monkeypatch.setattr("clip.command.app", too_much)
    assert_refused(run("convert"), "Memory ran out while this was computed; choose a smaller model")


def test_memory_for_a_batch(run, monkeypatch):
    def too_much(*_) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")  # as PyTorch does

    monkeypatch.setattr(Classifier, "score", too_much)
    result = run("classify", CIRCLE, "--labels", "red", "--backend", "numpy", "--batch-size", "1000")
    assert_refused(result, "Memory ran out while 1000 pictures at once were scored; lower --batch-size.")


def test_nothing_that_a_stranger_named_moves_the_cursor(run, tmp_path):
    """In a sentence, a table, a warning and a title."""
    from safetensors.numpy import save_file

    name = "\x1b[2J\nclip: all is well.\u202e"
    shown = "\\x1b[2J\\nclip: all is well.\\u202e"
    save_file({name: np.zeros(1, np.float32)}, tmp_path / "weights.safetensors")
    result = run("inspect", tmp_path / "weights.safetensors")
    assert shown in result.out + result.err
    assert_refused(run("inspect", tmp_path / name), shown)
    (tmp_path / f"{name}.png").write_bytes(CIRCLE.read_bytes())
    result = run("classify", tmp_path / f"{name}.png", "--labels", f"red{name},{name}", "--backend", "numpy")
    assert result.out.splitlines()[0].rstrip() == f"{tmp_path}/{shown}.png (numpy)"
    assert sorted(line.split("  ")[0] for line in result.out.splitlines()[2:]) == sorted([f"red{shown}", shown])
    assert name not in result.out + result.err


def test_interrupt_is_no_fault(run, monkeypatch):
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api.converters, "inspect", lambda *_, **__: interrupted())
    result = run("inspect", "weights.pt")
    assert result.code == 130
    assert "Traceback" not in result.err


# clip models ----------------------------------------------------------------------------------------------------------


def test_models(run):
    rows = run("models", "--json").json
    assert [row["name"] for row in rows if "fetched" in row["weights"] or "embedded" in row["weights"]] == (
        clip.available_models()
    )
    by_name = {row["name"]: row for row in rows}
    assert by_name["ViT-B/32"] == {
        "name": "ViT-B/32",
        "family": "OpenAI",
        "image_tower": "ViT",
        "text_tower": "Transformer",
        "resolution": 224,
        "context": 77,
        "embed_dim": 512,
        "parameters": 151277313,
        "image_gflops": 8.82,
        "text_gflops": 5.96,
        "tokenizer": "OpenAI's byte pairs",
        "files": OPENAI.files,
        "weights": "fetched from OpenAI",
        "url": MODELS["ViT-B/32"].url,
        "sha256": "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    }
    assert by_name["shapes"]["weights"] == "embedded in this package"
    assert by_name["shapes"]["parameters"] == count(SHAPES)
    assert by_name["RN50"]["image_tower"] == "ResNet"

    table = ended(process("models")).out.splitlines()
    assert max(map(len, table)) <= 80
    assert {line.split()[0] for line in table if line} >= set(by_name)
    (line,) = [line for line in table if line.startswith("ViT-B/32 ")]
    assert line.split() == ["ViT-B/32", "224", "77", "151", "M", "8.82", "+", "5.96"]
    (line,) = [line for line in table if line.startswith("ViT-e-14 ")]
    assert line.split()[3:5] == ["4580", "M"]
    titles = [f"{row['family']}: {row['image_tower']} + {row['text_tower']}" for row in rows]
    assert [line.rstrip() for line in table if line.rstrip() in titles] == list(dict.fromkeys(titles))
    assert sum(line.endswith(", loaded by name") for line in table) == 2


# clip inspect ---------------------------------------------------------------------------------------------------------


def test_inspect_a_sound_file(run, files):
    file = files[".safetensors"]
    found = run("inspect", file, "--json").json
    assert found["faults"] == []
    assert found["path"] == str(file)
    assert found["architecture"] == ARCHITECTURE.to_dict()
    assert found["layout"] == "openai"
    assert found["dtypes"] == {"float32": len(parameters(ARCHITECTURE))}
    assert found["scalars"] == found["parameters"] == count(ARCHITECTURE)
    assert found["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert found["own_vocabulary"] is True

    text = run("inspect", file)
    assert text.code == 0
    assert text.out.endswith("faults: none\n")
    lines = {name: value.strip() for name, value in re.findall(r"^([a-z0-9 ]+?)  +(.*)$", text.out, re.MULTILINE)}
    assert lines["sha256"] == found["sha256"]
    assert lines["own vocabulary"] == "yes"
    assert {"zeros", "left out", "prefix"}.isdisjoint(lines)  # which say nothing here
    assert all(line == line.rstrip() for line in text.out.splitlines())
    assert lines["dtypes"] == f"{len(parameters(ARCHITECTURE))} of float32"
    assert lines["architecture"] == (
        "ViT of 2 layers, 64 wide, 1 heads, patches of 16, pictures of 48 pixels; text transformer of 2 layers, "
        "128 wide, 2 heads, 77 tokens out of 534; 32 dimensions in common; quick_gelu"
    )


def test_inspect_names_every_fault(run, checkpoint, tmp_path):
    from safetensors.numpy import save_file

    weights = dict(checkpoint.weights)
    del weights["visual.ln_pre.bias"]
    weights["text_projection"] = np.full((128, 31), np.nan, np.float32)
    save_file(weights, tmp_path / "faulty.safetensors")
    result = run("inspect", tmp_path / "faulty.safetensors")
    assert (result.code, result.err) == (1, "")
    assert "faults: " in result.out
    assert "visual.ln_pre.bias is missing" in result.out
    faults = json.loads(run("inspect", tmp_path / "faulty.safetensors", "--json").out)["faults"]
    assert len(faults) >= 2
    assert all(f"  {fault}\n" in result.out for fault in faults)


def test_inspect_what_is_no_model(run, tmp_path):
    (tmp_path / "page.pt").write_text("<html>")
    assert_refused(run("inspect", tmp_path / "page.pt"), "page.pt", "text that starts with")
    (tmp_path / "empty").mkdir()
    assert_refused(run("inspect", tmp_path / "empty"), "is a folder without a weights file; expected model.safetensors")
    assert_refused(run("inspect", tmp_path / "none.pt"), "none.pt cannot be read: No such file or directory")


# clip convert ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".h5", ".pdparams"])
def test_convert(suffix, run, files, judge, tmp_path):
    source, target = files[".h5"], tmp_path / f"new{suffix}"
    report = run("convert", source, target, "--json").json
    assert list(report) == [
        *("source", "target", "beside", "source_sha256", "target_sha256", "tensors", "parameters"),
        *("dtype", "layout", "prefix", "left_out", "assumed", "max_abs_difference", "seconds"),
    ]
    assert (report["source"], report["target"]) == (str(source), str(target))
    assert report["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert report["target_sha256"] == hashlib.sha256(target.read_bytes()).hexdigest()
    assert report["parameters"] == count(ARCHITECTURE)
    assert (report["dtype"], report["max_abs_difference"]) == ("float32", 0.0)
    assert 0 < report["seconds"] < 60
    assert all((array == judge.export()[name]).all() for name, array in converters.read(target).weights.items())
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_convert_options(run, files, tmp_path):
    report = run(
        "convert", files[".pt"], tmp_path / "half.pdparams", "--layout", "passl", "--dtype", "float16", "--json"
    )
    assert (report.json["layout"], report.json["dtype"]) == ("passl", "float16")
    assert 0 < report.json["max_abs_difference"] < 0.01
    found = converters.read(tmp_path / "half.pdparams")
    assert found.layout == "passl"
    assert found.weights["visual.proj"].dtype == np.float16

    text = run("convert", files[".pt"], tmp_path / "new.h5").out
    assert "target sha256" in text
    assert "max abs difference  0.0" in text


def test_convert_a_part_of_a_larger_module(run, files, tmp_path):
    """Of several models in a file one is asked for, and what is not of it is named."""
    state = converters.read(files[".pt"]).weights
    several = {f"{prefix}.{name}": array for prefix in ("student", "teacher") for name, array in state.items()}
    save_file(several | {"temperature": np.ones(1, np.float32)}, tmp_path / "a.safetensors")
    what = "several CLIPs, below the prefixes 'student.', 'teacher.' (and beside them 'temperature')"
    assert_refused(run("inspect", tmp_path / "a.safetensors"), what, "clip convert --prefix 'teacher.' takes that one")
    asked = (tmp_path / "a.safetensors", "--prefix", "teacher")
    left_out = rf"left out +{len(state) + 1}: student\.[a-z_.0-9]+, .* and more"
    assert re.search(left_out, run("inspect", *asked).out)
    folder = tmp_path / "folder"
    result = run("convert", *asked, folder, "--layout", "huggingface", "--like", files[".pt"])
    assert re.search(left_out, result.out)
    assert re.search(r"beside +config.json, preprocessor_config.json, vocab.json, merges.txt, ", result.out)
    found = run("inspect", folder, "--json").json
    assert (found["layout"], found["own_vocabulary"], found["left_out"]) == ("huggingface", True, [])


def test_convert_refuses(run, files, tmp_path):
    target = tmp_path / "kept.h5"
    target.write_bytes(b"what was there before")
    (tmp_path / "broken.pt").write_bytes(files[".pt"].read_bytes()[:5000])
    for arguments, part in (
        ((files[".pt"], target), "kept.h5 is there already; give another name, or --force (force=True) to replace it"),
        ((tmp_path / "broken.pt", target, "--force"), "broken.pt"),
        ((tmp_path / "missing.pt", target, "--force"), "missing.pt cannot be read"),
        ((files[".pt"], tmp_path / "name.onnx"), "; clip export writes for ONNX and other runtimes"),
        ((files[".pt"], tmp_path / "no" / "folder.h5"), "cannot be written"),
        ((target, target), "is a file that is read here itself"),
        ((files[".pt"], tmp_path, "--layout", "nnabla"), "has no suffix to write a format by"),
    ):
        assert_refused(run("convert", *arguments), part)
    assert target.read_bytes() == b"what was there before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.pt", "kept.h5"]


# clip parity ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def perturb(monkeypatch) -> Callable[[str, str], None]:
    """Change one parameter of every model that is loaded in a backend, the judge apart."""
    honest = api.open_model

    def change(backend: str, parameter: str) -> None:
        def dishonest(*arguments, **options) -> api.LoadedModel:
            loaded = honest(*arguments, **options)
            if loaded.model.backend == backend and options.get("precision") != "fp64":
                weights = loaded.model.export()
                weights[parameter] = weights[parameter] + np.float32(0.1) * np.sign(weights[parameter] + 1e-9)
                loaded.model.load(weights)
            return loaded

        monkeypatch.setattr("clip.parity.open_model", dishonest)
        monkeypatch.setattr("clip.command.demo.open_model", dishonest)

    return change


def test_parity(run, files):
    found = run("parity", files[".safetensors"], "--json").json
    assert list(found) == ["checkpoint", "tolerances", "backends", "passed", "assumed"]
    assert found["checkpoint"] == str(files[".safetensors"])
    assert found["passed"] is True
    assert found["tolerances"] == {
        "image_embedding": tolerances.EMBEDDING,
        "text_embedding": tolerances.EMBEDDING,
        "logits": pytest.approx(tolerances.LOGIT_AT_100, rel=1e-5),  # the small model has the scale 100
        "layer": tolerances.LAYER,
    }
    assert set(found["backends"]) == set(INSTALLED) >= set(BACKENDS)
    for figures in found["backends"].values():
        assert {"image_embedding", "text_embedding", "logits"} <= figures.keys()
        assert 0 < figures["image_embedding"] <= tolerances.EMBEDDING  # different arithmetic, so never quite equal
        assert 0 < figures["text_embedding"] <= tolerances.EMBEDDING
        assert 0 < figures["logits"] <= tolerances.LOGIT_AT_100
        assert figures["tokens_equal"] is figures["pixels_equal"] is True
        assert figures["first_beyond_bound"] is None


def test_parity_with_random_weights(run):
    found = run("parity", "shapes", "--random", "--layers", "--json").json
    assert found["checkpoint"] == "shapes with random weights"
    assert found["passed"] is True
    assert set(found["backends"]) == set(INSTALLED)
    for figures in found["backends"].values():
        assert 0 < figures["logits"] <= tolerances.LOGIT_AT_100
        assert len(figures["layers"]) == 4 + 3 + 6  # blocks of both towers; what is around them
    assert_refused(run("parity", "a.pt", "--random"), "There is no architecture 'a.pt'; clip models lists")


def test_parity_of_chosen_backends(run, files):
    found = run("parity", files[".h5"], "--backends", f"numpy, {BACKENDS[0]},numpy", "--layers", "--json").json
    assert list(found["backends"]) == list(dict.fromkeys(["numpy", BACKENDS[0]]))
    layers = found["backends"][BACKENDS[0]]["layers"]
    assert next(iter(layers)) == "visual.ln_pre"
    assert {"visual.transformer.resblocks.1", "transformer.resblocks.0", "ln_final"} <= layers.keys()
    assert all(0 < value <= tolerances.LAYER for value in layers.values())

    text = run("parity", files[".h5"], "--backends", "numpy", "--layers").out
    assert text.endswith("parity: PASS\n")
    assert f"numpy: {len(layers)} blocks, the worst is " in text


@pytest.mark.parametrize(
    ("parameter", "block"),
    [
        ("visual.conv1.weight", "visual.ln_pre"),
        ("visual.transformer.resblocks.0.attn.in_proj_weight", "visual.transformer.resblocks.0"),
        ("visual.transformer.resblocks.1.mlp.c_proj.bias", "visual.transformer.resblocks.1"),
        ("visual.proj", "image_features"),
        ("token_embedding.weight", "token_embedding"),
        ("transformer.resblocks.1.ln_2.weight", "transformer.resblocks.1"),
        ("ln_final.bias", "ln_final"),
        ("logit_scale", "logits"),
    ],
)
def test_parity_names_the_first_block_beyond_its_bound(parameter, block, run, files, perturb):
    perturb("numpy", parameter)
    result = run("parity", files[".pt"], "--backends", "numpy", "--layers", "--json")
    found = json.loads(result.out)
    assert (result.code, found["passed"]) == (1, False)
    assert found["backends"]["numpy"]["first_beyond_bound"] == block


@pytest.mark.parametrize("backend", BACKENDS)
def test_parity_fails_in_the_backend_that_differs(backend, run, files, perturb):
    perturb(backend, "visual.transformer.resblocks.1.mlp.c_fc.weight")
    result = run("parity", files[".pt"], "--layers", "--json")
    found = json.loads(result.out)["backends"]
    assert result.code == 1
    assert found[backend]["first_beyond_bound"] == "visual.transformer.resblocks.1"
    assert found[backend]["image_embedding"] > tolerances.EMBEDDING
    assert found[backend]["text_embedding"] <= tolerances.EMBEDDING
    assert [name for name, figures in found.items() if figures["first_beyond_bound"]] == [backend]

    text = run("parity", files[".pt"], "--layers", "--backends", backend)
    assert (text.code, text.err) == (1, "")
    assert f"{backend}: beyond its bound first at visual.transformer.resblocks.1\n" in text.out
    assert text.out.endswith("parity: FAIL\n")


def test_parity_without_a_vocabulary(run, other):
    assert run("parity", other, "--backends", "numpy").code == 0


def test_difference_that_is_no_number_fails(run, files, monkeypatch):
    monkeypatch.setattr(Reference, "__call__", lambda *_: (np.full((2, 2), np.nan), None))
    result = run("parity", files[".pt"], "--backends", "numpy", "--json")
    assert result.code == 1
    assert json.loads(result.out)["backends"]["numpy"]["logits"] is None


def test_parity_refuses(run, files, tmp_path):
    assert_refused(run("parity", files[".pt"], "--backends", "numpy,jax"), "There is no backend 'jax'")
    assert_refused(run("parity", files[".pt"], "--backends", ","), "There are no backends to compare")
    assert_refused(run("parity", tmp_path / "none.pt"), "There is no file")


@pytest.mark.parametrize("backend", BACKENDS)
def test_parity_names_the_tower_that_a_backend_lacks(backend, run, monkeypatch):
    monkeypatch.delitem(importlib.import_module(f"backends.{backend}.towers").IMAGE_TOWERS, "vit")
    refused = run("parity", "shapes", "--backends", backend)
    assert_refused(refused, f"The {backend} backend has no ViT (the kind vit); choose another backend.")


# clip classify --------------------------------------------------------------------------------------------------------


def expected_scores(path: Path, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Logits and probabilities of the embedded model in float64."""
    checkpoint = converters.read(api.RESOURCES / "shapes.safetensors")
    judge = Reference(SHAPES, checkpoint.weights, precision="fp64")
    tokens = BytePairTokenizer(checkpoint.vocabulary).tokenize(texts)
    scale = float(np.exp(checkpoint.weights["logit_scale"].astype(np.float64)))
    pixels = preprocess(open_image(path), 64)[None]
    found = reference_logits(judge.encode_image(pixels), judge.encode_text(tokens), scale)[0]
    return found, probabilities(found)


def assert_scores(result: dict, path: Path, labels: list[str], template: str = "{}") -> None:
    logits, shares = expected_scores(path, [template.replace("{}", label) for label in labels])
    assert list(result["logits"]) == list(result["probabilities"]) == labels
    np.testing.assert_allclose(list(result["logits"].values()), logits, atol=2e-3)
    np.testing.assert_allclose(list(result["probabilities"].values()), shares, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_classify(backend, run):
    labels = "red circle,blue circle,turquoise star"
    results = run("classify", CIRCLE, STAR, "--labels", labels, "--backend", backend, "--json").json
    assert [list(result) for result in results] == [["image", "backend", "model", "probabilities", "logits"]] * 2
    assert [result["image"] for result in results] == [str(CIRCLE), str(STAR)]
    assert {(result["backend"], result["model"]) for result in results} == {(backend, "shapes")}
    for result, path in zip(results, (CIRCLE, STAR)):
        assert_scores(result, path, labels.split(","))
        assert sum(result["probabilities"].values()) == pytest.approx(1)
    best = [max(result["probabilities"], key=result["probabilities"].get) for result in results]
    assert best == ["red circle", "turquoise star"]


def test_classify_prints_the_best_first(run):
    result = run("classify", CIRCLE, "--labels", "blue star,red circle", "--backend", "numpy")
    assert result.err == ""
    title, heads, *rows = result.out.splitlines()
    assert title.strip() == f"{CIRCLE} (numpy)"
    assert heads.split() == ["label", "probability", "logit"]
    shares = [float(row.split()[-3]) for row in rows]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.02)


def test_labels_from_options_and_file(run, tmp_path):
    names = tmp_path / "labels.txt"
    names.write_bytes("\ufeffred star\r\n\r\n  grüner Kreis \r\n日本の猫\n$5, [bold]and[/x] :dog:".encode())
    arguments = ["--labels", " red circle,, blue circle ", "--labels", "pink heart", "--labels-file", names]
    (result,) = run("classify", CIRCLE, *arguments, "--backend", "numpy", "--json").json
    labels = ["red circle", "blue circle", "pink heart", "red star", "grüner Kreis", "日本の猫"]
    assert_scores(result, CIRCLE, [*labels, "$5, [bold]and[/x] :dog:"])
    text = run("classify", CIRCLE, *arguments, "--backend", "numpy").out
    assert all(f"{label} " in text for label in [*labels, "$5, [bold]and[/x] :dog:"])


def test_output_that_cannot_show_a_label():
    command = process(
        *("classify", CIRCLE, "--labels", "größe,red", "--backend", "numpy"),
        environment={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    )
    result = ended(command)
    assert result.code == 0
    assert "gr\\xf6\\xdfe" in result.out


def test_file_name_that_is_no_text(tmp_path):
    name = os.fsencode(tmp_path) + b"/\xff[bold] $5.png"
    with open(name, "wb") as file:
        file.write(CIRCLE.read_bytes())
    shared = ["--labels", "red circle", "--backend", "numpy"]
    result = ended(process("classify", os.fsdecode(name), *shared, "--json"))
    assert result.json[0]["image"] == os.fsdecode(name)
    result = ended(process("classify", os.fsdecode(name), *shared, "--plot", tmp_path / "plot.png"))
    assert (result.code, result.err) == (0, "")
    assert "\\udcff[bold] $5.png (numpy)" in result.out
    assert (tmp_path / "plot.png").exists()


def test_template(run):
    (result,) = run(
        *("classify", CIRCLE, "--labels", "red circle,{}", "--template", "a drawing of a {}"),
        *("--backend", "numpy", "--json"),
    ).json
    assert_scores(result, CIRCLE, ["red circle", "{}"], "a drawing of a {}")


def test_default_template_depends_on_the_model(run, files, tmp_path, monkeypatch):
    """A converted copy of the embedded model is treated as the embedded model; other models get a sentence."""
    converters.convert(api.RESOURCES / "shapes.safetensors", tmp_path / "copy.pdparams")
    arguments = ["--labels", "red circle,blue circle", "--backend", "numpy", "--json"]
    (copy,) = run("classify", CIRCLE, "--model", tmp_path / "copy.pdparams", *arguments).json
    assert_scores(copy, CIRCLE, ["red circle", "blue circle"])
    assert copy["model"] == str(tmp_path / "copy.pdparams")

    (plain,) = run("classify", CIRCLE, "--model", files[".pt"], *arguments).json
    (explicit,) = run("classify", CIRCLE, "--model", files[".pt"], *arguments, "--template", "a photo of a {}.").json
    (bare,) = run("classify", CIRCLE, "--model", files[".pt"], *arguments, "--template", "{}").json
    assert plain["logits"] == explicit["logits"] != bare["logits"]


def test_embedded_model_warns_of_photographs(run):
    result = run("classify", CIRCLE, "--labels", "a tabby cat,two red discs,Rocket,striped hoops", "--backend", "numpy")
    assert result.code == 0
    assert result.err == (
        "clip: the embedded model knows drawn shapes only, and 'a tabby cat', 'Rocket' is none of them; "
        "for photographs use --model ViT-B/32.\n"
    )


def test_plot(run, tmp_path):
    target = tmp_path / "plot.png"
    labels = "red circle,$a$ $b,日本,blue circle"
    with pytest.warns(UserWarning, match="Glyph .* missing from font"):  # only that the font lacks it
        result = run("classify", CIRCLE, STAR, "--labels", labels, "--plot", target, "--backend", "numpy", "--json")
    assert len(result.json) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]
    with Image.open(target) as image:
        assert image.format == "PNG"
        assert image.size == (960, 2 * 288)
        drawn = np.asarray(image.convert("RGB")).astype(int)
    upper, lower = drawn[:288, :300].reshape(-1, 3), drawn[288:, :300].reshape(-1, 3)

    def share(pixels: np.ndarray, colour: tuple[int, int, int]) -> float:
        return float((np.abs(pixels - colour).max(axis=1) < 30).mean())

    assert share(upper, (222, 28, 36)) > 0.01  # the red circle beside the first bars
    assert share(lower, (222, 28, 36)) < 0.001
    assert share(lower, (45, 215, 205)) > 0.01  # the turquoise star beside the second
    bars = drawn[:, 300:].reshape(-1, 3)
    assert share(bars, (42, 111, 187)) > 0.02  # the best bars


@pytest.mark.parametrize(
    ("name", "count", "part"),
    [("plot.jpg", 1, "only PNG files are"), ("none/plot.png", 1, "cannot be written"), ("plot.png", 1700, "too many")],
)
def test_plot_that_cannot_be_drawn(name, count, part, run, tmp_path):
    labels = ",".join(f"red {index}" for index in range(count))
    result = run("classify", CIRCLE, "--labels", labels, "--plot", tmp_path / name, "--backend", "numpy")
    assert_refused(result, part)
    assert list(tmp_path.iterdir()) == []


def test_classify_refuses(run, tmp_path):
    (tmp_path / "binary.txt").write_bytes(b"red\n\xff\xfe")
    (tmp_path / "wide.txt").write_bytes("red".encode("utf-16-le"))
    (tmp_path / "empty.txt").write_bytes(b"\n \r\n")
    (tmp_path / "page.png").write_text("<html>")
    Image.new("RGB", (1, 60000)).save(tmp_path / "narrow.png")
    (tmp_path / "bare").mkdir()
    red = ["--labels", "red circle"]
    for arguments, part in (
        ([CIRCLE], "There are no labels; give some with --labels or --labels-file"),
        ([CIRCLE, "--labels", " , "], "There are no labels"),
        ([CIRCLE, "--labels", "red,blue,red"], "The label 'red' occurs more than once"),
        ([CIRCLE, *red, "--template", "a photo"], "has 0 places for the label"),
        ([CIRCLE, *red, "--template", "{} {}"], "has 2 places for the label"),
        (
            [CIRCLE, *red, "--template", "{}" + " word" * 100],
            "The label 'red circle' cannot be used: the text is too long: with start",
        ),
        ([CIRCLE, "--labels", "red,blue" + " circle" * 90], "The label 'blue circle circle"),
        (
            [CIRCLE, "--labels", "red,red <|EndOfText|>b"],
            "The label 'red <|EndOfText|>b' cannot be used: the text has <|endoftext|> in it",
        ),
        ([CIRCLE, "--labels", "red,red \udcff"], "The label 'red \\udcff' cannot be used: the text has the lone"),
        ([CIRCLE, "--labels-file", tmp_path / "binary.txt"], "binary.txt is not UTF-8 text (byte 4)"),
        ([CIRCLE, "--labels-file", tmp_path / "wide.txt"], "wide.txt is not a text: it holds zero bytes"),
        ([CIRCLE, "--labels-file", tmp_path / "empty.txt"], "There are no labels"),
        ([CIRCLE, "--labels-file", tmp_path / "none.txt"], "none.txt cannot be read: No such file"),
        ([CIRCLE, "--labels-file", "/dev/zero"], "/dev/zero is not a regular file"),
        ([tmp_path / "page.png", *red], "page.png is text"),
        ([tmp_path / "narrow.png", *red], "narrow.png"),
        ([tmp_path / "none.png", *red], "none.png cannot be read: No such file"),
        ([tmp_path / "bare", *red], "bare names no pictures (.png, "),
        ([CIRCLE, tmp_path / "*.jpg", *red], "*.jpg names no pictures (.png, "),
        ([CIRCLE, *red, "--csv", "--json"], "--csv and --json were both given; choose one"),
        ([CIRCLE, *red, "--output", tmp_path / "none" / "scores.csv"], "scores.csv cannot be written"),
        ([CIRCLE, *red, "--device", "cuda"], "The numpy backend has no device 'cuda'"),
        ([CIRCLE, *red, "--precision", "fp8"], "There is no precision 'fp8'"),
        ([CIRCLE, *red, "--model", "ViT-B-33"], "There is no file ViT-B-33 and no model of that name"),
        ([CIRCLE, *red, "--backend", "jax"], "There is no backend 'jax'"),
    ):
        backend = [] if "--backend" in arguments else ["--backend", "numpy"]
        assert_refused(run("classify", *arguments, *backend), part)


@pytest.fixture
def photographs(tmp_path) -> Path:
    """A folder of pictures: 24 in two folders, one of which is linked, and what is hidden."""
    folder, elsewhere = tmp_path / "photographs", tmp_path / "elsewhere"
    for place in (folder / "inner", elsewhere):
        place.mkdir(parents=True)
        for number in range(12):
            source, suffix = (STAR, "PNG") if number % 2 else (CIRCLE, "png")
            (place / f"{number:02}.{suffix}").write_bytes(source.read_bytes())
    (folder / "linked").symlink_to(elsewhere)
    (folder / ".hidden.png").write_text("not a picture")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "0.png").write_text("not a picture")
    return folder


def classify(run, *arguments: object) -> Ended:
    return run("classify", *arguments, "--labels", "red circle,turquoise star", "--backend", "numpy")


def test_folders_and_patterns(photographs, run):
    whole = [f"{photographs}/{place}/{number:02}" for place in ("inner", "linked") for number in range(12)]
    found = classify(run, photographs, "--json", "--batch-size", "5").json
    assert [result["image"].rpartition(".")[0] for result in found] == whole
    best = [max(result["logits"], key=result["logits"].get) for result in found]
    assert best == ["red circle", "turquoise star"] * 12

    found = classify(run, photographs / "inner" / "*.png", photographs / "inner", "--json").json
    assert [Path(result["image"]).stem for result in found] == [f"{n:02}" for n in [*range(0, 12, 2), *range(12)]]
    found = classify(run, photographs / "inner" / "**", "--json").json
    assert [result["image"].rpartition(".")[0] for result in found] == whole[:12]
    (photographs / "inner" / "empty").mkdir()
    assert len(classify(run, photographs / "inner" / "*", "--json").json) == 12
    (photographs / "[1].png").write_bytes(CIRCLE.read_bytes())  # a file's own name is no pattern
    assert len(classify(run, photographs / "[1].png", "--json").json) == 1

    (photographs / "notes.txt").write_text("not a picture")
    (photographs / "linked" / "back").symlink_to(photographs)
    with pytest.warns(
        UserWarning, match=r"passed over: 1 files \(1 with .txt\) and the folder .*/linked/back, which is"
    ):
        assert len(classify(run, photographs, "--json").json) == 25


def test_broken_pictures_are_named_and_counted(photographs, run):
    broken = photographs / "inner" / "03.PNG"
    broken.write_text("<html>")
    result = classify(run, photographs, "--json")
    first, last = result.err.splitlines()
    assert first.startswith(f"clip: {broken} is text")
    assert last == "clip: 1 of 24 pictures could not be used."
    assert len(result.json) == 23  # and exit code 0
    assert str(broken) not in result.out

    result = classify(run, photographs, "--json", "--fault-share", "0.04")
    assert (result.code, len(json.loads(result.out))) == (1, 23)
    assert result.err.splitlines()[-1] == (
        "clip: 1 of 24 pictures could not be used, and --fault-share 0.04 allows at most 0; mend or remove them, or "
        "allow more."
    )
    assert len(classify(run, broken, CIRCLE, "--json", "--fault-share", "0.5").json) == 1
    assert classify(run, broken, CIRCLE, "--json", "--fault-share", "nan").code != 0


def test_no_picture_can_be_used(run, tmp_path):
    (tmp_path / "old.json").write_text("old")
    result = classify(run, tmp_path / "a.png", tmp_path / "b.png", "--output", tmp_path / "old.json", "--force")
    assert (result.code, result.out) == (1, "")
    assert [line.partition(" cannot")[0] for line in result.err.splitlines()] == [
        f"clip: {tmp_path}/a.png",
        f"clip: {tmp_path}/b.png",
        "clip: None of the 2 pictures can be used.",
    ]
    assert (tmp_path / "old.json").read_text() == "old"


def test_results_are_there_before_the_end(photographs, run, monkeypatch):
    """Pictures are read, scored and printed batch by batch, against labels that are encoded once."""
    sizes, texts = [], []
    score, embed_text = Classifier.score, Reference.embed_text

    def fails_later(self, pixels):
        sizes.append(len(pixels))
        if len(sizes) == 3:
            raise ClipError("The lights went out.")
        return score(self, pixels)

    monkeypatch.setattr(Classifier, "score", fails_later)
    monkeypatch.setattr(Reference, "embed_text", lambda *call: texts.append(1) or embed_text(*call))
    result = classify(run, photographs, "--batch-size", "5", "--json")
    assert (result.code, result.err) == (1, "clip: The lights went out.\n")
    assert [Path(entry["image"]).stem for entry in json.loads(result.out)] == [f"{number:02}" for number in range(10)]
    assert (sizes, len(texts)) == ([5, 5, 5], 1)


def test_csv(run, tmp_path):
    odd = tmp_path / 'a "b", c\n\x1b.png'
    odd.write_bytes(STAR.read_bytes())
    arguments = [CIRCLE, odd, "--labels", "red circle,blue circle,turquoise star", "--backend", "numpy"]
    text = run("classify", *arguments, "--csv").out
    assert text.endswith("\r\n")
    head, *rows = csv.reader(io.StringIO(text, newline=""))
    assert head == ["image", "rank", "label", "probability", "logit"]
    assert [row[:2] for row in rows] == [
        *([str(CIRCLE), rank] for rank in "123"),
        *([str(tmp_path / 'a "b", c\\n\\x1b.png'), rank] for rank in "123"),
    ]
    expected = run("classify", *arguments, "--json").json
    for row in rows:
        image = expected[row[0] != str(CIRCLE)]
        assert (float(row[3]), float(row[4])) == (image["probabilities"][row[2]], image["logits"][row[2]])
    assert [row[2] for row in rows[::3]] == ["red circle", "turquoise star"]
    assert run("classify", *arguments, "--csv", "--top-k", "1").out.splitlines() == [
        line for number, line in enumerate(text.splitlines()) if number % 3 < 2 and (number == 0 or number % 3 == 1)
    ]


def test_best_labels_only(run):
    arguments = ["classify", CIRCLE, "--labels", "pink heart,blue circle,red circle", "--backend", "numpy"]
    (whole,) = run(*arguments, "--json").json
    (best,) = run(*arguments, "--json", "--top-k", "2").json
    ranked = sorted(whole["logits"], key=whole["logits"].get, reverse=True)[:2]
    assert list(best["logits"]) == list(best["probabilities"]) == ranked
    assert best["probabilities"] == {label: whole["probabilities"][label] for label in ranked}
    assert [line.split("  ")[0] for line in run(*arguments, "--top-k", "2").out.splitlines()[2:]] == ranked


@pytest.mark.parametrize("suffix", ["csv", "json", "txt"])
def test_output_into_a_file(suffix, run, tmp_path):
    target = tmp_path / f"scores.{suffix}"
    form = [] if suffix == "txt" else [f"--{suffix}"]
    expected = classify(run, CIRCLE, STAR, *form).out
    result = classify(run, CIRCLE, STAR, "--output", target)
    assert (result.code, result.err) == (0, "")
    assert result.out == f"scored 2 of 2 pictures; the results are in {target}\n"
    assert target.read_bytes() == expected.encode()
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_output_costs_no_file(run, files, tmp_path):
    """Nothing that is read is replaced, not even by force, and what else is there by force only."""
    picture, labels, model = tmp_path / "a.png", tmp_path / "labels.txt", tmp_path / "model.safetensors"
    picture.write_bytes(CIRCLE.read_bytes())
    labels.write_text("red circle\n")
    model.write_bytes(files[".safetensors"].read_bytes())
    os.symlink(picture, tmp_path / "link.png")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    asked = ("classify", picture, "--labels-file", labels, "--model", model, "--backend", "numpy")
    for option, target in (
        *(("--output", path) for path in before),
        ("--plot", picture),
        ("--plot", tmp_path / "link.png"),
    ):
        assert_refused(run(*asked, option, target, "--force"), f"{target} is a file that is read here itself; give ano")
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}

    for option, name in (("--output", "old.csv"), ("--plot", "old.png")):
        target = tmp_path / name
        target.write_text("old")
        assert_refused(run(*asked, option, target), f"{name} is there already; give another name, or --force")
        assert target.read_text() == "old"
        assert run(*asked, option, target, "--force").code == 0
    assert (tmp_path / "old.csv").read_text().startswith("image,rank,label,probability,logit\n")
    assert (tmp_path / "old.png").read_bytes().startswith(b"\x89PNG")


def test_progress_is_for_terminals(run, monkeypatch, tmp_path):
    shown = io.StringIO()
    monkeypatch.setattr("clip.command.classify.errors", Console(file=shown, force_terminal=True))
    classify(run, CIRCLE, STAR, "--output", tmp_path / "scores.csv")
    assert "2/2" in shown.getvalue()


def test_labels_that_are_too_long_are_cut_by_request(run):
    long = "red " + "circle " * 100
    (cut,) = run("classify", CIRCLE, "--labels", f"{long},blue", "--truncate", "--backend", "numpy", "--json").json
    (short,) = run("classify", CIRCLE, "--labels", f"red {'circle ' * 74},blue", "--backend", "numpy", "--json").json
    assert list(cut["logits"].values()) == list(short["logits"].values())


def test_many_labels(run, tmp_path):
    """Equal ones are found, and unknown ones are said, without naming them all."""
    (tmp_path / "labels.txt").write_text("\n".join([*map(str, range(60_000)), "59999"]))
    result = run("classify", CIRCLE, "--labels-file", tmp_path / "labels.txt", "--backend", "numpy")
    warning, refusal = result.err.splitlines()
    assert "'0', '1', '2', '3', '4' and 59996 more is none of them" in warning
    assert refusal == "clip: The label '59999' occurs more than once; give each label once."


def test_model_of_zeros_is_refused(run, checkpoint, tmp_path):
    weights = checkpoint.weights | {"text_projection": np.zeros((128, 32), np.float32)}
    file = tmp_path / "zeros.pt"
    converters.write(ModelFile(weights, ARCHITECTURE, vocabulary=checkpoint.vocabulary), file)
    result = run("classify", CIRCLE, "--labels", "red,blue", "--model", file, "--backend", "numpy", "--json")
    assert_refused(result, "zeros.pt gives logits that are not finite numbers")


# clip tokenize --------------------------------------------------------------------------------------------------------


def test_tokenize(run):
    text = "A photo of a person with black hair"
    assert run("tokenize", text, "").out == "49406 320 1125 539 320 2533 593 1449 2225 49407\n49406 49407\n"
    assert run("tokenize", text, "--json").json == [
        {"text": text, "tokens": [49406, 320, 1125, 539, 320, 2533, 593, 1449, 2225, 49407]}
    ]
    assert run("tokenize", "ünïcödé & 日本", "--json").json[0]["text"] == "ünïcödé & 日本"


def test_tokenize_with_a_models_vocabulary(run, checkpoint, files):
    tokenizer = BytePairTokenizer(checkpoint.vocabulary)
    expected = [tokenizer.start, *tokenizer.encode("a red circle"), tokenizer.end]
    assert run("tokenize", "--model", files[".h5"], "a red circle").out == " ".join(map(str, expected)) + "\n"
    embedded = run("tokenize", "--model", "shapes", "a red circle", "--json").json[0]["tokens"]
    assert (embedded[0], embedded[-1]) == (768, 769)
    assert len(embedded) == 5  # each word of the shapes world is one token


def test_tokenize_up_to_the_models_context(run, checkpoint, tmp_path):
    text = ARCHITECTURE.text.__class__(8, ARCHITECTURE.text.vocabulary_size, width=64, layers=1, heads=1)
    short = ARCHITECTURE.__class__(32, ARCHITECTURE.image, text)
    file = tmp_path / "short.pt"
    converters.write(ModelFile(sample_weights(short), short, vocabulary=checkpoint.vocabulary), file)
    assert_refused(run("tokenize", "--model", file, "red " * 20), "too long for context length 8")
    cut = run("tokenize", "--model", file, "red " * 20, "--truncate").out.split()
    assert (len(cut), cut[-1]) == (8, "533")
    assert len(run("tokenize", "--model", file, "red " * 20, "--context-length", "30").out.split()) > 20


def test_tokenize_refuses(run, other, tmp_path):
    assert_refused(run("tokenize", "word " * 100), "text 0 is too long for context length 77")
    assert run("tokenize", "word " * 100, "--truncate").out.split()[-1] == str(openai().end)
    assert_refused(run("tokenize", "--model", other, "a"), "does not carry it")
    (tmp_path / "tokenizer.json").write_text("{}")
    for command in (("tokenize",), ("tokenizer", "encode")):
        refused = run(*command, tmp_path / "tokenizer.json", "a red circle")
        assert_refused(refused, f"tokenizer.json is a file; for its tokenizer give --model {tmp_path}")
    assert_refused(run("tokenize", "a", "lone \udcff byte"), "text 1 has the lone surrogate U+DCFF")


# clip download --------------------------------------------------------------------------------------------------------


def test_download(run, serve, files, tmp_path):
    asked = serve("RN50", files[".pt"])
    digest = hashlib.sha256(files[".pt"].read_bytes()).hexdigest()
    target = tmp_path / "weights" / "small.pt"
    for _ in range(2):
        found = run("download", "RN50", "--folder", target.parent, "--json").json
        assert found == {"name": "RN50", "path": str(target), "sha256": digest}
    assert asked == ["/small.pt"]
    assert target.read_bytes() == files[".pt"].read_bytes()
    assert run("download", "RN50", "--folder", target.parent).out == f"{target}\n"
    assert run("download", "shapes").out == f"{api.RESOURCES / 'shapes.safetensors'}\n"


def test_download_refuses(run, serve, files, tmp_path):
    assert_refused(run("download", "RN5"), "There is no model 'RN5'; the models are shapes, RN50,")
    assert_refused(
        run("download", "ViT-B-32"), "of open_clip without weights at a fixed address; give a file of such a"
    )
    serve("RN50", files[".pt"], digest="f" * 64)
    assert_refused(run("download", "RN50", "--folder", tmp_path), "it is not the file asked for")
    assert not (tmp_path / "small.pt").exists()


# clip evaluate --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_evaluate(backend, run):
    """On fewer pictures than the command takes by default, with the same numbers on every backend."""
    few = ["evaluate", "shapes", "--pictures-per-class", "1", "--limit", "40"]
    found = run(*few, "--backend", backend, "--json").json
    assert (found["data"]["pictures"], found["data"]["classes"]) == (18, 81)
    scores = found["results"][backend]["scores"]
    assert scores["held_out_top1"]["value"] >= 0.7
    assert scores["image_to_text_recall_at_1"]["value"] >= 0.7
    expected = run(*few, "--backend", "numpy", "--json").json["results"]["numpy"]["scores"]
    assert scores == expected
    value, low, high = (100 * expected["trained_top1"][name] for name in ("value", "low", "high"))
    line = f"{'trained top1':33}  {value:.2f} % [{low:.2f}, {high:.2f}]"
    assert line in run(*few, "--backend", backend).out


@pytest.mark.slow
def test_embedded_model_reaches_its_scores(run):
    scores = run("evaluate", "shapes", "--json").json["results"]["torch"]["scores"]
    assert scores["held_out_top1"]["value"] >= 0.9
    assert scores["image_to_text_recall_at_1"]["value"] >= 0.6


def test_evaluate_refuses(run, tmp_path):
    assert_refused(run("evaluate", "shapes", "--model", tmp_path / "none.pt"), "There is no file")
    numpy = ["evaluate", "shapes", "--backend", "numpy"]
    assert_refused(run(*numpy, "--device", "cuda"), "The numpy backend has no device 'cuda'; it runs on the cpu")
    assert_refused(run(*numpy, "--precision", "fp8"), "There is no precision 'fp8' in NumPy")


# clip demo ------------------------------------------------------------------------------------------------------------


def test_demo(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("demo")
    assert result.code == 0, result.err
    *_, last = result.out.splitlines()
    start, _, worst = last.rpartition("=")
    assert start == f"parity: PASS backends={','.join(INSTALLED)} max_logit_diff"
    assert 0 < float(worst) <= tolerances.LOGIT_AT_100
    assert sorted(path.name for path in (tmp_path / "demo-output").iterdir()) == ["shapes.h5", "shapes.pdparams"]
    embedded = converters.read(api.RESOURCES / "shapes.safetensors")
    for path in (tmp_path / "demo-output").iterdir():
        found = converters.read(path)
        assert found.vocabulary == embedded.vocabulary
        assert found.source_sha256 == embedded.sha256
        assert all((array == embedded.weights[name]).all() for name, array in found.weights.items())
    for caption in samples.pictures():  # a row each, with a probability for each backend
        (row,) = [line for line in result.out.splitlines() if line.startswith(f"{caption} ")]
        shares = [float(value) for value in row.split()[-len(INSTALLED) :]]
        assert max(shares) - min(shares) <= 1e-4
        assert 0 < shares[0] <= 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_demo_fails_when_a_backend_differs(backend, run, perturb, tmp_path):
    perturb(backend, "text_projection")
    result = run("demo", "--output", tmp_path)
    assert result.code == 1
    *_, last = result.out.splitlines()
    start, _, worst = last.rpartition("=")
    assert start == f"parity: FAIL backends={','.join(INSTALLED)} max_logit_diff"
    assert float(worst) > tolerances.LOGIT_AT_100
    assert f"{backend}: beyond its bound first at text_embedding\n" in result.out


@pytest.mark.parametrize(("version", "says"), [((3, 12), "has no wheel for Python 3.11"), ((3, 10), "install it with")])
def test_demo_goes_on_without_nnabla(version, says, run, monkeypatch, tmp_path):
    monkeypatch.setattr("clip.command.demo.available", lambda: ["numpy"])
    monkeypatch.setattr(sys, "version_info", version)
    result = run("demo", "--output", tmp_path)
    assert result.code == 0, result.err
    (line,) = [line for line in result.out.splitlines() if line.startswith("going on without nnabla")]
    assert says in line
    assert f"going on without torch; install it with: pip install {requirement('torch')}\n" in result.out
    assert result.out.splitlines()[-1].startswith("parity: PASS backends=numpy max_logit_diff=")


def test_demo_refuses(run, tmp_path):
    (tmp_path / "file").write_text("")
    assert_refused(run("demo", "--output", tmp_path / "file"), "The folder", "choose another with --output")
