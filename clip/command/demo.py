"""``clip demo``: convert, classify and compare with the embedded model, in every framework that is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

import converters
from backends import NAMES, OF_SUFFIX, available, remedy
from clip import samples
from clip.api import open_model, weights_file
from clip.command.output import console, print_table
from clip.command.parity import print_report
from clip.parity import Report, compare_models, sample_inputs
from clip.zero_shot import Classifier
from clip_core.errors import ClipError
from clip_core.image import open_image

LABELS = (
    "red circle",
    "blue circle",
    "yellow triangle",
    "turquoise star",
    "striped red star",
    "yellow crescent",
    "three pink hearts",
    "green square left of an orange ring",
)


def run(
    output: Annotated[Path, typer.Option(help="The folder for the converted files.")] = Path("demo-output"),
) -> None:
    """Convert the embedded model, classify drawn pictures in every framework, and compare the numbers."""
    original, _ = weights_file("shapes")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ClipError(
            f"The folder {output} cannot be made: {error.strerror}; choose another with --output."
        ) from error
    files = {"numpy": original, "torch": original, "paddle": output / "shapes.pdparams", "nnabla": output / "shapes.h5"}
    for target in (files["paddle"], files["nnabla"]):
        written = converters.convert(original, target, force=True)
        console.print(
            f"converted {original.name} to {target} for {OF_SUFFIX[target.suffix]}: {written.tensors} tensors, "
            f"read back, largest difference {written.max_abs_difference}"
        )
    names = [name for name in ("numpy", "torch", "paddle", "nnabla") if name in available()]
    for missing in sorted(set(NAMES) - set(names)):
        console.print(f"going on without {missing}; {remedy(missing)}")

    loaded = {name: open_model(files[name], backend=name, device="cpu") for name in names}
    pictures = samples.pictures()
    inputs = np.stack([loaded["numpy"].preprocess.pixels(open_image(path)) for path in pictures.values()])
    scores = {name: Classifier(model, LABELS, "{}").score(inputs) for name, model in loaded.items()}
    first = scores["numpy"].probabilities
    rows = []
    for index, caption in enumerate(pictures):
        best = int(first[index].argmax())
        rows.append([caption, LABELS[best], *(f"{scores[name].probabilities[index, best]:.6f}" for name in names)])
    print_table(["picture", "nearest label", *names], rows, title="Probabilities in each framework")

    judge = open_model(original, backend="numpy", precision="fp64")
    report = compare_models(
        str(original), judge.model, (model.model for model in loaded.values()), sample_inputs(judge)
    )
    print_report(report, verdict=False)
    print(_verdict(report))
    if not report.passed:
        raise typer.Exit(1)


def _verdict(report: Report) -> str:
    names = ",".join(comparison.backend for comparison in report.comparisons)
    worst = np.max([comparison.logits for comparison in report.comparisons])  # unlike max, never hides a NaN
    return f"parity: {'PASS' if report.passed else 'FAIL'} backends={names} max_logit_diff={worst:.2e}"
