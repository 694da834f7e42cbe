"""The page and the chart of the figures that `run.py` keeps: benchmarks.json -> benchmarks.md and benchmarks.svg."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness import compilations
from subjects import SUBJECTS, Subject

Figures = Mapping[str, Any]  # of one subject, as its script writes them

FRAMEWORKS = {"torch": "PyTorch", "paddle": "Paddle", "nnabla": "NNabla", "numpy": "NumPy"}
COLOURS = {"torch": "#e4572e", "paddle": "#2b59c3", "nnabla": "#2a9d8f", "numpy": "#8a8d91"}
CHARTED = {  # the subject and the kind of work -> its name in the chart
    ("image", "image, batch 64"): "64 pictures",
    ("image", "image, batch 16"): "16 pictures",
    ("image", "image, batch 1"): "1 picture",
    ("text", "short captions"): "64 short captions",
    ("text", "captions"): "64 captions",
    ("text", "classifier"): "zero-shot classifier",
    ("training", "training step"): "training step",
}

INTRODUCTION = """# Benchmarks

`make bench` measures everything on this page again and writes it; `make bench ONLY=text` measures one subject.
Contenders run in processes of their own with the same weights, inputs and threads, and take turns in rounds, so that
a busy machine is unfair to none. A ratio is the speed divided by that of the peer, named first, in the same run: that
of the best call, and in brackets that of the median call. Weights are random, and nothing is downloaded. Figures of
other machines differ.

![Speed of each framework and kind of work, open_clip = 1](benchmarks.svg)
"""


def write(folder: Path) -> None:
    """Draw the page and the chart from the figures in ``folder``."""
    figures = json.loads((folder / "benchmarks.json").read_text())
    (folder / "benchmarks.md").write_text("\n".join(lines(figures)) + "\n", encoding="utf-8")
    draw(figures, folder / "benchmarks.svg")


def lines(figures: Mapping[str, Figures]) -> Iterator[str]:
    """The lines of the page."""
    yield INTRODUCTION
    for name, subject in SUBJECTS.items():
        if name in figures:
            yield from section(name, subject, figures[name])
    yield "## Machines and versions\n"
    yield "| subject | measured | took | processor | cores | system | Python |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for name, own in figures.items():
        facts, day, took = own["machine"], own["measured"], own["took_seconds"]
        system = f"{facts['system']} | {facts['python']}"
        yield f"| {name} | {day} | {took} s | {facts['processor']} | {facts['cores']} | {system} |"
    versions = {package: version for own in figures.values() for package, version in own["machine"]["versions"].items()}
    yield "\n" + ", ".join(f"{package} {version}" for package, version in versions.items()) + "."


def section(name: str, subject: Subject, figures: Figures) -> Iterator[str]:
    """A heading, what is measured, the tables, and what limits the figures."""
    settings = ", ".join(f"{key} {value}" for key, value in figures["settings"].items() if key != "unit")
    yield f"## {subject.title}\n\n{subject.about}\n"
    tables = {"growth": slopes, "memory": peaks}.get(name, ratios)
    yield from tables(figures)
    yield f"\n`benchmarks/{subject.script}`: {settings}."
    for contender, package in figures.get("left_out", {}).items():
        yield f"{contender} is left out, since {package} was not installed."
    for limit in subject.limits:
        yield f"\n* {limit}"
    yield ""


def ratios(figures: Figures) -> Iterator[str]:
    """A table of the speeds relative to the first contender, and one of each other figure that there is."""
    works = figures["works"]
    base, *others = next(iter(works.values()))
    yield from table(
        ["", f"{base}, {figures['settings']['unit']}/s", *others],
        {
            kind: [f"{rows[base]['best']:.3g}", *(ratio(rows.get(name)) for name in others)]
            for kind, rows in works.items()
        },
    )
    for key, title, form in (("peak_memory_mib", "peak memory, MiB", ".0f"), ("difference", "difference", ".1g")):
        if all(key in row for rows in works.values() for row in rows.values()):
            yield ""
            yield from table(
                [title, base, *others],
                {
                    kind: [format(rows[name][key], form) if name in rows else "" for name in (base, *others)]
                    for kind, rows in works.items()
                },
            )
    for name, seconds in compilations(works).items():
        yield f"\n{name} was compiled in {seconds:.0f} s, which do not count."


def ratio(row: Mapping[str, float] | None) -> str:
    return "" if row is None else f"**{row['ratio_of_best']:.2f}** ({row['ratio_of_median']:.2f})"


def slopes(figures: Figures) -> Iterator[str]:
    """A table of the slopes, with the seconds at the smallest and the largest size."""
    cells = {}
    for kind, rows in figures["works"].items():
        for name, row in rows.items():
            ends = [f"{row['sizes'][end]:.4g}: {row['seconds'][end]:.3g} s" for end in (0, -1)]
            cells[f"{kind}, {name}"] = [f"**{row['slope']:.2f}**", *ends]
    yield from table(["", "slope", "smallest", "largest"], cells)


def peaks(figures: Figures) -> Iterator[str]:
    """A table of the peaks of memory."""
    yield from table(
        ["", "peak, weights = 1", "peak, MiB", "kept, MiB"],
        {
            work: [f"**{row['ratio']:.2f}**", f"{row['peak_mib']:.0f}", f"{row['kept_mib']:.0f}"]
            for work, row in figures["works"].items()
        },
    )


def table(heads: list[str], rows: Mapping[str, list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield "| --- " * len(heads) + "|"
    for name, cells in rows.items():
        yield f"| {name} | {' | '.join(cells)} |"


def draw(figures: Mapping[str, Figures], path: Path) -> None:
    """A group of bars for each kind of work, one for each framework, on a logarithmic axis where open_clip is 1."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "triclip", "font.size": 10}  # equal figures give equal bytes
    from matplotlib import pyplot

    works = {
        label: figures[subject]["works"][kind]
        for (subject, kind), label in CHARTED.items()
        if kind in figures.get(subject, {}).get("works", {})
    }
    names = [name for name in FRAMEWORKS if any(name in rows for rows in works.values())]
    figure, axes = pyplot.subplots(figsize=(8, 0.8 + 0.85 * max(1, len(works))), layout="constrained")
    height = 0.8 / max(1, len(names))
    for place, name in enumerate(names):
        found = {number: rows[name]["ratio_of_best"] for number, rows in enumerate(works.values()) if name in rows}
        places = [number + (place - (len(names) - 1) / 2) * height for number in found]
        # A bar on a logarithmic axis starts where open_clip is.
        widths = [ratio - 1 for ratio in found.values()]
        axes.barh(places, widths, height * 0.9, left=1, color=COLOURS[name], label=FRAMEWORKS[name])
        for where, value in zip(places, found.values()):
            side = "left" if value >= 1 else "right"
            text = f" {value:.2f} " if value < 10 else f" {value:.0f} "
            axes.text(value, where, text, va="center", ha=side, fontsize=8, color="#333333")
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.axvline(1, color="#333333", linewidth=1)
    axes.set_yticks(range(len(works)), list(works))
    axes.invert_yaxis()
    axes.set_xlabel("speed, open_clip on PyTorch = 1 (float32, ViT-B/32, CPU)")
    axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    axes.set_xticks(
        [ratio for ratio in (0.25, 0.5, 1, 2, 5, 10, 20, 50) if axes.get_xlim()[0] < ratio < axes.get_xlim()[1]]
    )
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e3e3e3")
    axes.set_axisbelow(True)
    if names:
        figure.legend(loc="outside upper center", ncols=len(names), frameon=False)
    figure.savefig(path, facecolor="white", metadata={"Date": None})
    pyplot.close(figure)
