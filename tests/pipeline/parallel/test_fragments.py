import pytest
import torch

from esolm.pipeline.parallel.fragments import Fragment


def fragment_of(
    local: torch.Tensor, start: int, numel: int, full: tuple[int, ...], offsets: tuple[int, ...]
) -> Fragment:
    flat = local.flatten()[start : start + numel]
    return Fragment("w", full, tuple(local.shape), offsets, start, {"weights": flat}, True)


@pytest.mark.parametrize("columns", [1, 2, 5, 7])
def test_boxes_tile_every_flat_range_of_a_matrix(columns: int) -> None:
    local = torch.arange(6.0 * columns).view(6, columns) + 1
    for start in range(local.numel()):
        for numel in range(local.numel() - start + 1):
            fragment = fragment_of(local, start, numel, (6, columns), (0, 0))
            rebuilt = torch.zeros_like(local)
            boxes = fragment.boxes()
            assert len(boxes) <= 3
            for box in boxes:
                (row, column), (height, width) = box.offsets, box.sizes
                part = fragment.states["weights"][box.start : box.start + box.numel]
                rebuilt[row : row + height, column : column + width] += part.view(box.sizes)
            expected = torch.zeros(local.numel())
            expected[start : start + numel] = local.flatten()[start : start + numel]
            assert torch.equal(rebuilt.flatten(), expected)


def test_rows_that_pad_the_vocabulary_are_cut() -> None:
    local = torch.ones(4, 3)  # rows 4..7 of a vocabulary of 6, padded to 8
    fragment = fragment_of(local, 2, 10, (6, 3), (4, 0))
    assert [(box.offsets, box.sizes) for box in fragment.boxes()] == [
        ((4, 2), (1, 1)),
        ((5, 0), (1, 3)),
    ]


def test_a_column_split_moves_the_boxes_sideways() -> None:
    fragment = fragment_of(torch.ones(2, 3), 0, 6, (2, 6), (0, 3))
    (box,) = fragment.boxes()
    assert (box.offsets, box.sizes) == ((0, 3), (2, 3))


def test_vectors() -> None:
    fragment = fragment_of(torch.ones(5), 1, 3, (10,), (5,))
    (box,) = fragment.boxes()
    assert (box.offsets, box.sizes, box.start, box.numel) == ((6,), (3,), 0, 3)
