"""The picture of README.md, drawn from what the embedded model gives in every framework.

`make figures` runs it. The pictures and the probabilities are those of `clip demo`, the table is that of `clip parity`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from clip import parity, samples
from clip.api import open_model
from clip.zero_shot import Classifier
from clip_core.image import open_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TARGET = Path(__file__).with_name("agreement.png")
NAMES = {"numpy": "NumPy", "torch": "PyTorch", "paddle": "Paddle", "nnabla": "NNabla"}
COLOURS = {"numpy": "#9aa5b1", "torch": "#d9622b", "paddle": "#2a6fbb", "nnabla": "#4f9d69"}
PICTURES = {  # by caption: the labels between which the model chooses
    "a large solid red circle": ("red circle", "large circle", "blue circle", "red ring"),
    "a large striped red star": ("striped red star", "red star", "red circle", "turquoise star"),
    "three small dotted pink hearts": ("three hearts", "three pink hearts", "two pink hearts", "pink heart"),
}
INK, PALE = "#22303c", "#e3e8ed"


def main() -> None:
    paths = samples.pictures()
    report = parity.compare("shapes", list(NAMES))
    models = {name: open_model("shapes", backend=name, device="cpu") for name in NAMES}
    with rc_context({"font.size": 10, "text.color": INK, "axes.edgecolor": PALE}):
        figure = Figure(figsize=(11, 4.6), layout="constrained", facecolor="white")
        above, below = figure.subfigures(2, 1, height_ratios=(3, 2))
        axes = above.subplots(1, 2 * len(PICTURES), width_ratios=[3, 4] * len(PICTURES))
        for number, (caption, labels) in enumerate(PICTURES.items()):
            picture = open_image(paths[caption])
            pixels = models["numpy"].preprocess.pixels(picture)[None]
            axes[2 * number].imshow(picture)
            axes[2 * number].set_axis_off()
            _bars(
                axes[2 * number + 1],
                labels,
                {
                    name: Classifier(model, labels, "{}").score(pixels).probabilities[0]
                    for name, model in models.items()
                },
            )
        handles, names = axes[1].get_legend_handles_labels()
        above.legend(handles, names, loc="outside upper center", ncols=len(NAMES), frameon=False)
        _table(below.subplots(), report)
        figure.savefig(TARGET, dpi=110, metadata={"Software": None})
    print(f"wrote {TARGET}")


def _bars(axes: Axes, labels: Sequence[str], probabilities: dict[str, np.ndarray]) -> None:
    """For each label, a bar of each framework."""
    height = 0.8 / len(probabilities)
    for row, (name, values) in enumerate(probabilities.items()):
        places = np.arange(len(labels)) + (row - (len(probabilities) - 1) / 2) * height
        axes.barh(places, values, 0.9 * height, color=COLOURS[name], label=NAMES[name])
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.02)
    axes.set_xticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    axes.tick_params(length=0, labelcolor=INK)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


def _table(axes: Axes, report: parity.Report) -> None:
    axes.set_axis_off()
    head = ["difference from float64", "tokens", "pixels", "image embedding", "text embedding", "logits"]
    stages = ("image_embedding", "text_embedding", "logits")
    rows = [
        [
            NAMES[found.backend],
            *("equal" if equal else "differ" for equal in (found.tokens_equal, found.pixels_equal)),
            *(f"{getattr(found, stage):.1e}" for stage in stages),
        ]
        for found in report.comparisons
    ]
    rows.append(["bound", "equal", "equal", *(f"{report.bounds[stage]:.1e}" for stage in stages)])
    table = axes.table(rows, colLabels=head, cellLoc="center", bbox=(0.04, 0.0, 0.92, 0.98), edges="horizontal")
    table.auto_set_font_size(False)
    table.set_fontsize(10)
    for (row, column), cell in table.get_celld().items():
        cell.set_edgecolor(PALE)
        cell.get_text().set_color(INK if row < len(rows) else "#7b8794")
        if row == 0 or column == 0:
            cell.get_text().set_weight("bold")
    axes.set_title(f"clip parity: {'PASS' if report.passed else 'FAIL'}", fontsize=11, loc="center")


if __name__ == "__main__":
    main()
