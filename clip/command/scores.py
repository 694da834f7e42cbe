"""Scores in a terminal."""

from __future__ import annotations

from collections.abc import Mapping

from clip.command.output import print_table
from clip.figures import shown
from clip_core.evaluation.scores import Scores, ZeroShotScores


def print_scores(scores: Mapping[str, Scores]) -> None:
    """The scores of each backend with their intervals, and what is known of probabilities.

    Args:
        scores: by backend.
    """
    first = next(iter(scores.values()))
    rows = [
        [name.replace("_", " "), *(shown(name, of_backend.scores[name]) for of_backend in scores.values())]
        for name in first.scores
    ]
    classified = [of_backend for of_backend in scores.values() if isinstance(of_backend, ZeroShotScores)]
    if classified:
        calibrations, sets = [each.calibration for each in classified], [each.sets for each in classified]
        share = f"{100 * (1 - sets[0].error):g} %"
        rows += [
            ["calibration error", *(f"{100 * each.before.error:.2f} %" for each in calibrations)],
            ["  with a temperature of its own", *(f"{100 * each.after.error:.2f} %" for each in calibrations)],
            ["  the temperature", *(f"{each.temperature:.3f}" for each in calibrations)],
            [f"sets of classes for {share}", *(shown("coverage", each.coverage) for each in sets)],
            ["  classes in a set", *(f"{each.size.value:.2f}" for each in sets)],
            ["  none of these", *(shown("none", each.none) for each in sets)],
            ["  the same, without the own class", *(shown("none", each.none_without_own) for each in sets)],
        ]
    print_table(["score", *scores], rows)
