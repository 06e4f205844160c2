"""The buffers of asynchronous saves: one for each state, the same for every save."""

import torch

from esolm.pipeline.checkpoint.staging import Staging
from esolm.pipeline.parallel.fragments import STATES, Fragment


def fragments(offset: float) -> list[Fragment]:
    sizes = {"first": 6, "second": 4}
    return [
        Fragment(
            name, (size,), (size,), (0,), 0,
            {s: torch.arange(float(size)) + offset + i for i, s in enumerate(STATES)}, True,
        )
        for name, size in sizes.items()
    ]  # fmt: skip


def test_copies_lie_one_after_the_other_in_one_buffer_for_each_state() -> None:
    sources, staging = fragments(0), Staging()
    copies = staging.copy(sources)
    for source, copy in zip(sources, copies, strict=True):
        assert copy.name == source.name
        for state in STATES:
            assert torch.equal(copy.states[state], source.states[state])
            assert copy.states[state].data_ptr() != source.states[state].data_ptr()
    for state in STATES:
        first, second = (copy.states[state] for copy in copies)
        assert first.untyped_storage().nbytes() == 4 * 10
        assert first.data_ptr() + 4 * 6 == second.data_ptr()


def test_a_second_save_takes_no_more_memory() -> None:
    staging = Staging()
    before = [c.states["ema"].data_ptr() for c in staging.copy(fragments(0))]
    again = staging.copy(fragments(7))
    assert [c.states["ema"].data_ptr() for c in again] == before
    assert again[0].states["weights"].tolist() == [7, 8, 9, 10, 11, 12]
