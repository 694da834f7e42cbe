"""A folder that tells of an evaluation: numbers for programs, tables and pictures for people, and a row a sample.

* ``report.json``: all that was measured, and on what (below)
* ``report.md``: the same as tables, as far as people read it, with the pictures
* ``scores.png``, ``agreement.png``, ``reliability.png``, ``confusion.png``, ...: `clip.figures`
* ``samples.parquet``: the columns of `clip_core.evaluation.scores`, and ``backend``; needs pyarrow

``report.json`` has

* ``format``: 1
* ``data``, ``model``, ``precision``, ``limit``, ``seed``: what was scored, with the fingerprint of the data and the
  SHA-256 of the model's files
* ``versions``: of the packages that numbers depend on
* ``results``: of each backend, by its name

  * ``kind``: ``zero_shot``, ``retrieval`` or ``sentences``, and the number of ``pictures``, ``classes``, ``captions``
    or ``pairs``
  * ``scores``: name -> ``value``, and ``low`` and ``high``, the ends of its 95 % interval
  * ``calibration`` of classes: the fitted ``temperature``; ``expected_error`` in bins of equal width,
    ``adaptive_error`` in bins of equally many pictures and ``negative_log_likelihood``, each ``before`` and ``after``
    it, on the ``pictures`` that it is not fitted to; and ``reliability``, the bins
  * ``sets``: the allowed ``error``, both bounds, and ``coverage``, ``size``, ``none`` and ``none_without_own``
    (`clip_core.evaluation.conformal.Sets`)
  * ``per_class``: ``name``, ``pictures``, ``top1``, the most frequent ``mistake`` and the number ``mistaken`` for it
  * ``confusion``: ``label``, ``predicted`` and number of ``pictures`` of each cell that is not 0; classes count from 0
  * ``faults``: what was left out -> why
* ``agreement`` of several backends: what is chosen -> the number of ``samples``, the ``equal_share`` for which all
  choose the same, and the smallest and largest margin among the others
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from clip.figures import NO_AGREEMENT, figures, png, shown, summary
from clip_core import files
from clip_core.errors import ClipError, visible
from clip_core.evaluation.agreement import Agreement
from clip_core.evaluation.intervals import Score
from clip_core.evaluation.scores import Columns, Scores
from clip_core.installation import requirement

REPORT = "report.json"
TABLES = "report.md"
SAMPLES = "samples.parquet"
PICTURES = tuple(
    f"{name}.png" for name in ("scores", "agreement", "reliability", "confusion", "margins", "classes", "pairs")
)
MOST_ROWS = 20  # of a table of classes, mistakes or faults


def check(
    folder: str | os.PathLike[str] | None = None, plot: str | os.PathLike[str] | None = None, force: bool = False
) -> None:
    """Refuse a report that could not be written, before the work.

    Args:
        folder: as of `write`.
        plot: as of `draw`.
        force: replace what is there.

    Raises:
        ClipError: a library is missing, a file is there already or in the place of a folder, the picture has no folder,
            or is to be something other than PNG.
    """
    if plot is not None and Path(plot).suffix.lower() != ".png":
        raise ClipError(f"{plot} cannot be drawn: only PNG files are; give a name that ends in .png.")
    if (plot is not None or folder is not None) and find_spec("matplotlib") is None:
        raise ClipError(f"Drawing needs matplotlib; install it with: pip install {requirement('plot')}.")
    if folder is not None and find_spec("pyarrow") is None:
        raise ClipError(f"A report of samples needs pyarrow; install it with: pip install {requirement('data')}.")
    if plot is not None:
        files.check_target(plot, force=force)
        if not Path(plot).absolute().parent.is_dir():
            raise ClipError(f"{plot} cannot be written: there is no such folder; make it, or give another name.")
    if folder is not None:
        place = next(path for path in (Path(folder), *Path(folder).parents) if path.exists())
        if not place.is_dir():
            raise ClipError(f"{folder} cannot be written to: {place} is a file; give another folder.")
    if folder is not None and not force and Path(folder, REPORT).is_file():
        raise ClipError(
            f"{Path(folder, REPORT)} is there already; give another folder, or --force (force=True) to replace the "
            "report: the features that the folder keeps are used again either way."
        )


def write(
    folder: str | os.PathLike[str],
    report: Mapping[str, Any],
    scores: Mapping[str, Scores],
    samples: Mapping[str, Columns],
    agreement: Mapping[str, Agreement] = NO_AGREEMENT,
    force: bool = False,
) -> None:
    """Write all files of a report, or none. Other files in the folder stay.

    Args:
        folder: made where it is absent.
        report: as ``report.json`` has it.
        scores: of each backend, by its name.
        samples: a value for each sample by column, of each backend.
        agreement: of several backends, by what is chosen.
        force: replace a report that is there.

    Raises:
        ClipError: a file is there already, or cannot be written.
    """
    drawn = figures(scores, title(report), agreement)
    with files.atomic_folder(folder, REPORT, (TABLES, SAMPLES, *PICTURES), replace=force) as temporary:
        for name, figure in drawn.items():
            files.write_bytes(temporary / f"{name}.png", png(figure))
        files.write_bytes(temporary / SAMPLES, _parquet(samples))
        files.write_text(temporary / TABLES, markdown(report, [f"{name}.png" for name in drawn]))
        files.write_text(temporary / REPORT, json.dumps(report, indent=2, allow_nan=False) + "\n")


def draw(
    target: str | os.PathLike[str],
    report: Mapping[str, Any],
    scores: Mapping[str, Scores],
    agreement: Mapping[str, Agreement] = NO_AGREEMENT,
    force: bool = False,
) -> None:
    """Write one PNG file that sums up the scores; arguments as of `write`.

    Raises:
        ClipError: the file is there already, or cannot be written.
    """
    with files.atomic_open(target, replace=force) as file:
        file.write(png(summary(scores, title(report), agreement)))


def title(report: Mapping[str, Any]) -> str:
    """What was scored on what."""
    data = report["data"].get("kind", "data of its own")
    return f"{report['model']['name']} on {data}: {report['task']}, {', '.join(report['results'])}"


def markdown(report: Mapping[str, Any], pictures: Sequence[str] = ()) -> str:
    """The tables of a report, and these pictures of its folder."""
    results = report["results"]
    first = next(iter(results.values()))
    names = list(first["scores"])
    parts = [
        f"# {_cell(title(report))}",
        _table(
            ["score", *results],
            [
                [_words(name), *(shown(name, Score(**result["scores"][name])) for result in results.values())]
                for name in names
            ],
        ),
        "In brackets: the middle 95 % of the scores of 1,000 resamples of the data.",
        "## What was scored",
        _table(["", ""], _settings(report)),
    ]
    if report["agreement"]:
        parts += ["## Agreement of backends", _agreement(report["agreement"])]
    for backend, result in results.items():
        of = f" ({backend})" if len(results) > 1 else ""
        if "calibration" in result:
            parts += [f"## Calibration{of}", _calibration(result["calibration"])]
            parts += [f"## Sets of classes, and none of these{of}", _sets(result["sets"])]
            parts += _classes(result, of)
        if result["faults"]:
            rows = list(result["faults"].items())
            parts += [f"## Left out{of}", f"{len(rows)} in all.", _table(["what", "why"], rows[:MOST_ROWS])]
    parts += [f"![{Path(name).stem}]({name})" for name in pictures]
    return "\n\n".join(parts) + "\n"


def _settings(report: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Names beside values of all that tells what was scored."""
    model, data = report["model"], report["data"]
    return [
        ("model", model["name"]),
        *((f"SHA-256 of {name}", digest) for name, digest in model["files"].items()),
        *((f"assumed: {field}", "the files do not tell it") for field in model["assumed"]),
        *((f"data: {_words(name)}", value) for name, value in data.items() if value is not None),
        *((name, report[name]) for name in ("precision", "limit", "seed") if report[name] is not None),
        *((f"version of {name}", version) for name, version in report["versions"].items()),
    ]


def _agreement(agreement: Mapping[str, Any]) -> str:
    rows = []
    for choice, found in agreement.items():
        ends = [found["smallest_margin_of_different"], found["largest_margin_of_different"]]
        margins = "" if None in ends else f"{ends[0]:.1e} to {ends[1]:.1e}"
        rows.append([choice, f"{found['samples']:,}", _per_cent(found["equal_share"], 3), margins])
    return _table(["choice", "samples", "all choose the same", "margins of the others"], rows)


def _calibration(found: Mapping[str, Any]) -> str:
    def row(name: str, form: str) -> list[str]:
        return [_words(name), *(format(found[name][moment], form) for moment in ("before", "after"))]

    table = _table(
        ["", "as it is", f"with temperature {found['temperature']:.3f}"],
        [row("expected_error", ".4f"), row("adaptive_error", ".4f"), row("negative_log_likelihood", ".4f")],
    )
    return f"{table}\n\nOf {found['pictures']:,} pictures. The temperature is fitted to all others."


def _sets(found: Mapping[str, Any]) -> str:
    rows = [
        ("allowed error", _per_cent(found["error"])),
        ("sets with the picture's class", shown("coverage", Score(**found["coverage"]))),
        ("classes in a set, mean", f"{found['size']['value']:.2f}"),
        ('"none of these" of pictures that show a class', shown("none", Score(**found["none"]))),
        ("the same, if their own class is not offered", shown("none", Score(**found["none_without_own"]))),
    ]
    return _table(["", ""], rows)


def _classes(result: Mapping[str, Any], of: str) -> list[str]:
    """The classes that are found worst, and the most frequent mistakes."""
    names = [row["name"] for row in result["per_class"]]
    used = [row for row in result["per_class"] if row["top1"] is not None]
    used.sort(key=lambda row: row["top1"])
    cells = zip(*(result["confusion"][name] for name in ("label", "predicted", "pictures")))
    mistakes = sorted((cell for cell in cells if cell[0] != cell[1]), key=lambda cell: -cell[2])
    parts = [
        f"## Classes that are found worst{of}",
        _table(
            ["class", "pictures", "top-1", "most often taken for"],
            [
                [
                    row["name"],
                    row["pictures"],
                    _per_cent(row["top1"]),
                    f"{row['mistake']} ({row['mistaken']})" if row["mistake"] else "",
                ]
                for row in used[:MOST_ROWS]
            ],
        ),
    ]
    if mistakes:
        rows = [[names[label], names[predicted], pictures] for label, predicted, pictures in mistakes[:MOST_ROWS]]
        parts += [f"## Most frequent mistakes{of}", _table(["class", "taken for", "pictures"], rows)]
    return parts


def _table(heads: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(_cell(value) for value in line)} |" for line in lines)


def _cell(value: Any) -> str:
    """A text that is neither markup nor the end of a cell."""
    text = visible(str(value))
    return "".join(f"\\{character}" if character in "\\`*_[]<>|#$&~" else character for character in text)


def _per_cent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _parquet(samples: Mapping[str, Columns]) -> bytes:
    """The rows of all backends as a file."""
    import pyarrow as pa
    import pyarrow.parquet

    def array(column: np.ndarray | list[str]) -> pa.Array:
        if isinstance(column, np.ndarray):
            return pa.array(column)
        return pa.array([visible(text) for text in column], pa.string())

    tables = []
    for backend, columns in samples.items():
        arrays = {name: array(column) for name, column in columns.items()}
        rows = len(next(iter(columns.values())))
        tables.append(pa.table({"backend": pa.array([backend] * rows, pa.string()), **arrays}))
    content = io.BytesIO()
    pyarrow.parquet.write_table(pa.concat_tables(tables), content)
    return content.getvalue()
