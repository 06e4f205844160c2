"""The commands of `esolm prep` that make datasets of a dataset, without its text."""

from pathlib import Path
from typing import Annotated

import typer

from esolm.pipeline.cli.prep_dataset import Data, EnergonIndex, echo_summary
from esolm.pipeline.run.data_sections import PrepSection

ShardTokens = Annotated[int, typer.Option(help="Tokens after which a shard ends.")]


def split(
    data: Data,
    out: Annotated[
        list[str],
        typer.Option(
            metavar="DIR=SHARE",
            help="A dataset to write, and its share of the documents; DIR alone gets all.",
        ),
    ],
    valid_fraction: Annotated[
        float | None,
        typer.Option(help="Share of documents in the new valid splits; by default as it is."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Another one deals the documents out anew.")] = 0,
    shard_tokens: ShardTokens = PrepSection.shard_tokens,
    energon_index: EnergonIndex = False,
) -> None:
    """Share the documents of a dataset out to new ones, by hashes of their tokens.

    Example:

        esolm prep split data/py --out data/py-most=0.9 --out data/py-rest=0.1
    """
    from esolm.data_prep.manifest import read_manifest
    from esolm.data_prep.progress import ProgressBar
    from esolm.pipeline.data.dividing import Division, divide, left_out, part_of

    parts = tuple(part_of(each) for each in out)
    division = Division(parts, seed, valid_fraction)
    manifest = read_manifest(data)
    with ProgressBar("split", sum(map(manifest.num_tokens, manifest.splits))) as progress:
        divide(data, division, shard_tokens, progress.advance)
    for part in parts:
        _tell(part.out, energon_index)
    if rest := left_out(parts):
        typer.echo(f"{float(rest):.4g} of the documents are in none of them")


def repack(
    data: Data,
    out: Annotated[Path, typer.Option(metavar="NEW", help="The dataset directory to write.")],
    shard_tokens: ShardTokens = PrepSection.shard_tokens,
    energon_index: EnergonIndex = False,
) -> None:
    """Write the same tokens and documents, in the same order, in shards of another size.

    Example:

        esolm prep repack data/py --out data/py-small --shard-tokens 1000000
    """
    from esolm.data_prep.manifest import read_manifest
    from esolm.data_prep.progress import ProgressBar
    from esolm.pipeline.data.rewriting import repack as write

    manifest = read_manifest(data)
    with ProgressBar("repack", sum(map(manifest.num_tokens, manifest.splits))) as progress:
        write(data, out, shard_tokens, progress.advance)
    _tell(out, energon_index)


def _tell(data: Path, energon_index: bool) -> None:
    from esolm.data_prep.energon_index import write_energon_index
    from esolm.data_prep.manifest import read_manifest

    manifest = read_manifest(data)
    if energon_index:
        write_energon_index(data, manifest)
    echo_summary(data, manifest)
