"""Requests that schemathesis makes from the server's own description of itself.

Of each answer it checks that it is no 5xx, that its status, its type and its content are described,
that what the description forbids is refused, and that the key is asked for.
"""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.serve.conftest import serving

pytest.importorskip("schemathesis", reason="schemathesis is not installed")
# A request may be well-formed and ask for too much: a text that is too long, ids that are none.
NOT_CHECKED = "positive_data_acceptance"
KEY = "secret"
pytestmark = pytest.mark.check


def other(never: str, **changes: Any) -> Any:
    """never: a route that gives no answer but errors for such networks, as requests go here."""
    return pytest.param(changes, never, marks=pytest.mark.slow, id=changes["objective"])


@pytest.mark.parametrize(
    ("changes", "never"),
    [
        pytest.param({}, None, id="esolm"),
        other("/v1/score", objective="mdlm", variant=None),
        other("/v1/score", objective="bd3lm", variant=None, block_size=8),
        other("/v1/infill", objective="ar", variant=None),
    ],
)
def test_every_answer_is_as_described(
    make_bundle: Callable[..., Path], tmp_path: Path, changes: dict[str, Any], never: str | None
) -> None:
    bundle = make_bundle(seq_len=64, **changes)
    with serving(bundle, tmp_path, "--rows", "4", "--name", "net", key=KEY) as server:
        found = subprocess.run(
            [
                sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()",
                "run", f"{server.url}/openapi.json", "--max-examples", "50", "--seed", "1",
                "--exclude-checks", NOT_CHECKED, "-H", f"Authorization: Bearer {KEY}", "--no-color",
            ],
            cwd=tmp_path, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert found.returncode == 0, found.stdout[-6000:] + found.stderr
        log = server.log.read_text()
    assert "Traceback" not in log
    answers = Counter(re.findall(r'"(?:GET|POST) (/\S+) HTTP/1.1" (\d+)', log))
    routes = ("/v1/completions", "/v1/infill", "/v1/score", "/tokenize", "/detokenize")
    due: set[tuple[str | None, str]] = {
        (route, status) for route in routes for status in ("200", "400", "401")
    }
    due.discard((never, "200"))
    assert due <= answers.keys(), answers
