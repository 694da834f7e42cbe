"""``clip embed --engine ray``: a cluster gives what one machine gives, also when it loses a machine on the way."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip import cluster_engine
from clip.embedding import embed_into
from clip_core.embedding.engine import Plan
from clip_core.embedding.parts import Parts
from clip_core.errors import ClipError
from clip_core.installation import requirement
from tests.clip.running import assert_refused, ended, process

MEMORY = 80 << 20  # bytes of an object store, little more than the least that Ray takes
PICTURES = 120
SCALE = 150  # pixels of a square of one colour
BROKEN = (7, 100)
SETTINGS = {"backend": "numpy", "batch_size": 2, "part": 32, "fault_share": 0.1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Pictures that take long to decode, so that there is work left when a machine is lost."""
    made = tmp_path_factory.mktemp("data") / "photos"
    made.mkdir()
    generator = np.random.default_rng(0)
    for number in range(PICTURES):
        values = generator.integers(0, 256, (8, int(generator.integers(5, 12)), 3), np.uint8)
        Image.fromarray(values.repeat(SCALE, axis=0).repeat(SCALE, axis=1)).save(
            made / f"{number:03}.png", compress_level=1
        )
    for number in BROKEN:
        (made / f"{number:03}.png").write_bytes(b"junk")
    return made


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def lives(process: int) -> bool:
    """Whether a process runs, and is no zombie."""
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")  # of its own settings
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of Ray, which leaves pipes to its processes open
def test_a_cluster_that_loses_a_machine_gives_the_same_bytes(folder, tmp_path, monkeypatch):
    """Two machines with two CPUs each, which are processes here, and a head without any."""
    from ray.cluster_utils import Cluster

    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    embed_into(tmp_path / "local", ["photos"], **SETTINGS)
    alone = {"include_dashboard": False, "object_store_memory": MEMORY}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **alone})
    try:
        machines = [cluster.add_node(num_cpus=2, object_store_memory=MEMORY) for _ in range(2)]
        nodes = [cluster.head_node, *machines]
        processes = [info.process.pid for node in nodes for of in node.all_processes.values() for info in of]
        lost: list[int] = []

        def lose_one(what: str, done: int, total: int, faults: int) -> None:
            if done >= PICTURES // 4 and not lost:
                lost.append(done)
                cluster.remove_node(machines[0], allow_graceful=False)

        made = embed_into(
            tmp_path / "cluster", ["photos"], cluster=cluster.address, progress=lose_one, workers=2, **SETTINGS
        )
    finally:
        cluster.shutdown()
    assert lost[0] < PICTURES // 2
    assert len(made) == PICTURES - len(BROKEN)
    assert [fault.number for fault in made.faults] == list(BROKEN)
    assert content(tmp_path / "cluster") == content(tmp_path / "local")
    assert processes
    assert not [process for process in processes if lives(process)]
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


@pytest.mark.slow
def test_a_cluster_of_this_machine_alone(folder, tmp_path):
    """Which has as many actors as CPUs, so that nothing else finds one."""
    command = process(
        "embed",
        folder,
        "-o",
        tmp_path / "out",
        "--backend",
        "numpy",
        "--engine",
        "ray",
        "--address",
        "local",
        "--fault-share",
        0.05,
    )
    result = ended(command)
    assert result.code == 0, result.err
    assert len(Parts(tmp_path / "out")) == PICTURES - len(BROKEN)


def test_batches_have_numbers():
    plan = Plan(total=23, inputs="", batch_size=3, part=8)
    for missing in ([*plan.parts()], [range(8, 16)], [range(0, 8), range(16, 23)], [range(16, 23)]):
        expected = [batch for part in missing for batch in plan.batches(part)]
        batches = cluster_engine._Batches(plan, tuple(missing), "")
        assert [batches[number] for number in range(len(batches))] == expected


@pytest.mark.parametrize(
    ("address", "part"),
    [
        ("127.0.0.1:1", "No Ray cluster can be used at '127.0.0.1:1' ("),
        ("ray://127.0.0.1:10001", "--address is 'ray://127.0.0.1:10001'; give auto, local, or HOST:PORT"),
        ("nowhere", "--address is 'nowhere'"),
    ],
)
def test_addresses_without_a_cluster_are_refused(address, part, folder, tmp_path, run):
    out = tmp_path / "out"
    arguments = ("embed", folder, "-o", out, "--backend", "numpy", "--engine", "ray", "--address", address)
    assert_refused(run(*arguments), part)
    assert not list(tmp_path.glob("out/*.parquet"))


def test_without_ray_the_package_is_named(folder, tmp_path, run, monkeypatch):
    monkeypatch.setattr(cluster_engine, "find_spec", lambda name: None)
    arguments = ("embed", folder, "-o", tmp_path / "out", "--backend", "numpy", "--engine", "ray")
    assert_refused(run(*arguments), "A cluster needs Ray", f"pip install {requirement('ray')}")


def test_texts_are_not_embedded_by_a_cluster(tmp_path):
    with pytest.raises(ClipError, match=r"^A cluster embeds pictures alone"):
        embed_into(tmp_path / "out", texts="texts.txt", cluster="auto")
