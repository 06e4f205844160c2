"""Stages that a document passes before it becomes tokens: it stays, is changed, or is left out.

A stage is a function of a document alone, so that a task gives the same result whenever it runs. To
use one of your own, write it in a package that is installed and name it by its import path,
`--clean my_package.my_module:no_lists`:

```python
from esolm.data_prep.cleaning import Drop


def no_lists(document):
    lines = document.text.splitlines()
    if sum(line.startswith("- ") for line in lines) > len(lines) / 2:
        return Drop("mostly a list")
    return document.text.replace("\\t", " ")
```

It returns None to keep the document as it is, the text in place of its text, or a `Drop` with the
reason, by which documents are counted; so there should be few different ones. A function that only
keeps or drops may say so by an attribute `changes_text = False`: where the corpus is read twice, it
then runs once for each document.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from esolm.data_prep.documents import Document


class Drop(NamedTuple):
    """A document is left out. detail: what of it was the cause, for people to read."""

    reason: str
    detail: str = ""


Verdict: TypeAlias = "Drop | str | None"


@dataclass(frozen=True)
class Stage:
    """A stage by the name that it was asked for.

    fingerprint: what changes with anything but the document that decides about its results.
    """

    name: str
    judge: Callable[[Document], Verdict]
    changes_text: bool
    fingerprint: str
