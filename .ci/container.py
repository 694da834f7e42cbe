"""Execute a Dockerfile's steps in order without building an image, start its default command, and ask for its health.

    python .ci/container.py [DOCKERFILE] [ARGUMENT=VALUE ...]

Each stage is this machine's file system with the stage's changes in a layer of its own (overlayfs), in a folder that is
removed at the end; nothing outside of it changes. `python` is the machine's interpreter of the version of the base
image, and other programs and libraries are the machine's. So this shows that the steps work in this order and as these
users, and not that the base image has all that they need. It needs Linux and root.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = "TRICLIP_CONTAINER_FOLDER"
HEALTHY_SECONDS = 120


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Each instruction of a Dockerfile and what it is given, comments and line ends removed."""
    lines = [line for line in dockerfile.read_text().splitlines() if line and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


class Stage:
    """A root of its own, with what its instructions have set so far.

    Args:
        image: the base image, such as python:3.12-slim.
        folder: an empty one for the layer.
    """

    def __init__(self, image: str, folder: Path) -> None:
        self.environment = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        self.environment |= {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/root"}
        self.arguments: dict[str, str] = {}
        self.user, self.folder = "0:0", "/"
        self.health: list[str] = []
        self.entry_point: list[str] = []
        self.command: list[str] = []
        self.root = folder / "root"
        for name in ("changes", "work", "root"):
            (folder / name).mkdir(parents=True)
        layers = f"lowerdir=/,upperdir={folder / 'changes'},workdir={folder / 'work'}"
        mount("-t", "overlay", "overlay", "-o", layers, self.root)
        mount("-t", "proc", "proc", self.root / "proc")
        mount("--rbind", "/dev", self.root / "dev")
        for name in ("passwd", "group"):  # the base image has users of the system only
            lines = (self.root / "etc" / name).read_text().splitlines(keepends=True)
            (self.root / "etc" / name).write_text("".join(line for line in lines if int(line.split(":")[2]) < 1000))
        version = image.removeprefix("python:").removesuffix("-slim")
        found = subprocess.run([ROOT / ".ci" / "python", version], capture_output=True, text=True, check=True)
        interpreter = Path(found.stdout.strip() or sys.exit(f"There is no Python {version} here."))
        for above in interpreter.parents:  # other users have to get there
            (self.root / above.relative_to("/")).chmod(0o755)
        for name in ("python", "python3", f"python{version}"):
            link = self.root / "usr/local/bin" / name
            link.unlink(missing_ok=True)
            link.symlink_to(interpreter)

    def path(self, inside: str) -> Path:
        return self.root / os.path.join(self.folder, inside).lstrip("/")

    def start(self, command: list[str]) -> subprocess.Popen[bytes]:
        """A program with this stage's root, user, folder and variables."""
        enter = ["chroot", f"--userspec={self.user}", str(self.root), "env", f"--chdir={self.folder}", "-i"]
        variables = [f"{name}={value}" for name, value in (self.arguments | self.environment).items()]
        return subprocess.Popen([*enter, *variables, *command])

    def run(self, command: list[str]) -> None:
        if code := self.start(command).wait():
            sys.exit(f"This step ends with {code}: {' '.join(command)}")


def mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *arguments], check=True)


def execute(dockerfile: Path, given: dict[str, str], folder: Path) -> Stage:
    """The last stage, all of its instructions executed."""
    stages: dict[str, Stage] = {}
    for word, rest in instructions(dockerfile):
        print(f"{dockerfile.name}: {word} {rest}", flush=True)
        if word == "FROM":
            image, _, name = rest.partition(" AS ")
            stage = stages[name] = Stage(image, folder / (name or "last"))
        elif word == "ARG":
            name, _, usual = rest.partition("=")
            if value := given.get(name, usual):
                stage.arguments[name] = value
        elif word == "ENV":
            for setting in rest.split():
                name, _, value = setting.partition("=")
                stage.environment[name] = value.replace("$PATH", stage.environment["PATH"])
        elif word == "COPY":
            copy(stage, stages, rest.split())
        elif word == "RUN":
            stage.run(["sh", "-c", rest])
        elif word == "WORKDIR":
            stage.folder = rest
            stage.path("").mkdir(parents=True, exist_ok=True)
        elif word == "USER":
            stage.user = rest
            stage.environment["HOME"] = stage.folder if rest == "0:0" else "/home/triclip"
        elif word == "HEALTHCHECK":
            stage.health = json.loads(rest.partition("CMD ")[2])
        elif word == "ENTRYPOINT":
            stage.entry_point = json.loads(rest)
        elif word == "CMD":
            stage.command = json.loads(rest)
        elif word not in ("VOLUME", "EXPOSE", "STOPSIGNAL"):
            sys.exit(f"{dockerfile} has {word}, which this script does not know.")
    return stage


def copy(stage: Stage, stages: dict[str, Stage], words: list[str]) -> None:
    """Sources of the checkout, or of the stage that --from names, to the last word's place."""
    *sources, target = (word for word in words if not word.startswith("--"))
    origins = [word.removeprefix("--from=") for word in words if word.startswith("--from=")]
    for source in sources:
        origin = stages[origins[0]].path(source) if origins else ROOT / source
        if origin.is_dir():
            shutil.copytree(origin, stage.path(target), symlinks=True)
        else:
            shutil.copy2(origin, stage.path(target) / origin.name if target.endswith("/") else stage.path(target))


def check_health(stage: Stage) -> None:
    """Start the default command, wait until it is healthy, and end it as a container is ended."""
    server = stage.start([*stage.entry_point, *stage.command])
    end = time.monotonic() + HEALTHY_SECONDS
    while stage.start(stage.health).wait():
        if server.poll() is not None or time.monotonic() > end:
            server.kill()
            sys.exit(f"It is not healthy: {' '.join(stage.command)}")
        time.sleep(2)
    server.send_signal(signal.SIGINT)
    if code := server.wait(60):
        sys.exit(f"It ends with {code}: {' '.join(stage.command)}")


def main() -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell's background jobs have it; programs inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if FOLDER not in os.environ:
        # What the process mounts is gone when it ends, and nothing is mounted where the folder is removed.
        with tempfile.TemporaryDirectory(prefix="triclip-container-") as made:
            command = ["unshare", "--mount", sys.executable, *sys.argv]
            sys.exit(subprocess.run(command, env=os.environ | {FOLDER: made}).returncode)
    words = sys.argv[1:]
    given = dict(word.split("=", 1) for word in words if "=" in word)
    dockerfile = Path(next((word for word in words if "=" not in word), ROOT / "docker" / "Dockerfile"))
    stage = execute(dockerfile, given, Path(os.environ[FOLDER]))
    check_health(stage)
    print(f"{dockerfile.name}: every step ended well, and {' '.join(stage.command)} is healthy")


if __name__ == "__main__":
    main()
