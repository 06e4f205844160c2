"""Runs one chunk of rows through the network and keeps sums for each row, in nats.

Every draw is keyed by (seed, row, draw, term), and the chunks do not depend on the number of
processes. So the values of a row are the same whichever process computes them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esolm.model.likelihood import (
    draw_orders,
    draw_prefix_lengths,
    left_to_right_log_likelihood,
    order_log_likelihood,
    orders_log_likelihood,
    token_log_p,
)
from esolm.model.objectives import Objective, Orders, SampleKeys
from esolm.model.objectives.base import SEQUENTIAL
from esolm.model.objectives.draws import Purpose
from esolm.pipeline.data.batches import VALIDATION_SEED
from esolm.pipeline.evaluate.subject import Subject

Int64Array = NDArray[np.int64]
Float64Array = NDArray[np.float64]

NUM_BUCKETS = 10
# A split has fewer rows than this. Draw n numbers its samples from n times this number on.
_ROWS_PER_DRAW = 1 << 40
# The keys of the draws' turns count from here, above all purposes of `SampleKeys`.
_TURNS = 1 << 32
# The columns of the t-buckets: tokens, masked tokens, weighted nats (of the bound), plain nats.
BUCKET_COLUMNS = 4


@dataclass(frozen=True)
class ChunkResult:
    """What the passes over one chunk have given.

    terms: the bound in nats by loss term, [rows, draws]. buckets: [NUM_BUCKETS, BUCKET_COLUMNS].
    orders: log p under each drawn order, [rows, K]. left_to_right: log p, [rows]; it is empty if
    the network has no exact likelihood. num_bytes: bytes of the predicted tokens, [rows].
    """

    terms: dict[str, Float64Array]
    buckets: Float64Array
    orders: Float64Array
    left_to_right: Float64Array
    num_bytes: Int64Array


ORDERS_AS = {
    "decoder": "the network's own decoder",
    "published": "the published code: causal, no prefix",
}
"""Whose likelihood is meant under an order, by the values of --orders-as."""


def orders_are_of(objective: Objective, orders_as: str) -> str:
    """Says in words whose likelihood is measured under the orders of a network."""
    if objective.orders is Orders.ANY:
        return "the network's own decoder, and the published code alike"
    return ORDERS_AS[orders_as]


def follows_orders(objective: Objective) -> bool:
    """Whether the network has a likelihood under any order."""
    return objective.orders in (Orders.ANY, Orders.ANY_BEHIND_PREFIX)


@dataclass(frozen=True)
class Schedule:
    """Gives every row its slot in an imagined global batch, for each loss term and each draw.

    Every row takes every term in every draw. t is stratified over the rows. Each draw turns the
    assignment of strata to rows by a random amount, so that the draws are independent and unbiased.
    """

    objective: Objective
    num_rows: int
    seq_len: int
    seed: int
    global_batch_size: int = field(init=False)

    def __post_init__(self) -> None:
        size, num_terms = self.num_rows, len(self.objective.work(self.seq_len))
        while not self._fits(size, num_terms):
            size *= 2
        object.__setattr__(self, "global_batch_size", size)

    def _fits(self, size: int, num_terms: int) -> bool:
        spans = self.objective.terms(size)
        return len(spans) == num_terms and min(map(len, spans.values())) >= self.num_rows

    def keys(self, term: str, draw: int, index: Int64Array) -> SampleKeys:
        """The keys of the rows `index` [N] in one term of one draw."""
        spans = self.objective.terms(self.global_batch_size)
        number, span = list(spans).index(term), spans[term]
        sample = (draw * len(spans) + number) * _ROWS_PER_DRAW + index
        turned = (index + self._turn(draw)) % self.num_rows
        within = np.zeros_like(index)
        if len(span) > self.num_rows:  # the slot of a row is random within its stratum
            uniform = SampleKeys(self.seed, sample, index, 1).uniforms(Purpose.TIME, 1)[:, 0]
            within = (uniform * len(span)).astype(np.int64)
        slot = span.start + (turned * len(span) + within) // self.num_rows
        return SampleKeys(self.seed ^ VALIDATION_SEED, sample, slot, self.global_batch_size)

    def _turn(self, draw: int) -> int:
        key = np.array([self.seed ^ VALIDATION_SEED, _TURNS + draw], dtype=np.uint64)
        return int(np.random.Generator(np.random.Philox(key=key)).integers(self.num_rows))


@dataclass(frozen=True)
class Passes:
    """Makes all forward passes over a chunk.

    objective: the one with the weights of the bound. orders_as: a key of `ORDERS_AS`.
    """

    subject: Subject
    objective: Objective
    schedule: Schedule
    num_draws: int
    num_orders: int
    orders_as: str = "decoder"

    def run(
        self,
        tokens: Int64Array,
        index: Int64Array,
        num_bytes: Int64Array,
        on_part: Callable[[], None] = lambda: None,
    ) -> ChunkResult:
        """Measures the rows `index`. tokens: [rows, L]. num_bytes: [rows].

        on_part: called for each order that is done, and once for all else: `parts` times.
        """
        rows, logits = torch.from_numpy(tokens), self.subject.logits
        buckets = np.zeros((NUM_BUCKETS, BUCKET_COLUMNS))
        terms: dict[str, list[Float64Array]] = {}
        orders, exact = np.zeros((len(rows), 0)), np.zeros(0)
        if self.objective.orders is Orders.LEFT_TO_RIGHT:
            log_p = left_to_right_log_likelihood(logits, self.objective, rows)
            exact = log_p.sum(1).numpy()
            terms = {SEQUENTIAL: [-exact]}
        else:
            for draw in range(self.num_draws):
                for term in self.objective.terms(self.schedule.global_batch_size):
                    nats, counted = self._bound(rows, self.schedule.keys(term, draw, index))
                    terms.setdefault(term, []).append(nats)
                    buckets += counted
        if follows_orders(self.objective):
            natural = np.tile(np.arange(tokens.shape[1]), (len(rows), 1))
            mask_id, eos_id = self.subject.mask_id, self.objective.eos_id
            log_p = order_log_likelihood(logits, rows, natural, mask_id, eos_id)
            exact = log_p.sum(1).numpy()
            orders = self._orders(rows, index, on_part)
        on_part()
        columns = {term: np.stack(draws, axis=1) for term, draws in terms.items()}
        return ChunkResult(columns, buckets, orders, exact, num_bytes)

    def _bound(self, rows: Tensor, keys: SampleKeys) -> tuple[Float64Array, Float64Array]:
        """Measures one term of one draw: the nats of each row, [rows], and the buckets' share."""
        length = rows.shape[1]
        predicted = self.objective.predicted_tokens(length)
        inputs, targets = self.objective.corrupt(rows, keys)
        log_p = token_log_p(self.subject.logits, inputs, targets.labels)
        masked = targets.weights > 0
        # The weights are those of a mean over a global batch; here each row's own sum is wanted.
        terms = self.objective.terms(keys.global_batch_size).values()
        share = next(len(span) for span in terms if int(keys.slot[0]) in span) * predicted
        plain = -torch.where(masked, log_p, 0.0).numpy()
        weighted = plain * targets.weights.double().numpy() * share
        times = targets.times
        buckets = np.zeros((NUM_BUCKETS, BUCKET_COLUMNS))
        if times is not None:
            given = length - predicted
            parts = (np.ones_like(plain), masked.numpy().astype(float), weighted, plain)
            place = np.minimum((times[:, given:] * NUM_BUCKETS).astype(int), NUM_BUCKETS - 1)
            for column, values in enumerate(parts):
                buckets[:, column] = np.bincount(
                    place.ravel(), values[:, given:].ravel(), minlength=NUM_BUCKETS
                )
        nats: Float64Array = weighted.sum(axis=1)
        return nats, buckets

    @property
    def parts(self) -> int:
        """What a chunk has to do; an order of Eso-LM (A) alone may take hundreds of passes."""
        return 1 + self.num_orders

    def _orders(
        self, rows: Tensor, index: Int64Array, on_order: Callable[[], None]
    ) -> Float64Array:
        if not self.num_orders:
            return np.zeros((len(rows), 0))
        share = self.objective.diffusion_share
        draw = (self.schedule.seed, index, rows.shape[1], share, self.num_orders)
        behind_prefix = (
            self.objective.orders is Orders.ANY_BEHIND_PREFIX and self.orders_as == "decoder"
        )
        prefixes = draw_prefix_lengths(*draw) if behind_prefix else None
        log_p = orders_log_likelihood(
            self.subject.logits,
            rows,
            draw_orders(*draw),
            self.subject.mask_id,
            prefixes,
            on_order,
            self.objective.eos_id,
        )
        drawn: Float64Array = log_p.numpy()
        return drawn
