"""``clip export``: a model for another runtime, with the proof that it gives the same numbers."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from clip.command.output import Activation, Heads, Json, Like, console, errors, heads_of, print_json, print_table
from clip_core.errors import ClipError
from clip_core.files import read_regular

MAX_TEXTS_BYTES = 16 << 20


class Target(str, Enum):
    onnx = "onnx"
    openvino = "openvino"
    torchscript = "torchscript"
    torch_export = "torch-export"
    paddle = "paddle"
    nnp = "nnp"


class Precision(str, Enum):
    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


def run(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model's name, a weights file in any layout, or a folder with one.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder for the files; made where it is absent.")],
    to: Annotated[Target, typer.Option(help="onnx and openvino need no framework, the others theirs.")] = Target.onnx,
    precision: Annotated[Precision, typer.Option(help="int8 is calibrated on pictures and texts.")] = Precision.fp32,
    opset: Annotated[int | None, typer.Option(help="The version of ONNX's operators; by default 17.")] = None,
    image: Annotated[bool, typer.Option("--image", help="Write the image tower; by default all three.")] = False,
    text: Annotated[bool, typer.Option("--text", help="Write the text tower.")] = False,
    both: Annotated[bool, typer.Option("--both", help="Write both towers as one graph that ends in logits.")] = False,
    preprocessing: Annotated[
        bool,
        typer.Option(
            "--preprocessing", help="Let graphs of ONNX take decoded pictures, and resize them as Pillow does."
        ),
    ] = False,
    calibration_picture: Annotated[
        list[Path] | None,
        typer.Option(help="For int8, beside drawn shapes; may be given several times."),
    ] = None,
    calibration_texts: Annotated[
        Path | None, typer.Option(help="For int8, beside names of shapes: a UTF-8 file with one text a line.")
    ] = None,
    like: Like = None,
    activation: Activation = None,
    heads: Heads = None,
    resolution: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Along one side of a picture, in place of the model's own.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there already.")] = False,
    json: Json = False,
) -> None:
    """Export a model; it is run at once beside the float64 reference and appears only if it gives the same numbers."""
    from clip.export import PARTS, export

    chosen = [part for part, asked in zip(PARTS, (image, text, both)) if asked]
    with errors.status(f"reading {model}") as status:
        report = export(
            model,
            output,
            to=to.value,
            precision=precision.value,
            opset=opset,
            parts=chosen or PARTS,
            preprocessing=preprocessing,
            pictures=calibration_picture or (),
            texts=() if calibration_texts is None else _texts(calibration_texts),
            like=like,
            activation=activation,
            heads=heads_of(heads),
            resolution=resolution,
            force=force,
            progress=status.update,
        )
    if json:
        print_json(report)
        return
    print_table(["file", "bytes"], [[str(output / name), facts["bytes"]] for name, facts in report["files"].items()])
    proof = report["proof"]
    for stage, difference in proof["largest_difference"].items():
        cosine = proof["least_cosine"].get(stage)
        console.print(
            f"{stage.replace('_', ' ')}: differs from the reference by at most {difference:.1e}"
            + ("" if cosine is None else f", least cosine {cosine:.6f}")
        )
    console.print(f"top-1 as of the reference: {proof['top1_agreement']:.1%}")
    if pixels := proof.get("pixels"):
        console.print(f"pixels: {pixels['share_that_differs']:.1e} of all values differ from Pillow's")
    if shapes := proof.get("shapes"):
        console.print(
            f"shapes: top-1 {shapes['top1_before']:.1%} before and {shapes['top1_after']:.1%} after, alike in "
            f"{shapes['agreement']:.1%} of {shapes['pictures']} pictures"
        )


def _texts(path: Path) -> list[str]:
    try:
        lines = read_regular(path, MAX_TEXTS_BYTES).decode().splitlines()
    except UnicodeDecodeError as error:
        raise ClipError(f"{path} is not UTF-8 text: {error}; save it as UTF-8.") from error
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise ClipError(f"{path} has no text in it; write one on each line.")
    return texts
