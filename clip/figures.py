"""Pictures of scores: how good they are and how sure, where mistakes are made, and whether probabilities are true.

Where several backends are scored, their scores stand beside each other, and all else is drawn of the first one.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from clip_core.errors import visible
from clip_core.evaluation.agreement import Agreement
from clip_core.evaluation.intervals import Score
from clip_core.evaluation.scores import RetrievalScores, Scores, SentenceScores, ZeroShotScores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH = 120
MAX_DRAWN_PIXELS = 256  # of a picture's longer side
MOST_CELLS = 20  # classes of a drawn confusion matrix, and confusions in its place
MOST_CLASSES = 40  # of the bars of classes
LEAST_MARGIN = 1e-9  # that is drawn; smaller ones are put there
MOST_CHARACTERS = 26  # of a class's name
RIGHT, WRONG, PALE = "#2a6fbb", "#d9822b", "#b9c7d8"
BACKENDS = (RIGHT, "#6ba368", WRONG, "#8e6fb0", "#c1666b", PALE)

NO_AGREEMENT: Mapping[str, Agreement] = MappingProxyType({})

Panel = Callable[["Axes"], None]  # draws into axes


def figures(
    scores: Mapping[str, Scores], title: str, agreement: Mapping[str, Agreement] = NO_AGREEMENT
) -> dict[str, Figure]:
    """A picture of each aspect, by name.

    Args:
        scores: of each backend, by its name.
        title: what was scored on what.
        agreement: of the backends, if there are several, by what is chosen.
    """
    panels = _panels(scores, agreement)
    return {name: _figure([panel], scores, title, (8, height)) for name, (panel, height) in panels.items()}


def summary(scores: Mapping[str, Scores], title: str, agreement: Mapping[str, Agreement] = NO_AGREEMENT) -> Figure:
    """The first four aspects in one picture; arguments as of `figures`."""
    panels = list(islice(_panels(scores, agreement).values(), 4))
    rows = -(-len(panels) // 2)
    height = sum(max(height for _, height in panels[row * 2 : row * 2 + 2]) for row in range(rows))
    return _figure([panel for panel, _ in panels], scores, title, (14, height))


def png(figure: Figure) -> bytes:
    """The picture as a file."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=DOTS_PER_INCH)
    return picture.getvalue()


def small(picture: Image.Image) -> Image.Image:
    """A picture that takes little memory and is as large as it is drawn."""
    picture = picture.convert("RGB")
    return picture.reduce(max(1, max(picture.size) // MAX_DRAWN_PIXELS))


def is_share(score: str) -> bool:
    """Whether the score of this name is a share of samples, which is shown in per cent."""
    return not score.endswith("median_rank") and score not in ("spearman", "pearson")


def shown(name: str, score: Score) -> str:
    """A score and its interval as text."""
    if is_share(name):
        return f"{100 * score.value:.2f} % [{100 * score.low:.2f}, {100 * score.high:.2f}]"
    digits = 1 if name.endswith("median_rank") else 4
    return f"{score.value:.{digits}f} [{score.low:.{digits}f}, {score.high:.{digits}f}]"


def _panels(scores: Mapping[str, Scores], agreement: Mapping[str, Agreement]) -> dict[str, tuple[Panel, float]]:
    """Name -> what draws it, and its height in inches."""
    first = next(iter(scores.values()))
    found: dict[str, tuple[Panel, float]] = {
        "scores": (partial(_bars, scores=scores), 1.5 + 0.3 * len(first.scores) * (1 + len(scores)))
    }
    if agreement:
        found["agreement"] = (partial(_agreement, agreement=agreement), 4.5)
    if isinstance(first, ZeroShotScores):
        rows = min(np.count_nonzero(np.bincount(first.labels)), MOST_CLASSES)
        found |= {
            "reliability": (partial(_reliability, scores=first), 5),
            "confusion": (partial(_confusion, scores=first), 6),
            "margins": (partial(_margins_of_classes, scores=first), 4.5),
            "classes": (partial(_classes, scores=first), 1.5 + 0.24 * rows),
        }
    if isinstance(first, RetrievalScores):
        found["margins"] = (partial(_margins_of_directions, scores=first), 4.5)
    if isinstance(first, SentenceScores):
        found["pairs"] = (partial(_pairs, scores=first), 5)
    return found


def _figure(panels: Sequence[Panel], scores: Mapping[str, Scores], title: str, size: tuple[float, float]) -> Figure:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"text.parse_math": False}):  # names may have dollar signs
        figure = Figure(figsize=size, layout="constrained")
        columns = min(len(panels), 2)
        every = figure.subplots(-(-len(panels) // columns), columns, squeeze=False).ravel()
        for axes, panel in zip(every, panels):
            panel(axes)
        for axes in every[len(panels) :]:
            axes.set_axis_off()
        details = f" (details of {next(iter(scores))})" if len(scores) > 1 else ""
        figure.suptitle(visible(title + details), fontsize=11)
    return figure


def _bars(axes: Axes, scores: Mapping[str, Scores]) -> None:
    """The main scores that are no ranks, with their intervals, of each backend."""
    names = [name for name in next(iter(scores.values())).scores if not name.endswith("median_rank")]
    width = 0.8 / len(scores)
    for number, (backend, of_backend) in enumerate(scores.items()):
        found = [of_backend.scores[name] for name in names]
        values = [score.value for score in found]
        ends = np.array([[score.value - score.low for score in found], [score.high - score.value for score in found]])
        places = np.arange(len(names)) + (number - (len(scores) - 1) / 2) * width
        bars = axes.barh(
            places,
            values,
            width * 0.9,
            xerr=np.clip(ends, 0, None),  # of a skewed score, the interval may not hold the score itself
            color=BACKENDS[number % len(BACKENDS)],
            error_kw={"ecolor": "#444444", "capsize": 2, "linewidth": 1},
            label=backend,
        )
        labels = [
            f"{100 * score.value:.1f} %" if is_share(name) else f"{score.value:.3f}"
            for name, score in zip(names, found)
        ]
        axes.bar_label(bars, labels, padding=5, fontsize=8)
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names], fontsize=9)
    axes.invert_yaxis()
    lowest = min(0.0, *(of_backend.scores[name].low for of_backend in scores.values() for name in names))
    axes.set_xlim(1.1 * lowest, 1.15)
    axes.set_xticks([tick for tick in (-1, -0.5, 0, 0.25, 0.5, 0.75, 1) if tick >= lowest])
    axes.set_title("scores, and the intervals that hold 95 % of resamples", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    if len(scores) > 1:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=len(scores), fontsize=8, frameon=False)


def _agreement(axes: Axes, agreement: Mapping[str, Agreement]) -> None:
    """How clear the choices of the first backend are, and how clear those that another backend does not share."""
    edges = np.geomspace(LEAST_MARGIN, 2, 50)
    for (choice, found), colour in zip(agreement.items(), BACKENDS):
        margins = np.clip(found.margins.astype(np.float64), LEAST_MARGIN, 2)
        label = f"{choice}: {found.equal:,} of {found.samples:,} equal"
        weights = np.full(len(margins), 1 / len(margins))
        axes.hist(margins, edges.tolist(), weights=weights, color=colour, alpha=0.6, label=label)
        apart = margins[found.different]
        if len(apart):
            axes.scatter(apart, np.zeros(len(apart)), marker="x", color=colour, clip_on=False, zorder=3)
    axes.set_xscale("log")
    axes.set(xlabel="cosine of what is chosen above that of the next", ylabel="share of samples", xlim=(edges[0], 2))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("margins of choices; a cross is a choice that not all backends share", fontsize=9)
    axes.legend(loc="upper left", fontsize=8)


def _reliability(axes: Axes, scores: ZeroShotScores) -> None:
    """Accuracy by probability, before and after the temperature, above the share of pictures."""
    found = scores.calibration
    edges = found.after.edges
    share = found.after.counts / found.after.counts.sum()
    axes.bar(edges[:-1], share, np.diff(edges), align="edge", color=PALE, alpha=0.5, label="share of pictures, after")
    axes.plot([0, 1], [0, 1], "--", color="#888888", linewidth=1)
    for name, curve, colour in (
        ("as it is", found.before, WRONG),
        (f"with temperature {found.temperature:.2f}", found.after, RIGHT),
    ):
        used = curve.counts > 0
        label = f"{name}: error {100 * curve.error:.1f} %"
        axes.plot(curve.probability[used], curve.accuracy[used], color=colour, alpha=0.5, clip_on=False, label=label)
        sizes = 12 + 150 * curve.counts[used] / curve.counts.sum()  # points squared
        axes.scatter(curve.probability[used], curve.accuracy[used], sizes, color=colour, clip_on=False, zorder=3)
    axes.set(
        xlabel="probability of the class that is chosen", ylabel="share of right choices", xlim=(0, 1), ylim=(0, 1)
    )
    axes.set_title(f"calibration of the {int((~found.fitted).sum()):,} pictures that nothing is fitted to", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", fontsize=8)


def _confusion(axes: Axes, scores: ZeroShotScores) -> None:
    """The matrix of few classes, or the most frequent confusions of many."""
    labels, predicted, counts = scores.confusion
    classes = np.unique(labels)
    if len(classes) > MOST_CELLS:
        return _confusions(axes, scores)
    matrix = np.zeros((len(classes), len(classes) + 1))
    columns = np.where(np.isin(predicted, classes), np.searchsorted(classes, predicted), len(classes))
    np.add.at(matrix, (np.searchsorted(classes, labels), columns), counts)
    names = [_short(scores.names[number]) for number in classes]
    heads = [*names, "any other"]
    if not matrix[:, -1].any():
        matrix, heads = matrix[:, :-1], names
    shares = matrix / matrix.sum(axis=1, keepdims=True)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.005:
            colour = "white" if share > 0.6 else "#333333"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(heads)), heads, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(xlabel="chosen class", ylabel="class of the picture")
    axes.set_title("of 100 pictures of each class, how many are put where", fontsize=9)


def _confusions(axes: Axes, scores: ZeroShotScores) -> None:
    labels, predicted, counts = scores.confusion
    wrong = np.flatnonzero(labels != predicted)
    first = wrong[np.argsort(-counts[wrong], kind="stable")][:MOST_CELLS]
    totals = np.bincount(scores.labels, minlength=len(scores.names))
    bars = axes.barh(range(len(first)), counts[first], color=WRONG)
    axes.bar_label(bars, [f"{counts[cell]} of {totals[labels[cell]]}" for cell in first], padding=3, fontsize=8)
    names = [f"{_short(scores.names[labels[cell]])} → {_short(scores.names[predicted[cell]])}" for cell in first]
    axes.set_yticks(range(len(first)), names, fontsize=8)
    axes.set_xlim(0, 1.15 * max(counts[first], default=1))
    axes.invert_yaxis()
    axes.set_xlabel("pictures")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("the most frequent mistakes: class of the picture → chosen class", fontsize=9)


def _classes(axes: Axes, scores: ZeroShotScores) -> None:
    """The share of right ones of each class; of many classes, of the worst and the best."""
    rows = sorted((row for row in scores.classes if row.top1 is not None), key=lambda row: row.top1 or 0.0)
    title = f"top-1 of each of the {len(rows):,} classes with pictures"
    if len(rows) > MOST_CLASSES:
        half = MOST_CLASSES // 2
        title = f"top-1 of the {half} worst and the {half} best of {len(rows):,} classes"
        rows = rows[:half] + rows[-half:]
        axes.axhline(half - 0.5, color="#888888", linestyle=":")
    values = [row.top1 or 0.0 for row in rows]
    bars = axes.barh(range(len(rows)), values, color=RIGHT)
    axes.bar_label(
        bars, [f"{100 * value:.0f} % of {row.pictures}" for value, row in zip(values, rows)], padding=3, fontsize=7
    )
    axes.set_yticks(range(len(rows)), [_short(row.name) for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1.15)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=9)


def _margins_of_classes(axes: Axes, scores: ZeroShotScores) -> None:
    margins, right = scores.comparison.margins, scores.comparison.ranks == 0
    _margins(axes, {"right": (margins[right], RIGHT), "wrong": (margins[~right], WRONG)}, len(margins))
    axes.set(xlabel="similarity of the own class above that of the nearest other one", ylabel="share of all pictures")


def _margins_of_directions(axes: Axes, scores: RetrievalScores) -> None:
    of_images, of_texts = scores.image_to_text.comparison.margins, scores.text_to_image.comparison.margins
    groups = {"pictures looking for a caption": (of_images, RIGHT), "captions looking for a picture": (of_texts, WRONG)}
    _margins(axes, groups)
    axes.set(xlabel="similarity of the nearest own target above that of the nearest other one", ylabel="share of each")


def _margins(axes: Axes, groups: Mapping[str, tuple[np.ndarray, str]], total: int | None = None) -> None:
    """How clear choices are, of each group with its colour.

    Args:
        total: the number that is 1 in the picture; by default that of each group.
    """
    groups = {name: (values[np.isfinite(values)], colour) for name, (values, colour) in groups.items()}
    every = np.concatenate([[0.0], *(values for values, _ in groups.values())])
    width = (float(np.ptp(every)) or 1.0) / 50  # 0 is an edge, so that no bar is right and wrong
    edges = width * np.arange(np.floor(every.min() / width), np.floor(every.max() / width) + 2)
    for name, (values, colour) in groups.items():
        weights = np.full(len(values), 1 / (total or max(len(values), 1)))
        axes.hist(values, edges.tolist(), weights=weights, color=colour, alpha=0.6, label=f"{name}: {len(values):,}")
    axes.axvline(0, color="#888888", linewidth=1, linestyle="--")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("how clear the choices are", fontsize=9)
    axes.legend(fontsize=8)


def _pairs(axes: Axes, scores: SentenceScores) -> None:
    axes.scatter(scores.gold, scores.similarities, s=8, color=RIGHT, alpha=0.35, linewidths=0)
    axes.set(xlabel="likeness that people have judged", ylabel="cosine of the features")
    axes.grid(alpha=0.3)
    axes.set_title(f"{len(scores.gold):,} pairs of sentences", fontsize=9)


def _short(name: str) -> str:
    text = visible(name)
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"
