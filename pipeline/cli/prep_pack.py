"""`esolm prep pack`: rows of whole documents, for `data.packing: best_fit`."""

from typing import TYPE_CHECKING, Annotated

import typer

from esolm.pipeline.cli.evaluate_options import numbers
from esolm.pipeline.cli.prep_dataset import Data

if TYPE_CHECKING:
    from esolm.data_prep.packing_index import PackedInfo, PackJob


def pack(
    data: Data,
    seq_len: Annotated[
        str, typer.Option(help="Tokens of a row, train.seq_len of a run; several as in 1024,2048.")
    ] = "1024",
    workers: Annotated[int, typer.Option(min=1, help="Processes that work on the shards.")] = 1,
) -> None:
    """Make rows of whole documents for data.packing best_fit. Finished shards are skipped.

    Example:

        esolm prep pack data/py --seq-len 128
    """
    from esolm.data_prep.errors import DataError
    from esolm.data_prep.packing_index import PackJob, is_packed, pack_task, write_packing
    from esolm.data_prep.progress import ProgressBar
    from esolm.data_prep.workers import run_tasks

    lengths = tuple(sorted(set(numbers("--seq-len", seq_len, int))))
    if not lengths or lengths[0] < 1:
        raise DataError(f"--seq-len is '{seq_len}', must be a number of tokens, at least 1.")
    job = PackJob.of(data, lengths)
    to_do = [number for number in range(job.num_tasks) if not is_packed(job, number)]
    num_tokens = sum(job.task(number)[1].num_tokens for number in to_do)
    with ProgressBar("pack", num_tokens) as progress:
        run_tasks(job, to_do, workers, progress, pack_task)
    packings = {length: write_packing(job, length) for length in lengths}
    typer.echo(f"{len(to_do)} shards packed, {job.num_tasks - len(to_do)} skipped as finished")
    for length, packing in packings.items():
        _echo_packing(job, length, packing)


def _echo_packing(job: "PackJob", length: int, packing: "dict[str, list[PackedInfo]]") -> None:
    for split, shards in job.manifest.splits.items():
        infos, documents = packing[split], sum(shard.num_documents for shard in shards)
        if not documents:
            continue
        num_rows = sum(info.num_rows for info in infos)
        left_over = job.manifest.num_tokens(split) - num_rows * length
        typer.echo(
            f"{split}: {num_rows:,} rows of {length:,} tokens without padding, "
            f"{left_over:,} tokens left over, "
            f"{sum(info.num_cut for info in infos) / documents:.1%} of the documents are cut, "
            f"{sum(info.num_cut_as_it_is for info in infos) / documents:.1%} if continuous"
        )
