# mypy: ignore-errors
"""How each kind of network writes a text: what every pass feeds, and what it writes.

A walk keeps a text in *cells*: its tokens in the order in which the network's cache holds them. The
contract: `plan_for` lays down before the first pass what is written when; `feed` says what the next
pass feeds; `wrote` takes note that it was made. A walk knows nothing of batches and devices.

To add one of your own, write it in a file of this folder and of `CODE_FILES` in `export/writer.py`;
put it into WALKS under what `EsoLMConfig.trained_as` says of its networks; and name it so in
`decoding` of its objective's entry in the registry. This one writes all tokens in a single pass:

```python
import numpy as np

from .attention_esolm import Sight
from .planning_esolm import WritingPlan
from .walk_esolm import Feed, Walk
from .walks_esolm import WALKS


class AtOnce(Walk):
    has_cache = False

    @classmethod
    def plan_for(cls, config, free, request):
        return WritingPlan(free, [len(free)], 1)

    def feed(self):
        cells = self.cells[self.plan.places]
        return Feed(0, np.arange(len(self.places)), Sight("bidirectional"), cells, cells)


WALKS["at_once"] = AtOnce
```
"""

from .blocks_esolm import Blocks, LeftToRight, Whole
from .two_phases_esolm import TwoPhases, TwoPhasesBehindPrefix

WALKS = {
    "esolm A": TwoPhasesBehindPrefix,
    "esolm B": TwoPhases,
    "ar": LeftToRight,
    "mdlm": Whole,
    "bd3lm": Blocks,
}
"""By `EsoLMConfig.trained_as`."""
