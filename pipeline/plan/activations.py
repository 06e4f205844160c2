"""What the backward pass needs of the forward pass; derivation in docs/plan.md.

Letters: T tokens fed in a micro-batch, Q those that ask in the last block (the first stream), D
hidden, F feed-forward, H heads, V vocabulary, t tensor-parallel ranks, e bytes of a value (2 or 4);
s = t under sequence parallelism, else 1.
"""

from dataclasses import dataclass, replace

from model.config import ModelConfig
from model.flops import RowWork
from pipeline.parallel.layout import Layout
from pipeline.plan.state import ELEMENT_BYTES


@dataclass(frozen=True)
class MicroBatchShape:
    """Tokens of one micro-batch of one kind of row."""

    fed: int
    queries: int
    scored: int
    """Positions that go through the output layer, at most."""

    @classmethod
    def of(cls, work: RowWork, rows: int) -> "MicroBatchShape":
        """One stream may be masked whole as t nears 1; of two streams the mean share is scored."""
        length, streams = work.length, work.pattern.num_streams
        scored = length if streams == 1 else round(work.scored)
        return cls(rows * streams * length, rows * length, rows * scored)


@dataclass(frozen=True)
class Activations:
    """Sizes of a model's activations on one rank of a layout."""

    model: ModelConfig
    layout: Layout
    precision: str
    checkpointing: str
    """`none`, `selective` or `full`; see `model.recompute`."""

    @property
    def _element(self) -> int:
        return ELEMENT_BYTES[self.precision]

    @property
    def _tokens_split(self) -> int:
        return self.layout.tp if self.layout.sequence else 1

    def _norm(self) -> int:
        """Bytes per token of a norm and, with adaLN, its modulation, over D: fp32 in, fp32 out."""
        return 8 + self._element * (2 if self.model.adaln else 1)

    def attention(self, fed: int, queries: int) -> int:
        """Bytes inside one attention: q, k, v, the rotated q and k, the output and its log-sum."""
        model, element = self.model, self._element
        wide = element * (4 * fed + 2 * queries) * model.hidden_size
        return (wide + 4 * model.num_heads * queries) // self.layout.tp

    def block(self, fed: int, queries: int) -> int:
        """Bytes of one block; its attention aside where that is recomputed."""
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
        inside = self.attention(fed, queries) if self.checkpointing == "none" else 0
        return whole // self._tokens_split + angles + inner + inside

    def head(self, shape: MicroBatchShape) -> int:
        """Bytes of the final norm and of the output layer's inputs."""
        width = self.model.hidden_size
        norm = shape.queries * width * self._norm() // self._tokens_split
        return norm + self._element * shape.scored * width

    def logits(self, shape: MicroBatchShape) -> int:
        """Bytes of the fp32 logits of this rank's vocabulary, and of one copy or gradient."""
        return 8 * shape.scored * self.model.padded_vocab_size(self.layout.tp) // self.layout.tp

    def working(self, shape: MicroBatchShape) -> int:
        """Bytes that live for the length of one block: gradients, and what is computed again.

        The logits are gone by then.
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
        """Bytes that a rank of a stage keeps for all its micro-batches in flight.

        Under 1F1B stage i of p holds min(p - i, m) micro-batches; the pipeline keeps what a stage
        received and sent with each.
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
