"""What sbatch does not say about a script: options that it would silently ignore or misread."""

import re
import shutil
import subprocess

_DIRECTIVE = re.compile(r"#SBATCH\s+(--[a-z-]+)(?:=(.*))?")


def lint_script(name: str, text: str) -> list[str]:
    """What is wrong with a batch script, one line each."""
    lines = text.splitlines()
    problems = []
    if not lines or not re.match(r"#!.*\b(?:ba)?sh\b", lines[0]):
        problems.append(f"{name}:1: a batch script begins with #!/usr/bin/env bash")
    commands_began = False
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        place = f"{name}:{number}"
        if line.startswith("#SBATCH"):
            problems += _directive_problems(place, line, commands_began, seen)
            seen.setdefault(line.split("=")[0], number)
        elif re.match(r"\s*#\s*SBATCH\b", line):
            problems.append(f"{place}: written like this, Slurm takes it for a comment: {line}")
        if line.strip() and not line.startswith("#"):
            commands_began = True
        if "{{" in line or "{%" in line:
            problems.append(f"{place}: left over from the template: {line.strip()}")
    return problems + _syntax_problems(name, text)


def _directive_problems(
    place: str, line: str, commands_began: bool, seen: dict[str, int]
) -> list[str]:
    problems = []
    if commands_began:
        problems.append(f"{place}: Slurm ignores options after the first command: {line}")
    match = _DIRECTIVE.fullmatch(line.split(" #")[0].rstrip())
    if match is None:
        problems.append(f"{place}: not of the form #SBATCH --option=value: {line}")
    elif "$" in (match[2] or ""):
        problems.append(f"{place}: Slurm does not expand variables in its options: {line}")
    elif match[2] == "":
        problems.append(f"{place}: an option without its value: {line}")
    if line.split("=")[0] in seen:
        problems.append(f"{place}: said already in line {seen[line.split('=')[0]]}: {line}")
    return problems


def _syntax_problems(name: str, text: str) -> list[str]:
    bash = shutil.which("bash")
    if bash is None:
        return []
    checked = subprocess.run([bash, "-n"], input=text, capture_output=True, text=True, check=False)
    return [] if checked.returncode == 0 else [f"{name}: {checked.stderr.strip()}"]
