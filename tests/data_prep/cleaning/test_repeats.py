"""Repeats and near-duplicates in the whole corpus, against plain sets and loops."""

import os
import resource
from itertools import combinations
from pathlib import Path
from random import Random

import numpy as np
import pytest

from esolm.data_prep.cleaning.minhash import NUM_BANDS, band_keys, signature
from esolm.data_prep.cleaning.runs import KEYS_END, Run, RunWriter, later_documents


def later_by_a_set(keys: list[list[tuple[bytes, int]]]) -> set[tuple[int, int]]:
    first: dict[bytes, tuple[int, int]] = {}
    later = set()
    for task, entries in enumerate(keys):
        for key, number in sorted(entries, key=lambda entry: entry[1]):
            if first.setdefault(key, (task, number)) != (task, number):
                later.add((task, number))
    return later


@pytest.mark.parametrize(("run_entries", "window"), [(1000, 10**6), (7, 5), (1, 6)])
@pytest.mark.parametrize("num_shares", [1, 3])
def test_later_documents(tmp_path: Path, run_entries: int, window: int, num_shares: int) -> None:
    random = Random(run_entries)
    pool = [random.randbytes(16) for _ in range(60)]
    # Keys that differ in one half only, and the ends of the range.
    pool += [pool[0][:8] + pool[1][8:], pool[2][:8] + pool[3][8:], b"\xff" * 16, b"\0" * 16]
    keys = [[(random.choice(pool), number // 2) for number in range(40)] for _ in range(3)]
    runs = []
    for task, entries in enumerate(keys):
        writer = RunWriter(tmp_path / f"task-{task}", run_entries)
        for key, number in entries:
            writer.add(key, number)
        writer.close()
        runs += [Run(task, path) for path in writer.paths]
    found = []
    for share in range(num_shares):
        start, stop = (KEYS_END * n // num_shares for n in (share, share + 1))
        for later in later_documents(runs, start, stop, window):
            found += zip(later.tasks.tolist(), later.numbers.tolist(), strict=True)
    assert set(found) == later_by_a_set(keys)


def test_more_runs_than_files_may_be_open(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "task-0", run_entries=1)
    for number in range(200):
        writer.add(bytes([number % 100]) * 16, number)
    runs = [Run(0, path) for path in writer.paths]
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, before[1]))
    try:
        found = [later.numbers for later in later_documents(runs, 0, KEYS_END, window=30)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert np.concatenate(found).tolist() == list(range(100, 200))
    assert max(map(len, found)) <= 15, "a window holds 30 entries"


def words(random: Random, count: int) -> list[str]:
    return [f"w{random.randrange(10**6)}" for _ in range(count)]


def jaccard(first: list[str], second: list[str]) -> float:
    sets = [{tuple(w[i : i + 5]) for i in range(len(w) - 4)} for w in (first, second)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_signatures_agree_as_often_as_the_sets_overlap() -> None:
    random = Random(1)
    for share in (0.0, 0.3, 0.6, 0.9, 1.0):
        found, expected = [], []
        for _ in range(30):
            common, rest = words(random, round(400 * share)), round(400 * (1 - share))
            one, two = common + words(random, rest), common + words(random, rest)
            expected.append(jaccard(one, two))
            first, second = signature(" ".join(one)), signature(" ".join(two))
            assert first is not None
            assert second is not None
            found.append(float(np.mean(first == second)))
        # 30 x 112 draws: a standard deviation of at most 0.009.
        assert abs(np.mean(found) - np.mean(expected)) < 0.035


def test_bands_are_shared_by_near_duplicates_alone() -> None:
    random = Random(2)
    base = words(random, 500)
    texts = {
        "itself": base,
        "one word": [*base[:250], "other", *base[251:]],
        "a little more": [*base, *words(random, 20)],
        "half": [*base[:250], *words(random, 250)],
        "another": words(random, 500),
    }
    keys = {name: set(band_keys(" ".join(text))) for name, text in texts.items()}
    assert all(len(each) == NUM_BANDS for each in keys.values())
    near = {frozenset(pair) for pair in combinations(keys, 2) if keys[pair[0]] & keys[pair[1]]}
    close = ("itself", "one word", "a little more")
    assert near == {frozenset(pair) for pair in combinations(close, 2)}
    assert band_keys("Itself, again; and AGAIN!") == band_keys("itself again\nand again")
    assert band_keys("only four words here") == []


def test_a_text_of_many_passages_has_one_signature() -> None:
    random = Random(4)
    text = words(random, 10_000)
    whole = signature(" ".join(text))
    parts = [signature(" ".join(text[start : start + 104])) for start in range(0, 10_000, 100)]
    assert whole is not None
    assert np.array_equal(whole, np.min([part for part in parts if part is not None], axis=0))
