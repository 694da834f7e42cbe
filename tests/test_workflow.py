"""The workflow of GitHub, the forms for issues and `make help` name what there is."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
STEPS = {name: job["steps"] for name, job in WORKFLOW["jobs"].items()}


def targets() -> set[str]:
    (names,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    return set(names.split())


def asked_of_make(commands: str) -> set[str]:
    """The targets that commands of a shell give to make."""
    words = {word for line in re.findall(r"^make (.*)$", commands, re.MULTILINE) for word in line.split()}
    return {word for word in words if "=" not in word}


def test_make_help_has_a_line_for_every_target():
    # a make that another make started says where it enters and leaves
    asked = ["make", "--no-print-directory", "help"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = dict(re.findall(r"^(\S+) +(\S.*)$", done.stdout, re.MULTILINE))
    assert lines.keys() == targets() == set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))


def test_the_workflow_asks_for_targets_that_there_are_and_for_all_that_the_other_script_runs():
    asked = {
        target
        for job in WORKFLOW["jobs"].values()
        for step in job["steps"]
        for choice in job.get("strategy", {}).get("matrix", {}).get("target", [""])
        for target in asked_of_make(step.get("run", "").replace("${{ matrix.target }}", choice))
    }
    assert asked - targets() == set()
    script = (ROOT / ".ci" / "run").read_text()
    named = re.findall(r"^ *(?:for target in (.*?); do|run ([a-z-]+)$)", script, re.MULTILINE)
    others = {target for found in named for part in found for target in part.split()}
    assert {"lint", "test", "test-slow", "test-browser", "test-newest"} <= others <= asked


def test_the_workflow_may_read_and_no_more():
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert not [name for name, job in WORKFLOW["jobs"].items() if "permissions" in job]
    assert all(job["timeout-minutes"] <= 90 for job in WORKFLOW["jobs"].values())
    used = {step["uses"] for steps in STEPS.values() for step in steps if "uses" in step}
    assert used
    assert [action for action in used if not re.fullmatch(r"actions/[\w-]+@v\d+", action)] == []


def test_the_workflow_runs_every_python_that_the_package_names():
    pythons = {
        version
        for job in WORKFLOW["jobs"].values()
        for step in job["steps"]
        for version in [
            step.get("with", {}).get("python-version"),
            *job.get("strategy", {}).get("matrix", {}).get("python", []),
        ]
        if version and "${{" not in version
    }
    assert pythons == set(re.findall(r"Python :: (3\.\d+)", (ROOT / "setup.cfg").read_text()))


def test_the_forms_for_issues():
    forms = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "ISSUE_TEMPLATE").iterdir()}
    assert forms.keys() == {"bug", "feature"}
    for form in forms.values():
        assert form.keys() == {"name", "description", "labels", "body"}
        fields = [field for field in form["body"] if field["type"] != "markdown"]
        assert len({field["id"] for field in fields}) == len(fields) >= 3
        assert all(field["attributes"]["label"] for field in fields)
    assert "clip doctor --json" in {field["attributes"].get("label") for field in forms["bug"]["body"]}
