"""The examples that stand in the code itself: what "to add one of your own" promises is run."""

import re
from types import ModuleType
from typing import Any

PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def example_of(module: ModuleType) -> dict[str, Any]:
    """What the one Python example of a module's docstring defines, by name."""
    (source,) = PYTHON.findall(module.__doc__ or "")
    defined: dict[str, Any] = {"__name__": f"{module.__name__}_example"}
    exec(compile(source, f"example of {module.__name__}", "exec"), defined)
    return defined
