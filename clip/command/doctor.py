"""``clip doctor``: what of the machine and the installation matters here."""

from __future__ import annotations

import sys
from dataclasses import asdict

from clip.command.output import Json, print_json, print_table


def run(json: Json = False) -> None:
    """Say what is installed, what is missing and how to install it; exit with 1 if something is broken."""
    from clip import doctor

    findings = doctor.examine()
    if json:
        print_json([asdict(finding) for finding in findings])
    else:
        rows: list[tuple[str, str, str]] = []
        for finding in findings:
            rows.append((finding.name, finding.state, finding.found))
            if finding.remedy is not None:
                rows.append(("", "", finding.remedy))
        print_table(("what", "state", "found, and what to do"), rows)
    if any(finding.state == "broken" for finding in findings):
        sys.exit(1)
