"""Mixtures: quotas, orders and epochs are exact, whatever the restarts and changes."""

import json
import shutil
from collections import Counter
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from esolm.data_prep.errors import DataError
from esolm.pipeline.data.dataset import TokenDataset
from esolm.pipeline.data.mixture import MixtureReader, MixtureSource
from esolm.pipeline.data.quotas import Quotas
from esolm.pipeline.data.reader import SampleReader
from esolm.pipeline.data.segments import WINDOW, MixtureIndex, MixtureSegment, SourceShare

SEQ_LEN = 32


@pytest.fixture(scope="module")
def datasets(source_folders: dict[str, Path]) -> dict[str, TokenDataset]:
    return {name: TokenDataset(folder, "train") for name, folder in source_folders.items()}


def sources(datasets: dict[str, TokenDataset], **weights: float) -> list[MixtureSource]:
    return [MixtureSource(name, datasets[name], weight) for name, weight in weights.items()]


def reader_of(
    datasets: dict[str, TokenDataset], shuffle: str = "global", **weights: float
) -> MixtureReader:
    return MixtureReader(sources(datasets, **weights), SEQ_LEN, seed=3, shuffle=shuffle)


def segment(first: int, **weights: float) -> MixtureSegment:
    return MixtureSegment(first, tuple(SourceShare(n, w, n, n) for n, w in weights.items()))


def test_quotas_are_exact_and_never_fall() -> None:
    random = Random(1)
    for size in (1, 2, 3, 5, 8, 20):
        for _ in range(10):
            weights = [random.choice([random.random(), random.randint(1, 9)]) for _ in range(size)]
            weights[0] *= random.choice([1.0, 1e-5])
            exact = [Fraction(repr(float(weight))) for weight in weights]
            quotas, before = Quotas(weights), [0] * size
            for total in [*range(200), *range(1024, 200 * 1024, 1024), 10**9, 10**13]:
                counts = quotas.counts(total)
                assert sum(counts) == total
                assert all(now >= was for now, was in zip(counts, before, strict=True))
                for count, weight in zip(counts, exact, strict=True):
                    assert abs(count - total * weight / sum(exact)) <= Fraction(3, 2)
                before = counts


def test_shares_that_divide_a_window_are_met_in_every_window() -> None:
    index = MixtureIndex([segment(0, a=0.5, b=0.25, c=0.125, d=0.125)], seed=1)
    for window in (0, 1, 2, 10**9):
        found, _ = index.locate(np.arange(window * WINDOW, (window + 1) * WINDOW))
        assert Counter(found.tolist()) == {0: 512, 1: 256, 2: 128, 3: 128}


def test_decimal_weights_are_what_they_are_written_as() -> None:
    """0.7 + 0.2 + 0.1 are not 1 as binary fractions, and a long run would drift."""
    assert Quotas([0.7, 0.2, 0.1]).counts(10**15) == [7 * 10**14, 2 * 10**14, 10**14]
    assert Quotas([7, 2, 1]).counts(12345) == Quotas([0.7, 0.2, 0.1]).counts(12345)


def test_the_samples_of_a_source_come_in_its_own_order_and_mixed_with_the_others() -> None:
    index = MixtureIndex([segment(0, a=3, b=2, c=1)], seed=5)
    found, occurrences = index.locate(np.arange(10 * WINDOW))
    for source in range(3):
        mine = occurrences[found == source]
        assert mine.tolist() == list(range(len(mine)))
    # Neither in blocks nor in the same places in every window.
    changes = np.count_nonzero(np.diff(found[:WINDOW]))
    assert 500 < changes < 730  # 2/3 of neighbours differ by chance, less those of one source: 620
    assert (found[:WINDOW] != found[WINDOW : 2 * WINDOW]).sum() > 400
    assert (
        MixtureIndex([segment(0, a=3, b=2, c=1)], 6).locate(np.arange(99))[0] != found[:99]
    ).any()


def test_what_was_taken_is_what_was_read_whatever_changed_and_when() -> None:
    random = Random(2)
    segments, first = [], 0
    for _ in range(6):
        names = random.sample("abcdefg", random.randint(1, 5))
        segments.append(segment(first, **{name: random.randint(1, 50) for name in names}))
        first += random.randint(1, 5000)
    index = MixtureIndex(segments, seed=9)
    found, occurrences = index.locate(np.arange(first + 3000))
    for number in range(len(index.fingerprints)):
        mine = occurrences[found == number]
        assert mine.tolist() == list(range(len(mine))), "a source goes on where it was"
    for total in [*(s.first_sample for s in segments), 0, 1, 777, 1024, first + 3000]:
        expected = np.bincount(found[:total], minlength=len(index.fingerprints)).tolist()
        assert index.taken(total) == expected


def test_one_source_is_the_reader_of_its_dataset(datasets: dict[str, TokenDataset]) -> None:
    for shuffle in ("global", "none"):
        alone = SampleReader(datasets["c"], SEQ_LEN, 3, shuffle)
        reader = reader_of(datasets, shuffle, c=0.3)
        numbers = np.array([0, 5, 1023, 1024, 10**6, 10**12])
        assert (reader.read(numbers) == alone.read(numbers)).all()
        assert reader.state(77) == alone.state(77)


@pytest.mark.parametrize("shuffle", ["global", "none"])
@pytest.mark.parametrize("packing", ["continuous", "wrapped"])
def test_every_row_is_that_of_its_source(
    shuffle: str, packing: str, datasets: dict[str, TokenDataset]
) -> None:
    mixed = sources(datasets, a=5, b=4, c=3, d=2, e=1)
    reader = MixtureReader(mixed, SEQ_LEN, 3, shuffle, packing)
    own = [SampleReader(datasets[name], SEQ_LEN, 3, shuffle, packing) for name in "abcde"]
    numbers = np.array([*range(2000), *range(10**9, 10**9 + 100)])
    np.random.default_rng(0).shuffle(numbers)
    found, occurrences = reader.index.locate(numbers)
    expected = np.stack(
        [own[s].read(np.array([n]))[0] for s, n in zip(found, occurrences, strict=True)]
    )
    assert (reader.read(numbers) == expected).all()


def test_epochs_of_each_source_are_permutations_of_it(datasets: dict[str, TokenDataset]) -> None:
    reader = reader_of(datasets, a=1, b=1, e=2)
    found, _ = reader.index.locate(np.arange(4096))
    rows = reader.read(np.arange(4096))
    for number, name in enumerate("abe"):
        length = datasets[name].num_tokens // SEQ_LEN
        every = datasets[name].read(0, length * SEQ_LEN).reshape(length, SEQ_LEN)
        mine = rows[found == number]
        assert len(mine) >= 2 * length
        for epoch in range(len(mine) // length):
            part = mine[epoch * length : (epoch + 1) * length]
            assert sorted(map(bytes, part)) == sorted(map(bytes, every))


def test_any_replicas_and_any_restarts_read_the_same(datasets: dict[str, TokenDataset]) -> None:
    """DP in 1, 2, 4 and 8, restarted at 100 random points, in another DP each time."""
    weights = {"a": 0.35, "b": 0.3, "c": 0.2, "d": 0.1, "e": 0.05}
    batch, steps, random = 16, 1536, Random(4)
    expected = reader_of(datasets, **weights).read(np.arange(batch * steps))
    restarts = sorted(random.sample(range(1, steps), 100))
    rows, replicas, state = [], 1, None
    for first, last in zip([0, *restarts], [*restarts, steps], strict=True):
        readers = []
        for _ in range(replicas):
            readers.append(reader_of(datasets, **weights))
            if state is not None:
                assert readers[-1].adopt(json.loads(state)) == []
        for step in range(first, last):
            parts = {}
            for rank, reader in enumerate(readers):
                # As BatchSource deals slots to replicas, with micro-batches of one row.
                slots = np.arange(rank, batch, replicas)
                parts |= dict(zip(slots.tolist(), reader.read(step * batch + slots), strict=True))
            rows += [parts[slot] for slot in range(batch)]
        state = json.dumps(readers[0].state(last * batch))
        replicas = random.choice([n for n in (1, 2, 4, 8) if n != replicas])
    assert np.stack(rows).tobytes() == expected.tobytes()
    index = reader_of(datasets, **weights).index
    for total in range(WINDOW, len(expected) + 1, WINDOW):
        for count, share in zip(index.taken(total), weights.values(), strict=True):
            assert abs(count - share * total) <= 1.5
    assert index.taken(20 * WINDOW) == [7168, 6144, 4096, 2048, 1024]


def adopted(reader: MixtureReader, state: dict[str, Any], may_change: bool = True) -> list[str]:
    return reader.adopt(json.loads(json.dumps(state)), may_change)


def test_a_change_is_refused_unless_it_is_wanted(datasets: dict[str, TokenDataset]) -> None:
    state = reader_of(datasets, a=1, b=2, c=1).state(1500)
    with pytest.raises(DataError) as refused:
        adopted(reader_of(datasets, a=1, b=1, d=2), state, may_change=False)
    text = str(refused.value)
    assert "source 'd'" in text
    assert "is new" in text
    assert "source 'c'" in text
    assert "is gone" in text
    assert "source 'b': 0.5 of the samples before, 0.25 now" in text
    assert "source 'a'" not in text, "it has a quarter as before"
    assert "data.change_sources=true" in text
    other = MixtureReader(sources(datasets, a=1, b=2, c=1), 16, seed=4)
    with pytest.raises(DataError, match=r"seed: 3 in .*\n.*seq_len: 32 in .*, 16 here"):
        adopted(other, state)


def test_rows_from_before_a_run_left_its_only_dataset(datasets: dict[str, TokenDataset]) -> None:
    """The checkpoint says where that lies."""
    alone = SampleReader(datasets["a"], SEQ_LEN, 3)
    after = reader_of(datasets, b=1, c=1)
    after.adopt(alone.state(40), True, str(datasets["a"].path))
    numbers = np.arange(36, 40)
    assert np.array_equal(after.read(numbers), alone.read(numbers))


def test_order_names_and_unit_of_the_list_are_no_change(datasets: dict[str, TokenDataset]) -> None:
    before = reader_of(datasets, a=0.7, b=0.2, c=0.1)
    renamed = [
        MixtureSource("C", datasets["c"], 1.0),
        MixtureSource("A", datasets["a"], 7.0),
        MixtureSource("B", datasets["b"], 2.0),
    ]
    after = MixtureReader(renamed, SEQ_LEN, 3)
    assert adopted(after, before.state(100), may_change=False) == []
    numbers = np.arange(3000)
    assert (after.read(numbers) == before.read(numbers)).all()


def test_a_change_leaves_what_was_and_goes_on_with_what_stays(
    datasets: dict[str, TokenDataset],
) -> None:
    first = reader_of(datasets, a=1, b=2, c=1)
    second = reader_of(datasets, b=1, d=1)
    assert len(adopted(second, first.state(1500))) == 3
    third = reader_of(datasets, a=1, d=3)
    adopted(third, second.state(2600))
    assert (second.index.locate(np.arange(1500))[1] == first.index.locate(np.arange(1500))[1]).all()
    names = [datasets[n].fingerprint for n in "abcd"]
    found, occurrences = third.index.locate(np.arange(5000))
    assert third.index.fingerprints == names
    for number in range(4):
        mine = occurrences[found == number]
        assert mine.tolist() == list(range(len(mine)))
    assert set(found[2600:].tolist()) == {0, 3}
    # A restart before anything was read of the new part leaves no empty part.
    again = reader_of(datasets, a=1, d=1)
    adopted(again, third.state(2600))
    assert [part.first_sample for part in again.index.segments] == [0, 1500, 2600]
    # Without another change the option changes nothing.
    same = reader_of(datasets, a=1, d=3)
    assert adopted(same, third.state(4000)) == []
    assert same.index.segments == third.index.segments


def test_a_run_of_one_dataset_takes_in_another_and_leaves_it(
    datasets: dict[str, TokenDataset],
) -> None:
    alone = SampleReader(datasets["b"], SEQ_LEN, 3)
    both = reader_of(datasets, b=1, e=1)
    with pytest.raises(DataError, match=r"source 'e'.* is new"):
        adopted(both, alone.state(300), may_change=False)
    adopted(both, alone.state(300))
    assert (both.read(np.arange(300)) == alone.read(np.arange(300))).all()
    after = reader_of(datasets, b=1)
    with pytest.raises(DataError, match=r"source 'e'.* is gone"):
        adopted(after, both.state(500), may_change=False)
    adopted(after, both.state(500))
    taken = both.index.taken(500)[0]
    assert (after.read(np.arange(500, 600)) == alone.read(np.arange(taken, taken + 100))).all()


def test_a_source_is_read_as_often_as_it_may_be(datasets: dict[str, TokenDataset]) -> None:
    length = datasets["a"].num_tokens // SEQ_LEN
    bounded = [MixtureSource("a", datasets["a"], 1.0, 1.5), MixtureSource("e", datasets["e"], 1.0)]
    reader = MixtureReader(bounded, SEQ_LEN, 3)
    uses = {use.name: use for use in reader.uses(2 * WINDOW)}
    assert uses["a"].samples == WINDOW
    assert uses["a"].epochs == WINDOW / length
    assert f"'a' would be read {WINDOW / length:.3g} times, 1024 rows" in str(uses["a"].problem)
    assert uses["e"].problem is None
    assert reader.uses(2 * length)[0].problem is None
    found, occurrences = reader.index.locate(np.arange(6 * length))
    last = int(np.flatnonzero((found == 0) & (occurrences >= 1.5 * length))[0])
    reader.read(np.arange(last))
    with pytest.raises(DataError, match=r"/a is exhausted: its .* read 1.5 times"):
        reader.read(np.arange(last, last + 1))


def test_what_was_read_before_a_change_is_found_where_it_was(
    datasets: dict[str, TokenDataset], tmp_path: Path
) -> None:
    """As a look back at an earlier step needs it."""
    moved = {name: shutil.copytree(datasets[name].path, tmp_path / name) for name in "ab"}
    before = reader_of(
        {name: TokenDataset(path, "train") for name, path in moved.items()}, a=1, b=1
    )
    state, expected = before.state(100), before.read(np.arange(100))

    def later() -> MixtureReader:
        reader = reader_of(datasets, a=1)
        adopted(reader, state)
        return reader

    assert (later().read(np.arange(100)) == expected).all()
    shutil.rmtree(moved["b"])
    with pytest.raises(DataError, match=r"sample of 'b' was asked .*manifest.json"):
        later().read(np.arange(100))
    shutil.copytree(datasets["c"].path, moved["b"])
    with pytest.raises(DataError, match=r"sample of 'b' was asked .* holds other tokens"):
        later().read(np.arange(100))
    later().read(np.arange(100, 200))


def test_a_mixture_is_found_at_once_at_any_place() -> None:
    index = MixtureIndex([segment(0, **{f"s{i}": i + 1.0 for i in range(40)})], seed=1)
    _, occurrences = index.locate(np.array([10**15, 10**15 + 1023]))
    assert (occurrences > 10**12).all()
    assert sum(index.taken(10**15 + 7)) == 10**15 + 7
