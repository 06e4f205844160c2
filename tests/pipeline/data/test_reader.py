import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from esolm.data_prep.errors import DataError
from esolm.data_prep.manifest import read_manifest
from esolm.data_prep.tokenizers import load_tokenizer
from esolm.pipeline.data import open_files
from esolm.pipeline.data.dataset import TokenDataset
from esolm.pipeline.data.reader import SampleReader
from tests.data_prep.corpus import make_job, run_job, text_of, write_jsonl


def first_shard(path: Path, split: str = "train") -> Path:
    return path / read_manifest(path).splits[split][0].name


def whole_stream(path: Path, split: str) -> np.ndarray:
    import webdataset

    paths = [str(path / shard.name) for shard in read_manifest(path).splits[split]]
    samples = webdataset.WebDataset(paths, shardshuffle=False)
    return np.concatenate([np.frombuffer(sample["u16"], "<u2") for sample in samples])


def test_reads_equal_the_stream_everywhere(data_path: Path) -> None:
    data = TokenDataset(data_path, "train")
    stream = whole_stream(data_path, "train")
    assert data.num_tokens == len(stream)
    assert len(read_manifest(data_path).splits["train"]) > 2
    all_of_it = data.read(0, data.num_tokens)
    assert all_of_it.dtype == np.int64
    assert (all_of_it == stream).all()
    for start in [0, 65_530, 65_536, 79_999, 131_000, len(stream) - 100]:
        assert (data.read(start, 100) == stream[start : start + 100]).all()
    with pytest.raises(IndexError):
        data.read(data.num_tokens - 99, 100)


def test_attributes_come_from_the_tokenizer(data_path: Path) -> None:
    data = TokenDataset(data_path, "valid")
    info = load_tokenizer(data.tokenizer_directory).info
    assert data.vocab_size == info.vocab_size
    assert data.tokenizer_fingerprint == info.fingerprint
    assert (data.mask_id, data.bos_id, data.eos_id) == (info.mask_id, info.bos_id, info.eos_id)
    assert data.fingerprint == read_manifest(data_path).fingerprint
    tokens = data.read(0, data.num_tokens)
    documents = sum(shard.num_documents for shard in read_manifest(data_path).splits["valid"])
    assert (tokens == data.eos_id).sum() == documents
    assert not (tokens == data.mask_id).any()


def test_literal_mask_text_is_not_the_mask(data_path: Path, tmp_path: Path) -> None:
    text = tmp_path / "corpus.txt"
    text.write_text("[MASK] " * 50 + text_of(1))
    job = make_job(text, data_path / "tokenizer", tmp_path / "data", valid_fraction=0.0)
    run_job(job, data_path / "tokenizer")
    data = TokenDataset(job.out, "train")
    tokens = data.read(0, data.num_tokens)
    assert not (tokens == data.mask_id).any()
    decoded = load_tokenizer(data.tokenizer_directory).decode(tokens[:-1])
    assert decoded == text.read_text()


def test_batches_are_the_same_for_every_number_of_ranks(data_path: Path) -> None:
    reader = SampleReader(TokenDataset(data_path, "train"), 64, seed=3)
    start = 3 * reader.num_sequences // 2
    for step in range(3):
        batch = start + 16 * step + np.arange(16)
        whole = reader.read(batch)
        for ranks in (2, 4):
            parts = [reader.read(part) for part in np.split(batch, ranks)]
            assert (np.concatenate(parts) == whole).all()


def test_an_epoch_has_every_sequence_once(data_path: Path) -> None:
    data = TokenDataset(data_path, "valid")
    reader = SampleReader(data, 32, seed=3)
    rows = reader.read(np.arange(reader.num_sequences) + 5 * reader.num_sequences)
    stream = data.read(0, reader.num_sequences * 32).reshape(-1, 32)
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, stream.tolist()))


def test_resume_at_a_billion_samples(data_path: Path) -> None:
    numbers = 10**9 + np.arange(8)
    first = SampleReader(TokenDataset(data_path, "train"), 128, seed=1).read(numbers)
    again = SampleReader(TokenDataset(data_path, "train"), 128, seed=1)
    assert (again.read(numbers) == first).all()
    again.check_state(again.state(10**9))


def test_state_lists_every_difference(data_path: Path) -> None:
    data = TokenDataset(data_path, "train")
    reader = SampleReader(data, 128, seed=1)
    state = reader.state(40)
    assert state == {
        "consumed_samples": 40,
        "seed": 1,
        "dataset_fingerprint": data.fingerprint,
        "seq_len": 128,
        "shuffle": "global",
        "packing": "continuous",
    }
    other = SampleReader(data, 64, seed=2, shuffle="none")
    with pytest.raises(DataError) as caught:
        other.check_state({**state, "consumed_samples": -1})
    for part in ("consumed_samples: -1", "seed: 1", "seq_len: 128", "shuffle: global"):
        assert part in str(caught.value)


def test_threads_share_a_dataset_with_few_open_files(
    data_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_files, "MAX_OPEN_FILES", 1)
    data = TokenDataset(data_path, "train")
    reader = SampleReader(data, 512, seed=0)
    batches = [np.arange(16) + 16 * i for i in range(20)]
    expected = [reader.read(batch) for batch in batches]
    open_before = len(os.listdir("/proc/self/fd"))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(reader.read, batches))
    assert all((a == b).all() for a, b in zip(expected, found, strict=True))
    assert len(os.listdir("/proc/self/fd")) <= open_before


def test_missing_manifest_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"manifest\.json does not exist.*esolm prep merge") as got:
        TokenDataset(tmp_path, "train")
    assert got.value.exit_code == 64


def test_truncated_and_missing_shards_are_named_at_open(copy_path: Path) -> None:
    shard = first_shard(copy_path)
    size = shard.stat().st_size
    os.truncate(shard, size - 512)
    with pytest.raises(DataError) as caught:
        TokenDataset(copy_path, "train")
    message = str(caught.value)
    assert f"{shard}: cut short, {size} bytes expected, {size - 512} found" in message
    assert "esolm prep verify" in message
    shard.unlink()
    with pytest.raises(DataError, match=f"{shard.name}: missing"):
        TokenDataset(copy_path, "train")


def test_a_shard_truncated_in_use_is_an_error(copy_path: Path) -> None:
    data = TokenDataset(copy_path, "train")
    os.truncate(first_shard(copy_path), 1000)
    with pytest.raises(DataError, match="cut short while in use"):
        data.read(1000, 64)


def test_a_corpus_of_one_document_is_no_two_splits(data_path: Path, tmp_path: Path) -> None:
    job = make_job(write_jsonl(tmp_path / "one.jsonl", 1), data_path / "tokenizer", tmp_path / "d")
    run_job(job, data_path / "tokenizer")
    with pytest.raises(DataError, match="a document is never divided between splits"):
        TokenDataset(job.out, "valid")


def test_empty_split_and_too_few_tokens_are_errors(data_path: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no tokens of split 'test'"):
        TokenDataset(data_path, "test")
    with pytest.raises(DataError, match=r"too few for one sequence of 100000000.*seq_len"):
        SampleReader(TokenDataset(data_path, "valid"), 10**8, seed=0)
    corpus = write_jsonl(tmp_path / "corpus.jsonl", 3)
    job = make_job(corpus, data_path / "tokenizer", tmp_path / "data", valid_fraction=0.0)
    run_job(job, data_path / "tokenizer")
    with pytest.raises(DataError, match="--valid-fraction"):
        TokenDataset(job.out, "valid")


def test_a_token_beyond_the_vocabulary_names_its_place(copy_path: Path) -> None:
    """One flipped bit would read another row of the embedding, or fail without a word."""
    data = TokenDataset(copy_path, "train", checked=False)
    shard = first_shard(copy_path)
    info, position = read_manifest(copy_path).splits["train"][0], 65_540
    offset = info.member_offset + info.member_stride + 2 * (position - 65_536)
    content = bytearray(shard.read_bytes())
    content[offset + 1] ^= 0x80
    shard.write_bytes(content)
    place = rf"{shard}, member 1, byte {offset}: token \d+ is not of the vocabulary"
    for start, length in ((position, 1), (position - 50, 100)):
        with pytest.raises(DataError, match=place):
            data.read(start, length)
    assert len(data.read(position + 1, 100)) == 100


def test_wrapped_rows(data_path: Path) -> None:
    """bos, the next L - 2 tokens of the stream, eos; a checkpoint from before was not wrapped."""
    dataset = TokenDataset(data_path, "train")
    reader = SampleReader(dataset, 32, seed=1, shuffle="none", packing="wrapped")
    assert reader.num_sequences == dataset.num_tokens // 30
    rows = reader.read(np.array([0, 7, reader.num_sequences - 1]))
    for row, number in zip(rows, (0, 7, reader.num_sequences - 1), strict=True):
        content = dataset.read(30 * number, 30).tolist()
        assert row.tolist() == [dataset.bos_id, *content, dataset.eos_id]
    plain = SampleReader(dataset, 32, seed=1, shuffle="none")
    former = {key: value for key, value in plain.state(5).items() if key != "packing"}
    plain.check_state(former)
    with pytest.raises(DataError, match="packing: continuous in the checkpoint, wrapped here"):
        reader.check_state(former)
    with pytest.raises(DataError, match="seq_len is 2, must be at least 3"):
        SampleReader(dataset, 2, seed=1, packing="wrapped")
