"""Models for other runtimes: written, run at once beside the reference, and published only if they pass."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import backends
from clip.api import LoadedModel, open_model, weights_file
from clip.parity import Inputs, token_rows
from clip.proof import (
    BUDGETS,
    Proof,
    Run,
    beyond,
    canaries,
    decoded_pictures,
    drift_of_pixels,
    random_pictures,
    shapes,
)
from clip_core import files
from clip_core.buffers import sha256
from clip_core.errors import ClipError
from clip_core.evaluation.zero_shot import unit_features
from clip_core.image import open_image
from clip_core.models import MODELS
from clip_core.text import vocabulary
from converters import files_of
from converters.manifest import Manifest

if TYPE_CHECKING:
    from exporters.onnx.model import Part

PARTS: tuple[Part, ...] = ("image", "text", "both")


@dataclass(frozen=True)
class Target:
    """What a model is exported to."""

    endings: tuple[str, ...]  # of the names of its files; the first one is that of the file that is loaded
    backends: tuple[str, ...]  # whose libraries write and run it
    session: str  # the module whose ``Session`` runs a file
    precisions: tuple[str, ...]
    libraries: tuple[str, ...]  # whose versions the report tells
    whole_texts: bool = False  # whether its files take texts of the full context alone


_ALL = tuple(BUDGETS)
TARGETS = {
    "onnx": Target((".onnx", ".onnx.data"), ("onnx",), "backends.onnx.session", _ALL, ("onnx", "onnxruntime")),
    "openvino": Target((".xml", ".bin"), ("onnx", "openvino"), "backends.openvino.session", _ALL, ("onnx", "openvino")),
    "torchscript": Target((".pt",), ("torch",), "backends.torch.exported", ("fp32", "fp16"), ("torch",)),
    "torch-export": Target((".pt2",), ("torch",), "backends.torch.exported", ("fp32", "fp16"), ("torch",)),
    # Paddle has no kernels of fp16 for the CPU, where the proof runs.
    "paddle": Target(
        (".json", ".pdiparams", "-triclip.json"), ("paddle",), "backends.paddle.exported", ("fp32",), ("paddle",)
    ),
    "nnp": Target((".nnp",), ("nnabla",), "backends.nnabla.exported", ("fp32",), ("nnabla",), whole_texts=True),
}
REPORT = "export.json"
FORMAT = 1
MAX_REPORT_BYTES = 16 << 20
BATCH = 27  # inputs that are looked at together


def export(
    name: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    to: str = "onnx",
    precision: str = "fp32",
    opset: int | None = None,
    parts: Sequence[str] = PARTS,
    preprocessing: bool = False,
    pictures: Sequence[str | os.PathLike[str]] = (),
    texts: Sequence[str] = (),
    like: str | os.PathLike[str] | None = None,
    activation: str | None = None,
    heads: tuple[int, int] | None = None,
    resolution: int | None = None,
    force: bool = False,
    progress: Callable[[str], object] = lambda _: None,
) -> dict[str, Any]:
    """Write a model for another runtime into a folder, with the report of its proof, which it gives as plain data.

    Args:
        name: a model's name, a weights file, or a folder with one.
        folder: made where it is absent.
        to: one of `TARGETS`.
        precision: ``fp32``, ``fp16``, or ``int8`` by static quantisation.
        opset: the version of ONNX's operators; by default the oldest that is written, which most runtimes know.
        parts: ``image`` and ``text``, a file of each tower, and ``both``, which gives the logits of pictures and texts.
        preprocessing: of ONNX alone: graphs take decoded pictures and resize, crop and normalise them.
        pictures, texts: what int8 is calibrated on beside drawn shapes and their names.
        like, activation, heads, resolution: as for `clip.load`.
        force: replace files that are there already.
        progress: is told what is being done.

    Raises:
        ClipError: a library is missing, the model cannot be read, or the export differs from the reference by more than
            its budget (`clip.proof.BUDGETS`).
    """
    if to not in TARGETS:
        raise ClipError(f"There is no export to {to!r}; choose one of {', '.join(TARGETS)}.")
    target = TARGETS[to]
    if precision not in target.precisions:
        raise ClipError(f"There is no {precision!r} in {to}; choose one of {', '.join(target.precisions)}.")
    if opset is not None and to != "onnx":
        raise ClipError(f"An opset is of ONNX alone; leave it out, or export to onnx rather than {to}.")
    if preprocessing and to != "onnx":
        raise ClipError(f"Only graphs of ONNX preprocess; leave that out, or export to onnx rather than {to}.")
    if preprocessing and set(parts) <= {"text"}:
        raise ClipError("The text tower takes no pictures; leave preprocessing out, or export the image tower as well.")
    if (pictures or texts) and precision != "int8":
        raise ClipError(f"Nothing is calibrated in {precision}; leave pictures and texts out, or choose int8.")
    for library in reversed(target.backends):  # before the work; the extra of the last one brings the others
        backends.get(library)
    if to == "openvino" and precision == "int8":
        importlib.import_module("exporters.openvino.quantization")
    if to == "onnx":
        from exporters.onnx.storage import check_opset

        opset = check_opset(opset)
    names: dict[Part, str] = {part: part + target.endings[0] for part in PARTS if part in parts}
    inputs = [*files_of(weights_file(name)[0]), *pictures]
    for file in (
        *(part + ending for part in names for ending in target.endings),
        REPORT,
        *_files_of_before(Path(folder)),
    ):
        files.check_target(Path(folder, file), inputs, force)
        files.mode_of(Path(folder, file))  # which refuses a folder of that name
    judge = open_model(
        name,
        backend="numpy",
        precision="fp64",
        like=like,
        activation=activation,
        heads=heads,
        resolution=resolution,
    )
    with files.atomic_folder(folder, REPORT, _files_of_before(Path(folder)), replace=force) as temporary:
        report = _Export(judge, to, precision, opset, preprocessing, temporary, progress).run(names, pictures, texts)
        files.write_text(temporary / REPORT, json.dumps(report, indent=2) + "\n")
    return report


def _files_of_before(folder: Path) -> Iterator[str]:
    """The names of the files that the report of an earlier export tells of once they are asked for."""
    try:
        told = set(json.loads(files.read_regular(folder / REPORT, MAX_REPORT_BYTES))["files"])
    except (ClipError, ValueError, KeyError, TypeError, RecursionError):
        return
    possible = {part + ending for part in PARTS for target in TARGETS.values() for ending in target.endings}
    yield from sorted(told & possible)


class _Export:
    """One model on its way into a folder."""

    def __init__(
        self,
        judge: LoadedModel,
        to: str,
        precision: str,
        opset: int | None,
        preprocessing: bool,
        folder: Path,
        progress: Callable[[str], object],
    ) -> None:
        self.judge, self.to, self.precision, self.opset, self.folder = judge, to, precision, opset, folder
        self.preprocessing, self.progress = preprocessing, progress
        self.target = TARGETS[to]
        self.architecture, self.weights = judge.model.architecture, judge.model.export()
        self.description = describe(judge, precision, preprocessing)

    def run(
        self, names: Mapping[Part, str], pictures: Sequence[str | os.PathLike[str]], texts: Sequence[str]
    ) -> dict[str, Any]:
        """Write the files of these parts, run them, and give the report.

        Raises:
            ClipError: as `export`.
        """
        calibration = self._calibration(pictures, texts) if self.precision == "int8" else None
        for part, file in names.items():
            self.progress(f"writing {file}")
            self._write(part, self.folder / file, calibration)
        self.progress(f"running {' and '.join(names.values())} beside the reference")
        runs = {part: self._session(self.folder / file) for part, file in names.items()}
        budget = BUDGETS[self.precision]
        decoded = decoded_pictures(self.judge) if self.preprocessing else None
        proof = Proof(runs, self.judge, budget, decoded, self.target.whole_texts).run()
        if decoded is not None:
            proof["pixels"] = drift_of_pixels(self._preprocessing_alone(), self.judge, decoded)
        if budget.agreement is not None:
            proof["shapes"] = self._accuracy(runs, budget.agreement)
        return self.description | {
            "to": self.to,
            "opset": self.opset,
            "versions": {name: str(importlib.import_module(name).__version__) for name in self.target.libraries},
            "budget": {name: value for name, value in vars(budget).items() if value is not None},
            "proof": proof,
            "files": {
                path.name: {"bytes": path.stat().st_size, "sha256": files.sha256(path)}
                for path in sorted(self.folder.iterdir())
            },
        }

    def _write(self, part: Part, path: Path, calibration: Inputs | None) -> None:
        """Write the file of a part.

        Raises:
            ClipError: its library cannot.
        """
        try:
            if "onnx" in self.target.backends:
                self._write_graph(part, path, calibration)
            else:
                self._write_native(part, path)
        except (ClipError, OSError):
            raise
        except Exception as error:  # each library has errors of its own, of a full disk as well
            raise ClipError(
                f"Nothing was exported, since {path.name} cannot be written ({_reason(error)}); check that its folder "
                f"has space, or install newer versions of {' and '.join(self.target.libraries)}."
            ) from error

    def _session(self, path: Path) -> Run:
        """The file, ready to run.

        Raises:
            ClipError: its library cannot load it.
        """
        try:
            session: Run = importlib.import_module(self.target.session).Session(path)
            return session
        except Exception as error:  # each library has errors of its own
            raise ClipError(
                f"Nothing was exported, since {path.name} cannot be loaded ({_reason(error)}); install newer versions "
                f"of {' and '.join(self.target.libraries)}, or choose a lower --opset."
            ) from error

    def _preprocessing_alone(self) -> Run:
        """The graph that stands before those of towers, ready to run."""
        from backends.onnx.session import Session
        from exporters.onnx.preprocessing import write

        return Session(write(self.architecture.image))

    def _write_graph(self, part: Part, path: Path, calibration: Inputs | None) -> None:
        """Write a file of ONNX, or of OpenVINO, which reads one.

        Args:
            calibration: what int8 is calibrated on; None: the precision is another one.
        """
        from exporters.onnx import model, preprocessing, quantization, storage

        graph, opset = path.with_suffix(".onnx"), storage.check_opset(self.opset)
        in_onnx = self._metadata() if self.to == "onnx" else {}
        batches = None if calibration is None else _batches(part, calibration)
        if batches is None or self.to == "openvino":
            precision = self.precision if batches is None else "fp32"
            storage.save(model.write(self.architecture, self.weights, part, precision), graph, opset, in_onnx)
        else:
            exact = path.with_name(f"exact-{graph.name}")
            storage.save(model.write(self.architecture, self.weights, part), exact, opset, {})
            quantization.quantize(exact, graph, batches)
            storage.with_metadata(graph, in_onnx)
            storage.remove(exact)
        if self.preprocessing and part != "text":
            storage.put_before(graph, "image", preprocessing.write(self.architecture.image), "pixels")
        if self.to == "openvino":
            from exporters.openvino.storage import save

            save(graph, path, self._metadata(), batches)
            storage.remove(graph)

    def _write_native(self, part: Part, path: Path) -> None:
        """Write a file of what a framework's own model computes."""
        native = backends.get(self.target.backends[0]).CLIP(
            self.architecture, self.weights, device="cpu", precision=self.precision
        )
        found = canaries(self.judge)
        inputs = {"image": found.pixels[:2], "text": found.tokens[:3]}
        metadata = self._metadata()
        if self.to == "nnp" and part == "both":  # which is a weights file, too
            metadata["manifest"] = self._manifest()
        importlib.import_module(self.target.session).save(native, part, path, inputs, metadata)

    def _metadata(self) -> dict[str, Any]:
        """The description, and the tokenizer's own definition where the model carries one."""
        tokenizer = self.description["tokenizer"] | {"definition": self.judge.model.vocabulary}
        return self.description | {"tokenizer": tokenizer}

    def _manifest(self) -> str:
        """What `converters` knows and verifies a file by that has all of the model's weights."""
        tensors = {name: (array.dtype.name, sha256(array)) for name, array in self.weights.items()}
        assumed = self.judge.assumed_fields
        return Manifest(self.architecture, tensors, self.judge.model.vocabulary, assumed=assumed).to_text()

    def _calibration(self, pictures: Sequence[str | os.PathLike[str]], texts: Sequence[str]) -> Inputs:
        """What int8 is calibrated on: what is given, and what the proof is like, drawn and random."""
        _, drawn, _ = shapes(self.judge, "calibration")
        text = self.architecture.text
        # What is random goes beyond the ranges of what is real, so that other real inputs stay within the calibrated.
        of_pictures = [drawn.pixels, random_pictures(self.judge, BATCH, seed=1)]
        of_texts = [drawn.tokens, token_rows(text, BATCH, seed=1)]
        if pictures:
            of_pictures.append(np.stack([self.judge.preprocess.pixels(open_image(Path(path))) for path in pictures]))
        if texts:
            of_texts.append(self.judge.model.tokenizer.tokenize(texts, text.context_length, truncate=True))
        return Inputs(np.concatenate(of_pictures), np.concatenate(of_texts))

    def _accuracy(self, runs: Mapping[Part, Run], least: float) -> dict[str, Any]:
        """How many drawn things are named rightly in fp32 and by the export, and how many alike.

        Raises:
            ClipError: the last share is below ``least``.
        """
        exact = backends.get("onnx").CLIP(self.architecture, self.weights)
        pictures, inputs, labels = shapes(self.judge, "export")
        image, text = unit_features(exact.embed_image, inputs.pixels), unit_features(exact.embed_text, inputs.tokens)
        before = (image @ text.T).argmax(axis=1)
        found = {}
        given = pictures if self.preprocessing else inputs.pixels
        if "image" in runs:
            image = unit_features(lambda batch: runs["image"]({"image": batch})["image_features"], given)
        if "text" in runs:
            text = unit_features(lambda tokens: runs["text"]({"text": tokens})["text_features"], inputs.tokens)
        if "image" in runs or "text" in runs:
            found["towers"] = (image @ text.T).argmax(axis=1)
        if "both" in runs:
            batches = (given[start : start + BATCH] for start in range(0, len(given), BATCH))
            logits = [runs["both"]({"image": batch, "text": inputs.tokens})["logits_per_image"] for batch in batches]
            found["both"] = np.concatenate(logits).argmax(axis=1)
        agreement = min(float((after == before).mean()) for after in found.values())
        if not agreement >= least:
            raise beyond(
                f"int8 puts {agreement:.1%} of drawn pictures into the same class as fp32, and {least:.0%} is the least"
            )
        return {
            "pictures": len(labels),
            "classes": len(inputs.tokens),
            "top1_before": float((before == labels).mean()),
            "top1_after": min(float((after == labels).mean()) for after in found.values()),
            "agreement": agreement,
        }


def describe(loaded: LoadedModel, precision: str, preprocessing: bool = False) -> dict[str, Any]:
    """What a program needs to know about a model beside its graphs, as plain data for JSON."""
    architecture = loaded.model.architecture
    image, text = architecture.image, architecture.text
    result: dict[str, Any] = {
        "format": FORMAT,
        "model": loaded.name if loaded.name in MODELS else Path(loaded.name).name,
        "precision": precision,
        "architecture": architecture.to_dict(),
        "assumed": list(loaded.assumed),
        "logit_scale": loaded.logit_scale,
        "preprocessing": {
            "in_graph": preprocessing,
            "resolution": image.resolution,
            "resize": image.pixels.resize,
            "interpolation": image.pixels.interpolation,
            "channels": ["red", "green", "blue"],
            "divisor": 255,
            "mean": list(image.pixels.mean),
            "deviation": list(image.pixels.deviation),
        },
        "tokenizer": {
            "context_length": text.context_length,
            "shortest_length": text.shortest_length,
            "vocabulary_size": text.vocabulary_size,
        },
    }
    if architecture.logit_bias:
        result["logit_bias"] = float(loaded.model.export()["logit_bias"])
    with suppress(ClipError):  # the vocabulary cannot be had, and a graph needs none
        tokenizer = loaded.model.tokenizer
        result["tokenizer"] |= {
            "kind": tokenizer.kind,
            "start": tokenizer.start,
            "end": tokenizer.end,
            "padding": tokenizer.padding,
        }
        if loaded.model.vocabulary is None:
            result["tokenizer"] |= {"vocabulary": vocabulary.NAME, "vocabulary_sha256": vocabulary.SHA256}
    return result


def _batches(part: Part, inputs: Inputs) -> Iterator[dict[str, np.ndarray]]:
    """Batches of ``inputs`` for the graph of a part; the shorter of both is begun again until the longer one ends."""
    wanted = {"image": inputs.pixels, "text": inputs.tokens}
    wanted = wanted if part == "both" else {part: wanted[part]}
    for start in range(0, max(map(len, wanted.values())), BATCH):
        places = np.arange(start, start + BATCH)
        yield {name: array[places % len(array)] for name, array in wanted.items()}


def _reason(error: Exception) -> str:
    """What a library says of an error, on one line."""
    return f"{' '.join(f'{type(error).__name__}: {error}'.split()):.300}"
