"""What docker/ tells others to do can be done: sources, extras, users, ports and paths are those that there are."""

from __future__ import annotations

import configparser
import re
import runpy
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from clip.command import app
from clip.serving.access import OPEN

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
instructions = runpy.run_path(str(ROOT / ".ci" / "container.py"))["instructions"]


@pytest.fixture(params=["Dockerfile", "Dockerfile.cuda"])
def steps(request) -> list[tuple[str, str]]:
    return instructions(DOCKER / request.param)


def of(steps: list[tuple[str, str]], word: str) -> list[str]:
    return [rest for name, rest in steps if name == word]


def options_of(command: list[str]) -> dict[str, str]:
    """The options that a command of ``clip`` is given, each of which it has, with their values."""
    name, *words = command
    values = dict(zip(words[::2], words[1::2], strict=True))
    assert values.keys() <= {option for parameter in COMMANDS[name].params for option in parameter.opts}
    return values


def default_port(command: str) -> int:
    (port,) = (parameter.default for parameter in COMMANDS[command].params if "--port" in parameter.opts)
    return port


def extras() -> set[str]:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return set(setup["options.extras_require"])


def asked_by(check: list[str]) -> tuple[int, str]:
    """The port and the path of this machine that a health check asks."""
    (found,) = re.findall(r"urlopen\('http://127\.0\.0\.1:(\d+)(/\w*)', timeout=4\)", check[-1])
    return int(found[0]), found[1]


def test_what_is_copied_makes_the_wheel(steps):
    copied = {source for rest in of(steps, "COPY") if "--from" not in rest for source in rest.split()[:-1]}
    assert [source for source in copied if not (ROOT / source).exists()] == []
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert packages | {"configs", "setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE"} <= copied


def test_the_image_installs_extras_that_there_are(steps):
    (default,) = re.findall(r"EXTRAS=(\S+)", "\n".join(of(steps, "ARG")))
    assert {"serve", "web"} <= set(default.split(",")) <= extras()
    assert any('".[$EXTRAS]"' in rest and "-c constraints.txt" in rest for rest in of(steps, "RUN"))


def test_the_image_runs_the_page_as_a_user_without_rights_and_asks_for_its_health(steps):
    words = [name for name, _ in steps]
    assert of(steps, "USER") == ["1000:1000"]
    assert "RUN" not in words[words.index("USER") :]
    assert of(steps, "ENTRYPOINT") == ['["clip"]']
    (command,) = map(yaml.safe_load, of(steps, "CMD"))
    assert command[0] == "web"
    assert options_of(command)["--host"] == "0.0.0.0"
    (check,) = (yaml.safe_load(rest.partition("CMD ")[2]) for rest in of(steps, "HEALTHCHECK"))
    assert asked_by(check) == (default_port("web"), "/")
    assert set(of(steps, "EXPOSE")) == {f"{default_port('serve')} {default_port('web')}"}


def test_both_images_have_the_same_steps_but_for_the_device():
    cpu, cuda = (instructions(DOCKER / name) for name in ("Dockerfile", "Dockerfile.cuda"))
    differing = {word for word, rest in {*cpu} ^ {*cuda}}
    assert differing == {"FROM", "ARG", "RUN", "ENV", "HEALTHCHECK", "CMD"}
    assert {rest for word, rest in {*cpu} ^ {*cuda} if word == "RUN"} == {
        rest for rest in of(cpu, "RUN") if "libgomp1" in rest
    }


def test_compose_runs_page_and_server_for_this_machine_alone():
    services = COMPOSE["services"]
    assert {name: service["ports"] for name, service in services.items()} == {
        name: [f"127.0.0.1:{default_port(name)}:{default_port(name)}"] for name in ("web", "serve")
    }
    for service in services.values():
        assert (DOCKER / service["build"]["context"]).resolve() == ROOT
        assert (ROOT / service["build"]["dockerfile"]).exists()
    check = services["serve"]["healthcheck"]["test"]
    assert asked_by(check) == (default_port("serve"), "/healthz")
    assert "/healthz" in OPEN  # without a token


def test_the_server_may_read_its_token_and_nobody_else():
    serve = COMPOSE["services"]["serve"]
    options = options_of(serve["command"])
    assert options == {"--host": "0.0.0.0", "--token-file": "/run/secrets/token"}
    assert serve["secrets"] == [{"source": "token", "uid": "1000", "gid": "1000", "mode": 0o400}]
    assert COMPOSE["secrets"]["token"].keys() == {"environment"}  # Compose ignores uid and mode of files


def test_the_document_names_what_there_is():
    text = (ROOT / "docs" / "containers.md").read_text()
    lines = [line for block in re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S) for line in block.splitlines()]
    built = [shlex.split(line) for line in lines if line.startswith("docker build")]
    assert len(built) >= 4
    for words in built:
        declared = {rest.partition("=")[0] for rest in of(instructions(ROOT / words[words.index("-f") + 1]), "ARG")}
        arguments = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
        assert arguments.keys() <= declared
        assert set(arguments.get("EXTRAS", "serve").split(",")) <= extras()
    assert f"{COMPOSE['secrets']['token']['environment']}=$(" in text
    (command,) = re.findall(r"-w /work triclip (\w+)", text)
    assert command in COMMANDS
