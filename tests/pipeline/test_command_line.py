"""What `esolm` says of itself."""

import re

from tests.processes import run_python


def test_the_version_names_what_a_report_of_a_fault_needs() -> None:
    said = run_python("-m", "esolm", "--version").stdout
    assert re.fullmatch(r"esolm [\d.]+ \(\S+\), torch [\w.+]+, deepspeed [\w.+]+\n", said), said


def test_the_usage_is_what_a_person_types() -> None:
    for command in ((), ("train",), ("prep", "tokenize")):
        said = run_python("-m", "esolm", *command, "--help").stdout
        assert said.splitlines()[0].startswith(" ".join(["Usage: esolm", *command]))


def test_the_shell_can_complete() -> None:
    said = run_python("-m", "esolm", "--help").stdout
    assert "--install-completion" in said
