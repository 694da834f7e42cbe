"""``clip evaluate``: the scores of a model on published data sets, one sub-command for each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clip.command import bias
from clip.command.output import (
    Activation,
    Backends,
    Device,
    Heads,
    Json,
    Like,
    Model,
    Precision,
    backends_of,
    console,
    heads_of,
    print_json,
    shortened,
)
from clip.command.progress import Bar, downloading
from clip_core.data.families import FAMILIES
from clip_core.data.settings import Section
from clip_core.errors import ClipError
from clip_core.evaluation.sentences import SENTENCES
from clip_core.evaluation.sets import SETS
from clip_core.evaluation.sets.labelled import PublishedSettings

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

Limit = Annotated[int | None, typer.Option(min=1, help="Score the first N pictures or pairs alone.", metavar="N")]
BatchSize = Annotated[int, typer.Option(min=1, help="Pictures that are encoded at once.")]
Workers = Annotated[
    int | None, typer.Option(min=0, max=256, help="Processes that decode pictures; by default as many as are worth it.")
]
FaultShare = Annotated[float, typer.Option(min=0, max=1, help="Share of the pictures that may be unusable.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the confidence intervals and of what is drawn.")]
Error = Annotated[
    float, typer.Option(min=0, max=1, help="Share of the pictures whose set of classes may lack their own.")
]
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
Pictures = Annotated[
    Path | None, typer.Option(metavar="DIR", help="The folder of the pictures; by default, shapes are drawn.")
]
Kind = Annotated[str | None, typer.Option(help="The data set that the folder holds; by default folders.")]
Templates = Annotated[
    str | None,
    typer.Option(metavar="NAME|FILE", help="openai, simple, low-resource, simple-clip, or a file with one a line."),
]
Names = Annotated[str | None, typer.Option(metavar="FILE", help="A file with the names of the classes, or openai.")]
Download = Annotated[
    bool | None, typer.Option("--download", help="Fetch the data set into its folder first, unless it is there.")
]
KEYS = {"templates": Templates, "names": Names}  # of data sets in a recipe, whose options say more than their names
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
    error: Error = 0.1,
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
            backend=backends_of(backend),
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
            error=error,
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


def _print(found: Evaluation) -> None:
    """What was scored, the scores of every backend with their intervals, how far they agree, and what was left out."""
    from clip.command.scores import print_scores
    from clip.report import title

    first = next(iter(found.report["results"].values()))
    counted = [f"{first[name]:,} {name}" for name in ("pictures", "captions", "pairs", "classes") if name in first]
    console.print(f"{title(found.report)}: {', '.join(counted)}")
    print_scores(found.scores)
    for choice, agreed in found.agreement.items():
        line = f"{choice}: all backends choose the same for {agreed.equal:,} of {agreed.samples:,}"
        if agreed.largest_margin is not None:
            line += f"; among the others the margin is {agreed.smallest_margin:.1e} to {agreed.largest_margin:.1e}"
        console.print(line)
    for name, of_backend in found.report["results"].items():
        if of_backend["faults"]:
            console.print(f"{name}: left out {shortened(list(of_backend['faults']))}")


def _data_set(seed: int, kind: str, data: Path | None = None, download: bool | None = None, **keys: Any) -> Task:
    from clip.evaluation import task_of

    if download:
        _download(kind, data, keys)
    return task_of(kind, data, **keys)


def _probe(
    seed: int,
    kind: str,
    data: Path | None = None,
    train: Path | None = None,
    shots: int | None = None,
    download: bool | None = None,
    **keys: Any,
) -> Task:
    from clip.evaluation import probe_of

    if download:
        _download(kind, data, keys)
        if train is None and "split" in SETS[kind].model_fields:
            _download(kind, data, {**keys, "split": "train"})
    return probe_of(kind, data, train, shots, seed, **keys)


def _typographic(seed: int, data: Path | None = None, kind: str | None = None, **keys: Any) -> Task:
    from clip.evaluation import typographic_of

    return typographic_of(kind or ("shapes" if data is None else "folders"), data, seed, **keys)


def _download(kind: str, data: Path | None, keys: Mapping[str, Any]) -> None:
    """Fetch a data set into its folder, unless it is there."""
    from clip.evaluation import settings_of

    with downloading(kind) as progress:
        settings_of(kind, data, keys).download(progress)


def _command(
    open_task: Callable[..., Task], options: Mapping[str, Any], required: Collection[str]
) -> Callable[..., None]:
    """A command that scores a model on a task, with options of its own beside those of `run`.

    Args:
        open_task: gives the task, from the seed and those of ``options`` that are given.
        options: name -> type.
        required: those that must be given.
    """
    keyword, needed = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.empty

    def command(**values: Any) -> None:
        given = {name: value for name in options if (value := values.pop(name)) is not None}
        run(partial(open_task, values["seed"], **given), **values)

    own = [
        inspect.Parameter(name, keyword, default=needed if name in required else None, annotation=option)
        for name, option in options.items()
    ]
    general = list(inspect.signature(run, eval_str=True).parameters.values())[1:]
    command.__signature__ = inspect.Signature([*own, *general])  # type: ignore[attr-defined]
    command.__annotations__ = {}  # Typer is to look at the signature alone
    return command


def _keys(settings: type[Section]) -> dict[str, Any]:
    """The keys of a data set in a recipe as options, its folder as ``--data``."""
    found: dict[str, Any] = {"data": Data} if "folder" in settings.model_fields else {}
    for name, field in settings.model_fields.items():
        if name in ("kind", "folder"):
            continue
        default = "" if field.is_required() or field.default is None else f"; by default {field.default}"
        text = field.description or f"The key {name} of the data set in a recipe{default}."
        found[name] = KEYS.get(name) or Annotated[str | None, typer.Option(help=text)]
    return found


PANELS: dict[str, Collection[str]] = {
    "Pictures with classes": SETS,
    "Pairs of sentences": SENTENCES,
    "Pictures with captions": FAMILIES,
}
OTHER = "Other questions to a model"


def _add_commands() -> None:
    """A command for each data set, and a probe on each that has classes."""
    for kind, settings in {**FAMILIES, **SETS, **SENTENCES}.items():
        if kind == "combined":  # a mixture of others, which only a recipe can write down
            continue
        keys = _keys(settings)
        if issubclass(settings, PublishedSettings) and settings.published is not PublishedSettings.published:
            keys["download"] = Download
        folder = settings.model_fields.get("folder")
        needed = ["data"] if folder is not None and folder.is_required() else []
        title = (settings.__doc__ or kind).strip().splitlines()[0].replace("`", "")
        panel = next(name for name, kinds in PANELS.items() if kind in kinds)
        app.command(kind, help=title, rich_help_panel=panel)(_command(partial(_data_set, kind=kind), keys, needed))
        if kind in SETS:
            keys = {**keys, "train": Train, "shots": Shots}
            probes.command(kind, help=title)(_command(partial(_probe, kind=kind), keys, ["data"]))
    app.add_typer(probes, name="probe", rich_help_panel=OTHER)
    options = {"data": Pictures, "kind": Kind, "templates": Templates, "names": Names}
    title = "Write the name of another class onto each picture, and tell how many pictures follow it."
    app.command("typographic", help=title, rich_help_panel=OTHER)(_command(_typographic, options, []))
    app.command("bias", rich_help_panel=OTHER)(bias.run)


_add_commands()
