"""Signals that end a run early reach all of its processes, whatever its launcher makes of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from clip_core.files import exclusive
from clip_core.training.checkpoint import newest, read
from clip_core.training.run_log import read_metrics
from clip_core.training.stopping import WORD, stop_signals
from tests.clip.running import RECIPE, ended, process
from tests.launching import ENVIRONMENT
from tests.requested import FRAMEWORKS

ROOT = Path(__file__).parents[2]

# A launcher that kills its process as soon as a signal reaches it, and a process that ends well when it is asked to.
PARENT = """
import os, sys
from clip_core.training.stopping import run_until_stopped
sys.exit(run_until_stopped([sys.executable, "-c", sys.argv[1], *sys.argv[2:]], os.environ))
"""
LAUNCHER = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]])
try:
    sys.exit(child.wait())
except BaseException:
    child.kill()
    raise
"""
PROCESS = """
import sys, time
from pathlib import Path
from clip_core.training.stopping import stop_signals
with stop_signals() as asked:
    Path(sys.argv[1]).write_text("ready")
    while not asked():
        time.sleep(0.01)
    Path(sys.argv[1]).write_text(f"saved {asked()}")
sys.exit(int(sys.argv[2]))
"""
DEAF = """
import sys, time
from pathlib import Path
Path(sys.argv[1]).write_text("ready")
time.sleep(300)
"""


def launched(child: str, report: Path, code: int = 0) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if name != WORD} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PARENT, LAUNCHER, child, str(report), str(code)]
    started = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    until(lambda: report.exists() and report.read_text() == "ready", started)
    return started


def until(condition, started: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "nothing happened for two minutes"
        assert started.poll() is None, f"it ended with {started.returncode}"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_every_process_ends_well_and_the_signal_is_the_exit_code(number, tmp_path):
    started = launched(PROCESS, tmp_path / "report")
    os.killpg(started.pid, number)  # as a terminal sends it
    assert started.wait(timeout=60) == 128 + number
    assert (tmp_path / "report").read_text() == f"saved {int(number)}"


def test_a_process_that_fails_when_it_is_asked_to_end_gives_its_own_exit_code(tmp_path):
    started = launched(PROCESS, tmp_path / "report", code=3)
    started.send_signal(signal.SIGTERM)
    assert started.wait(timeout=60) == 3


def test_processes_notice_that_the_command_is_gone(tmp_path):
    started = launched(PROCESS, tmp_path / "report")
    started.kill()
    started.wait()
    deadline = time.monotonic() + 60
    while (tmp_path / "report").read_text() != "saved 15":
        assert time.monotonic() < deadline, "the process goes on"
        time.sleep(0.02)


def test_a_second_ctrl_c_ends_what_does_not_listen(tmp_path):
    started = launched(DEAF, tmp_path / "report")
    started.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert started.poll() is None
    started.send_signal(signal.SIGINT)
    assert started.wait(timeout=60) == 128 + signal.SIGTERM  # which ended the launcher


def test_blocks_within_each_other_are_told_the_same():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with stop_signals() as outer:
        signal.raise_signal(signal.SIGHUP)
        with stop_signals() as inner:
            signal.raise_signal(signal.SIGTERM)
            assert (outer(), inner()) == (signal.SIGHUP, signal.SIGHUP)
        signal.raise_signal(signal.SIGTERM)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals() as asked:
            signal.raise_signal(signal.SIGHUP)
            assert asked() == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_finds_the_word_alone(monkeypatch, tmp_path):
    monkeypatch.setenv(WORD, str(tmp_path / "word"))
    found = []

    def look() -> None:
        with stop_signals() as asked:
            found.append(asked())
            (tmp_path / "word").write_text("2")
            found.append(asked())

    thread = threading.Thread(target=look)
    with exclusive(tmp_path, "launcher"):
        thread.start()
        thread.join()
    assert found == [0, 2]


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_two_processes_of_a_framework_save_once(framework, tmp_path):
    (tmp_path / "tiny.yaml").write_text(RECIPE.replace("steps: 6", "steps: 100000").replace("steps: 2", "steps: 90000"))
    command = ("train", "-c", "tiny.yaml", "--backend", framework, "--num-gpus", 2, "--output", "run")
    started = process(*command, environment=ENVIRONMENT, cwd=tmp_path, start_new_session=True)
    until(lambda: len(read_metrics(tmp_path / "run")) > 3, started)
    os.killpg(started.pid, signal.SIGINT)
    result = ended(started)
    assert result.code == 128 + signal.SIGINT, result.err
    assert read(newest(tmp_path / "run")).step == len(read_metrics(tmp_path / "run"))
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1
    assert (tmp_path / "run" / "model.safetensors").is_file()
