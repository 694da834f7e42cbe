"""The curves of a training run as a picture."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from clip_core.files import write_bytes
from clip_core.training.progress import Metrics
from clip_core.training.run_log import EVALUATION, read_metrics

CURVE = "loss.png"


def plot(run: Path) -> Path:
    """Draw the loss and the learning rate of all steps as ``loss.png``, and the scores below them if there are any."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes a second, so only at the end of a run
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

    metrics = [line for line in read_metrics(run) if line.get("loss") is not None]
    evaluations = read_metrics(run, EVALUATION)
    steps = [line["step"] for line in metrics]
    losses = [line["loss"] for line in metrics]
    figure = Figure(figsize=(9, 9 if evaluations else 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes, *below = figure.subplots(2 if evaluations else 1, squeeze=False, sharex=True)[:, 0]
    axes.plot(steps, losses, color="tab:blue", alpha=0.25, linewidth=0.8, label="loss of each step")
    axes.plot(steps, _smooth(losses), color="tab:blue", label="loss, mean of the last 50 steps")
    axes.set(xlabel="step", ylabel="contrastive loss")
    if any(loss > 0 for loss in losses):  # batches of one pair have a loss of 0
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))  # 2 and 3 rather than 2 x 10^0
    axes.tick_params(labelbottom=True)
    axes.grid(alpha=0.3)
    rate_axes = axes.twinx()
    rate_axes.plot(steps, [line["learning_rate"] for line in metrics], color="tab:orange", label="learning rate")
    rate_axes.set_ylabel("learning rate")
    rate_axes.set_ylim(bottom=0)
    figure.legend(loc="outside upper center", ncols=3)
    for panel in below:
        _plot_scores(panel, evaluations)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_bytes(run / CURVE, picture.getvalue())
    return run / CURVE


def _plot_scores(axes: Any, evaluations: list[Metrics]) -> None:
    """Shares on the left axis, losses on the right one."""
    names = list(dict.fromkeys(name for line in evaluations for name in line if name not in ("step", "faults")))
    loss_axes = axes.twinx()
    curves = []
    for number, name in enumerate(names):
        points = [(line["step"], line[name]) for line in evaluations if line.get(name) is not None]
        own, style = (loss_axes, ".--") if name.endswith("loss") else (axes, ".-")
        curves += own.plot(*zip(*points), style, color=f"C{number}", label=name.replace("_", " "))
    axes.set(xlabel="step", ylabel="share found")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    loss_axes.set_ylabel("loss")
    loss_axes.ticklabel_format(useOffset=False)
    loss_axes.set_visible(any(name.endswith("loss") for name in names))
    axes.legend(handles=curves, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3)


def _smooth(values: list[float], window: int = 50) -> list[float]:
    return [sum(values[max(0, end - window) : end]) / min(end, window) for end in range(1, len(values) + 1)]
