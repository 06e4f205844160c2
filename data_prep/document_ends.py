"""Where the documents of a shard end."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from esolm.data_prep.errors import DataError
from esolm.data_prep.layout import ShardInfo
from esolm.data_prep.manifest import repair_advice

Int64Array = npt.NDArray[np.int64]


def ends_of(data: Path, shard: ShardInfo) -> Int64Array:
    """Reads where the documents of a shard end, in its tokens; raises DataError naming the file."""
    path = data / shard.ends_name
    try:
        ends: Int64Array = np.load(path, allow_pickle=False).astype(np.int64)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}. {repair_advice(data)}") from error
    rising = ends.ndim == 1 and bool((np.diff(ends, prepend=0) > 0).all())
    if not rising or len(ends) != shard.num_documents or ends[-1] != shard.num_tokens:
        raise DataError(
            f"{path} does not hold the ends of {shard.num_documents} documents in "
            f"{shard.num_tokens} tokens. {repair_advice(data)}"
        )
    return ends
