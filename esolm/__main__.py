"""`python -m esolm` is `esolm`."""

import os
import sys
from pathlib import Path

# `python -m` looks for every module in the working directory first, where a user's numpy.py or
# tokenizers/ would take the place of a library. It stays only if this package lies in it.
if not sys.flags.safe_path:
    checkout = str(Path(__file__).parents[1])
    if sys.path.pop(0) == checkout and checkout not in sys.path:
        sys.path.append(checkout)
        inherited = filter(None, [os.environ.get("PYTHONPATH"), checkout])
        os.environ["PYTHONPATH"] = os.pathsep.join(inherited)

from esolm.pipeline.cli.main import main

main()
