"""The memory of what the forward pass keeps for the backward pass, as docs/plan.md derives it.

Letters there: T tokens are fed in a micro-batch, and Q of them are queries in the last block (those
of the first stream). D is the hidden width, F that of the feed-forward layer, H the number of
heads, V the vocabulary, t the number of tensor-parallel ranks, and e the bytes of a value (2 or 4);
s is t under sequence parallelism and else 1.
"""

import math
from dataclasses import dataclass, replace

from esolm.model.attention import FLEX_BLOCK
from esolm.model.config import ModelConfig
from esolm.model.flops import RowWork
from esolm.model.pieces import LOGITS_MB, bytes_per_logit, piece_rows
from esolm.pipeline.parallel.layout import Layout
from esolm.pipeline.plan.state import ELEMENT_BYTES


@dataclass(frozen=True)
class MicroBatchShape:
    """The numbers of tokens in a micro-batch of one kind of row, of those that a rank holds."""

    fed: int
    queries: int
    scored: int
    """The positions that go through the output layer; see `of`."""

    @classmethod
    def of(cls, work: RowWork, rows: int, context_ranks: int = 1) -> "MicroBatchShape":
        """Returns the shape of a micro-batch of so many rows, of which ranks share the tokens.

        All tokens of one stream count as scored, because all may be masked as t nears 1; of two
        streams the mean share counts. Of the noised stream a micro-batch leaves out what all rows
        can spare: the mean, less four standard deviations of a row's count at most.
        """
        length, streams = work.length, work.pattern.num_streams
        scored = length if streams == 1 else round(work.scored)
        spared = max(0, int(work.skipped - 2 * math.sqrt(length)))
        queries = length - spared // FLEX_BLOCK * FLEX_BLOCK
        numbers = (queries + (streams - 1) * length, queries, scored)
        return cls(*(-(-rows * number // context_ranks) for number in numbers))


def keys_attended(model: ModelConfig, layout: Layout) -> int:
    """Returns the width of the keys that a rank attends with, for each token that it holds.

    A head that several context-parallel ranks attend with is at each of them.
    """
    return max(model.kv_size // layout.tp, layout.cp * model.head_dim)


@dataclass(frozen=True)
class Activations:
    """The sizes of a model's activations on one rank of a layout."""

    model: ModelConfig
    layout: Layout
    precision: str
    checkpointing: str
    """`none`, `selective` or `full`; see `esolm.model.recompute`."""
    logits_mb: int = LOGITS_MB
    fp8: bool = False
    """Whether the products of the blocks are in FP8, whatever the recipe."""

    @property
    def _element(self) -> int:
        return ELEMENT_BYTES[self.precision]

    @property
    def _tokens_split(self) -> int:
        return self.layout.tp if self.layout.sequence else 1

    def _gathered(self, tokens: int) -> int:
        """The bytes of the other ranks' tokens, which products in FP8 keep for a split layer."""
        whole = self._element * tokens * self.model.hidden_size
        return whole - whole // self._tokens_split if self.fp8 else 0

    def _norm(self) -> int:
        """The bytes that a norm takes for each token, divided by D.

        Its input and output are fp32, and with adaLN the modulation takes more.
        """
        return 8 + self._element * (2 if self.model.adaln else 1)

    def attention(self, fed: int, queries: int) -> int:
        """The bytes inside one attention: q, k, v, the rotated q and k, output and log-sums.

        q lies in one storage with k and v, unless heads share those: then only norms in fp32, which
        take it as it is, keep it.
        """
        model, tp, element = self.model, self.layout.tp, self._element
        # Ranks that share a head of keys and values compute it each.
        asked, held = model.hidden_size // tp, max(model.kv_size // tp, model.head_dim)
        values = 2 * queries * asked + 3 * fed * held
        normed_as_they_are = model.qk_norm and element == 4
        if not model.num_kv_heads or normed_as_they_are:
            values += fed * asked
        if self.layout.cp > 1:
            values = self._exchanged(fed, queries)
            values += fed * (asked + 2 * held) if normed_as_they_are else 0
        normed = queries * asked + fed * held if model.qk_norm else 0
        of_norms = 4 * normed * (1 if element == 4 else 2)
        inside = element * values + of_norms + 4 * model.num_heads * queries // tp
        return inside + self._gathered(fed)

    def _exchanged(self, fed: int, queries: int) -> int:
        """The values that attention keeps where heads are exchanged for tokens.

        Those are q, k, v and the output of this rank's heads, and the output of its tokens; what
        was sent is not kept.
        """
        asked = self.model.hidden_size // self.layout.tp
        return 3 * queries * asked + 2 * fed * keys_attended(self.model, self.layout)

    def block(self, fed: int, queries: int) -> int:
        """The bytes of one block, without its attention if that is recomputed."""
        model, element = self.model, self._element
        if self.checkpointing == "full":
            return element * fed * model.hidden_size // self._tokens_split
        gates = 2 * element if model.adaln else 0
        dropout = 2 if model.dropout else 0
        per_query = self._norm() + gates + dropout
        whole = (fed * self._norm() + queries * per_query) * model.hidden_size
        angles = 4 * model.head_dim * fed
        kept = 4 if model.activation == "swiglu" else 2
        inner = kept * element * queries * model.ffn_hidden_size // self.layout.tp
        inner += self._gathered(queries)
        inside = self.attention(fed, queries) if self.checkpointing == "none" else 0
        return whole // self._tokens_split + angles + inner + inside

    def head(self, shape: MicroBatchShape) -> int:
        """The bytes of the final norm and of the output layer's inputs."""
        width = self.model.hidden_size
        norm = shape.queries * width * self._norm() // self._tokens_split
        return norm + self._element * shape.scored * width

    def logits(self, shape: MicroBatchShape) -> int:
        """The bytes of the loss: a piece of logits, and the gradients that it has made by then.

        Those are of the scored hidden states and, in fp32, of the output layer's weight. Autograd
        holds a gradient of the largest parameter in any case, which in fp32 is this one.
        """
        model, tp, element = self.model, self.layout.tp, self._element
        size = model.padded_vocab_size(tp) // tp
        rows = min(shape.scored, piece_rows(model, tp, element, self.logits_mb))
        of_weight = 4 * size * model.hidden_size if element == 2 else 0
        of_hidden = element * shape.scored * model.hidden_size
        return rows * size * bytes_per_logit(model, element) + of_weight + of_hidden

    def working(self, shape: MicroBatchShape) -> int:
        """The bytes that live for the backward pass of one block; the logits are gone by then.

        They are those of gradients, and of what is computed again.
        """
        model = self.model
        inner = self._element * model.ffn_hidden_size // self.layout.tp
        passing = shape.fed * max(inner, 8 * model.hidden_size // self._tokens_split)
        if self.checkpointing == "full":
            return passing + replace(self, checkpointing="none").block(shape.fed, shape.fed)
        if self.checkpointing == "selective":
            return passing + self.attention(shape.fed, shape.fed)
        return passing

    def kept(
        self, shape: MicroBatchShape, bounds: tuple[int, int], stage: int, micro_batches: int
    ) -> int:
        """The bytes that a rank of a stage keeps for all its micro-batches in flight.

        Under 1F1B stage i of p holds min(p - i, m) of the m micro-batches, and for each of them the
        pipeline keeps what the stage received and sent.
        """
        last_layer = self.model.num_layers + 1
        one = 0
        for layer in range(*bounds):
            if layer == last_layer:
                one += self.head(shape)
            elif layer:
                last = layer == self.model.num_layers
                one += self.block(shape.fed, shape.queries if last else shape.fed)
        passed = self._element * shape.fed * self.model.hidden_size // self._tokens_split
        one += passed * ((stage > 0) + (stage < self.layout.pp - 1))
        return one * min(self.layout.pp - stage, micro_batches)
