"""The examples that stand in the code itself: what "to add one of your own" promises is run."""

import re
from types import ModuleType
from typing import Any

PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def source_of_example(module: ModuleType) -> str:
    """The one Python example of a module's docstring."""
    (source,) = PYTHON.findall(module.__doc__ or "")
    return str(source)


def example_of(module: ModuleType) -> dict[str, Any]:
    """What the example of a module defines, by name."""
    defined: dict[str, Any] = {
        "__name__": f"{module.__name__}_example",
        "__package__": module.__package__,
    }
    exec(compile(source_of_example(module), f"example of {module.__name__}", "exec"), defined)
    return defined
