"""``clip evaluate``: the scores of a model on published data sets, one sub-command for each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import backends
from clip.command.output import (
    Activation,
    Device,
    Heads,
    Json,
    Like,
    Precision,
    console,
    heads_of,
    print_json,
    shortened,
)
from clip.command.progress import Bar
from clip_core.data.families import FAMILIES
from clip_core.data.settings import Section
from clip_core.errors import ClipError
from clip_core.evaluation.sets import SETS

if TYPE_CHECKING:
    from clip.evaluation import Evaluation
    from clip_core.evaluation.tasks import Task

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Score a model on a data set, in one backend or in several.",
)

probes = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Score a linear probe: a logistic regression on the features of training pictures.",
)

Model = Annotated[str, typer.Option(metavar="NAME|FILE", help="A model's name, a weights file, or a folder with one.")]
Backends = Annotated[
    str | None,
    typer.Option(
        "--backend",
        "--backends",
        help="torch, paddle, nnabla or numpy, several with commas, or all that are installed; several are compared.",
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Score the first N pictures or pairs alone.", metavar="N")]
BatchSize = Annotated[int, typer.Option(min=1, help="Pictures that are encoded at once.")]
Workers = Annotated[
    int | None, typer.Option(min=0, max=256, help="Processes that decode pictures; by default as many as are worth it.")
]
FaultShare = Annotated[float, typer.Option(min=0, max=1, help="Share of the pictures that may be unusable.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the confidence intervals and of what is drawn.")]
Output = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Write report, figures, samples, and the features, which a later run reuses."),
]
Plot = Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the scores.")]
Disagreement = Annotated[
    float, typer.Option(min=0, max=1, help="Share of samples for which backends may choose differently, else exit 1.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace a report that is there.")]
Train = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="A folder like DATA with the training pictures; by default the set's own."),
]
Shots = Annotated[int | None, typer.Option(min=1, help="Training pictures of each class; by default all.", metavar="K")]
Data = Annotated[Path, typer.Option(metavar="DIR", help="The folder of the files as they are published.")]


def run(
    task: Callable[[], Any],
    *,
    model: Model = "shapes",
    backend: Backends = None,
    device: Device = None,
    precision: Precision = "fp32",
    like: Like = None,
    activation: Activation = None,
    heads: Heads = None,
    limit: Limit = None,
    batch_size: BatchSize = 64,
    workers: Workers = None,
    fault_share: FaultShare = 0.01,
    seed: Seed = 0,
    output: Output = None,
    plot: Plot = None,
    force: Force = False,
    max_disagreement: Disagreement = 0.001,
    json: Json = False,
) -> None:
    """Score a model on what ``task`` opens."""
    from clip.evaluation import evaluate

    bar = Bar()
    with bar.shown():
        found = evaluate(
            task,
            model,
            backend=_backends(backend),
            device=device,
            precision=precision,
            like=like,
            activation=activation,
            heads=heads_of(heads),
            limit=limit,
            batch_size=batch_size,
            workers=workers,
            fault_share=fault_share,
            seed=seed,
            output=output,
            plot=plot,
            force=force,
            progress=bar,
        )
    if json:
        print_json(found.report)
    else:
        _print(found)
    if found.disagreement > max_disagreement:
        raise ClipError(
            f"The backends choose differently for {found.disagreement:.2%} of the samples, and --max-disagreement is "
            f"{max_disagreement:.2%}; clip parity says which backend is wrong."
        )


def _backends(text: str | None) -> list[str] | None:
    """The backends that ``--backend`` names; None: the default one."""
    if text is None:
        return None
    if text == "all":
        return backends.available()
    return [name.strip() for name in text.split(",") if name.strip()]


def _print(found: Evaluation) -> None:
    """The scores of every backend with their intervals, how far the backends agree, and what was left out."""
    from clip.command.scores import print_scores

    print_scores(found.scores)
    for choice, agreed in found.agreement.items():
        line = f"{choice}: all backends choose the same for {agreed.equal:,} of {agreed.samples:,}"
        if agreed.largest_margin is not None:
            line += f"; among the others the margin is {agreed.smallest_margin:.1e} to {agreed.largest_margin:.1e}"
        console.print(line)
    for name, of_backend in found.report["results"].items():
        if of_backend["faults"]:
            console.print(f"{name}: {len(of_backend['faults'])} left out: {shortened(list(of_backend['faults']))}")


def _command(
    open_task: Callable[..., Task], kind: str, settings: type[Section], options: Mapping[str, Any]
) -> Callable[..., None]:
    """The command for one data set, whose own keys are options beside those of all data sets.

    Args:
        open_task: gives the task, from the kind, the folder, and the values of ``options`` and keys that are given.
        options: name -> type of what else ``open_task`` takes.
    """
    keys = [name for name in settings.model_fields if name not in ("kind", "folder")]
    own = {name: Annotated[str | None, typer.Option(help=_help(settings, name))] for name in keys} | dict(options)

    def command(data: Path | None = None, **values: Any) -> None:
        given = {name: value for name in own if (value := values.pop(name)) is not None}
        run(partial(open_task, kind, data, **given, **({"seed": values["seed"]} if options else {})), **values)

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter(name, keyword, default=None, annotation=option) for name, option in own.items()]
    if "folder" in settings.model_fields:
        parameters.insert(0, inspect.Parameter("data", keyword, annotation=Data))
    general = list(inspect.signature(run, eval_str=True).parameters.values())[1:]
    command.__signature__ = inspect.Signature([*parameters, *general])  # type: ignore[attr-defined]
    command.__annotations__ = {}  # Typer is to look at the signature alone
    return command


def _help(settings: type[Section], key: str) -> str:
    field = settings.model_fields[key]
    if field.description:
        return field.description
    return "The key of this name in a recipe" + ("." if field.is_required() else f"; by default {field.default}.")


def _task_of(*arguments: Any, **keys: Any) -> Task:
    from clip.evaluation import task_of

    return task_of(*arguments, **keys)


def _probe_of(*arguments: Any, **keys: Any) -> Task:
    from clip.evaluation import probe_of

    return probe_of(*arguments, **keys)


def _add_commands() -> None:
    """A command for each data set, and a probe on each that has classes."""
    for kind, settings in {**FAMILIES, **SETS}.items():
        if kind == "combined":  # a mixture of others, which only a recipe can write down
            continue
        title = (settings.__doc__ or kind).strip().splitlines()[0].replace("`", "")
        app.command(kind, help=title)(_command(_task_of, kind, settings, {}))
        if kind in SETS:
            probes.command(kind, help=title)(_command(_probe_of, kind, settings, {"train": Train, "shots": Shots}))
    app.add_typer(probes, name="probe")


_add_commands()
