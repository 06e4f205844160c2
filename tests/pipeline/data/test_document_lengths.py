"""What `esolm prep stats` counts, against the documents themselves."""

from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from esolm.data_prep.errors import DataError
from esolm.data_prep.tokenizers import load_tokenizer
from esolm.pipeline.cli import prep
from esolm.pipeline.data.dataset import TokenDataset
from esolm.pipeline.data.document_lengths import document_lengths, summary

ROW = 64


def documents_of(dataset: TokenDataset) -> list[list[int]]:
    """Every document, with its eos, found by reading the stream."""
    found: list[list[int]] = [[]]
    for token in dataset.read(0, dataset.num_tokens).tolist():
        found[-1].append(token)
        if token == dataset.eos_id:
            found.append([])
    assert found.pop() == []
    return found


def test_counts_are_those_of_the_stream(data_path: Path) -> None:
    dataset = TokenDataset(data_path, "train")
    tokenizer = load_tokenizer(dataset.tokenizer_directory)
    assert len(dataset.shards) > 1
    told: list[int] = []
    found = document_lengths(dataset, tokenizer, ROW, told.append)
    documents = documents_of(dataset)
    lengths = sorted(map(len, documents))
    assert sum(told) == dataset.num_tokens == found.num_tokens
    assert np.repeat(found.lengths, found.counts).tolist() == lengths
    assert found.quantile(0.5) == lengths[(len(lengths) - 1) // 2]
    assert found.quantile(1.0) == lengths[-1]
    rows: list[set[int]] = [set() for _ in range(dataset.num_tokens // ROW + 1)]
    place = cut = 0
    for number, document in enumerate(documents):
        touched = range(place // ROW, (place + len(document) - 1) // ROW + 1)
        cut += len(touched) > 1
        for row in touched:
            rows[row].add(number)
        place += len(document)
    assert (found.num_cut, found.num_parts) == (cut, sum(map(len, rows)))
    num_bytes = sum(len(tokenizer.decode(each).encode()) for each in documents)
    assert found.bytes_per_token == pytest.approx(num_bytes / dataset.num_tokens, rel=0.05)
    _, by_octave, tokens = found.by_octave()
    assert by_octave[9] == sum(512 <= length < 1024 for length in lengths) > 0
    assert (by_octave.sum(), tokens.sum()) == (len(lengths), dataset.num_tokens)
    assert f"{len(documents):,} documents" in summary(found)
    left_over = dataset.num_tokens - ROW * found.packed.num_rows
    assert 0 <= left_over < ROW * len(dataset.shards)
    assert found.packed.num_cut == sum(length > ROW for length in lengths), "those alone"
    assert f"best_fit: {found.packed.num_pieces / found.packed.num_rows:.1f}" in summary(found)
    assert f"{left_over:,} tokens left over" in summary(found)


def test_the_command_says_and_draws_it(data_path: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.add_typer(prep.app, name="prep")
    plot = tmp_path / "lengths.png"
    options = ["prep", "stats", str(data_path), "--seq-len", str(ROW), "--plot", str(plot)]
    shown = CliRunner().invoke(app, options)
    assert shown.exit_code == 0, shown.output
    assert "train: " in shown.stdout
    assert "valid: " in shown.stdout
    assert f"rows of {ROW} tokens" in shown.stdout
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_ends_that_do_not_fit_are_named(copy_path: Path) -> None:
    dataset = TokenDataset(copy_path, "train")
    path = copy_path / dataset.shards[0].ends_name
    whole = np.load(path)
    tokenizer = load_tokenizer(dataset.tokenizer_directory)
    for wrong in (whole[:-1], whole[::-1], np.stack([whole, whole])):
        np.save(path, wrong)
        with pytest.raises(DataError, match="does not hold the ends of"):
            document_lengths(dataset, tokenizer, ROW)
    path.write_bytes(b"no array")
    with pytest.raises(DataError, match=r"ends\.npy"):
        document_lengths(dataset, tokenizer, ROW)
