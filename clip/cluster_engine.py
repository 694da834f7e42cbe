"""Pictures -> embeddings on a cluster of Ray: the stages of `clip_core.embedding.engine` on many machines.

Tasks decode batches, actors that hold the model embed them, and this process gets the embeddings in the order of the
batches. What becomes of a batch does not depend on who makes it, so a machine that is lost costs the time in which its
batches are made again, and nothing else. Every machine has to see pictures and weights under the same paths.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, cast

import numpy as np

from clip.embedding import open_stamped
from clip_core.architecture import Architecture
from clip_core.embedding import engine
from clip_core.embedding.engine import Decode, Embedded, Plan
from clip_core.embedding.parts import Fault
from clip_core.embedding.sources import Pictures
from clip_core.embedding.stamp import Stamp
from clip_core.errors import ClipError
from clip_core.installation import requirement

BATCHES = 8  # that one task decodes,
MOST_TASKS = 10_000  # or more of them, if the tasks would be so many that Ray is slow
PATIENCE = 10.0  # seconds for a cluster to answer

# Of a CPU. Both stages share the CPUs, and tasks that decode find room on a machine that is full of actors, also where
# it holds those of machines that were lost: no usual number of CPUs is a multiple of the first share.
EMBEDDING_SHARE, DECODING_SHARE = 0.97, 0.01

# An actor computes in one thread: sums depend on the number of threads, and so would the last bits of embeddings.
ENVIRONMENT = {"env_vars": {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}}

Row = dict[str, Any]  # of Ray's data: arrays as bytes, and all else as JSON


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Use a cluster; a program that is connected to one already stays with it.

    Args:
        address: ``auto`` for the cluster of this machine, ``HOST:PORT``, or ``local`` for one that lasts as long as the
            block.

    Raises:
        ClipError: Ray is not installed, or no cluster answers.
    """
    if find_spec("ray") is None:
        raise ClipError(f"A cluster needs Ray, which is not installed; run: pip install {requirement('ray')}.")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Ray would tell its makers of every run
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what Ray's C++ says is about itself
    import ray
    import ray.data

    with ExitStack() as stack:
        if not ray.is_initialized():
            _check(address)
            dashboard = False if address == "local" else None
            try:
                ray.init(address, include_dashboard=dashboard, logging_level=logging.ERROR, log_to_driver=False)
            except (ConnectionError, RuntimeError, ValueError, OSError) as error:
                raise _unreachable(address, str(error).partition("\n")[0].rstrip(".")) from error
            stack.callback(ray.shutdown)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context = ray.data.DataContext.get_current()
        options = context.execution_options
        stack.callback(setattr, options, "preserve_order", options.preserve_order)
        stack.callback(setattr, context, "enable_progress_bars", context.enable_progress_bars)
        options.preserve_order, context.enable_progress_bars = True, False
        yield


def _check(address: str) -> None:
    """Refuse an address at which nobody answers; Ray itself would wait for a minute."""
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise ClipError(f"--address is {address!r:.80}; give auto, local, or HOST:PORT of a cluster's head.")
    try:
        socket.create_connection((host, int(port)), PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, str(error)) from error


def _unreachable(address: str, reason: str) -> ClipError:
    return ClipError(
        f"No Ray cluster can be used at {address!r:.80} ({reason}); start one with ray start --head, or give "
        "--address local."
    )


def embedded_batches(
    model: Mapping[str, Any],
    pictures: Pictures,
    stamp: Stamp,
    plan: Plan,
    missing: Sequence[range],
    workers: int | None = None,
) -> Generator[Embedded]:
    """The batches of the parts ``missing`` of a plan, in their order, from the cluster that is `connected`.

    Args:
        model: the arguments of `clip.embedding.open_stamped`.
        stamp: which that gives here, and has to give on every machine.
        workers: actors that embed, each with a GPU, or with one CPU where the cluster has no GPU; by default as many as
            it has of these.

    Raises:
        ClipError: a machine cannot use the model or would embed otherwise, the cluster is too small, or it has failed.
    """
    import ray
    import ray.data

    if not missing:
        return
    resources = ray.cluster_resources()
    cpus, gpus = (int(resources.get(name, 0)) for name in ("CPU", "GPU"))
    count = workers or gpus or cpus
    if cpus < 1 or count > (gpus or cpus):
        raise ClipError(
            f"The cluster has {cpus} CPUs and {gpus} GPUs, too few for {count} workers; give fewer --workers, or add "
            "machines."
        )
    tower = Architecture.from_dict(stamp.architecture).image
    batches = _Batches(plan, tuple(missing), os.getcwd())
    decoding = _decoding(Decode(pictures, tower.resolution, tower.pixels), batches)
    # Numbers that are there already, and not read by tasks, which would find no CPU beside the actors.
    numbers, step = np.arange(len(batches)), max(BATCHES, -(-len(batches) // MOST_TASKS))
    tasks = -(-len(numbers) // step)
    rows = (
        ray.data.from_numpy([numbers[first : first + step] for first in range(0, len(numbers), step)])
        .map(decoding, num_cpus=DECODING_SHARE, compute=ray.data.TaskPoolStrategy(size=min(cpus, tasks)))
        .map(
            cast(Any, _Embedder),  # Ray's annotation knows functions alone
            fn_constructor_args=(dict(model), stamp, batches.folder),
            compute=ray.data.ActorPoolStrategy(size=min(count, tasks)),
            num_cpus=0 if gpus else EMBEDDING_SHARE,
            num_gpus=1 if gpus else 0,
            runtime_env=ENVIRONMENT,
        )
        .iter_rows()
    )
    try:
        for number, row in enumerate(rows):
            if row["error"]:
                raise ClipError(row["error"])
            if row["id"] != number:
                raise AssertionError(f"batch {row['id']} came in the place of {number}")
            embeddings = np.frombuffer(row["embeddings"], stamp.dtype).reshape(-1, row["dimension"])
            told = json.loads(row["told"])
            yield Embedded(embeddings, told["columns"], [Fault(*fault) for fault in told["faults"]])
    except ray.exceptions.RayError as error:
        reason = str(error).strip().rpartition("\n")[2]
        raise ClipError(f"The cluster has failed: {reason}; run the same command with --resume.") from error


@dataclass(frozen=True)
class _Batches:
    """The batches of some parts of a plan by number, from 0."""

    plan: Plan
    missing: tuple[range, ...]  # all of one length, but for the last
    folder: str  # that relative paths start at

    def __len__(self) -> int:
        return (len(self.missing) - 1) * self._of_part + sum(1 for _ in self.plan.batches(self.missing[-1]))

    def __getitem__(self, number: int) -> range:
        part, batch = divmod(number, self._of_part)
        first = self.missing[part].start + batch * self.plan.batch_size
        return range(first, min(first + self.plan.batch_size, self.missing[part].stop))

    @property
    def _of_part(self) -> int:
        return -(-self.plan.part // self.plan.batch_size)


def _decoding(decode: Decode, batches: _Batches) -> Callable[[Row], Row]:
    """The stage that decodes a batch, as Ray wants it: a function of a row."""

    def decoded(row: Row) -> Row:
        _enter(batches.folder)
        batch = decode(batches[int(row["data"])])
        told = {"columns": batch.columns, "faults": batch.faults}
        return {"id": int(row["data"]), "pixels": batch.pixels.tobytes(), "told": json.dumps(told)}

    return decoded


class _Embedder:
    """The stage that embeds a batch; an actor, which opens the model when the first batch comes."""

    def __init__(self, model: dict[str, Any], stamp: Stamp, folder: str) -> None:
        self._arguments, self._stamp, self._folder = model, stamp, folder
        self._model: Any = None

    def __call__(self, row: Row) -> Row:
        result = {"id": row["id"], "told": row["told"], "embeddings": b"", "dimension": 1, "error": ""}
        try:
            if self._model is None:
                self._model = self._opened()
            side = self._model.architecture.image.resolution
            pixels = np.frombuffer(bytearray(row["pixels"]), np.float32).reshape(-1, 3, side, side)
            embeddings = engine.embedded(self._model, pixels, self._stamp)
        except ClipError as error:  # as a value: Ray would take an exception for a reason to try again
            return result | {"error": str(error)}
        return result | {"embeddings": embeddings.tobytes(), "dimension": embeddings.shape[1]}

    def _opened(self) -> Any:
        _enter(self._folder)
        loaded, stamp = open_stamped(**self._arguments)
        if change := self._stamp.change(stamp):
            raise ClipError(
                f"{socket.gethostname()} would embed otherwise than this machine: {change}; install the same versions "
                "and give the same files to all machines."
            )
        return loaded.model


def _enter(folder: str) -> None:
    """Let relative paths start where they start for the command; without that folder, absolute ones alone work."""
    with suppress(OSError):
        os.chdir(folder)
