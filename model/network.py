"""The one network: an embedding, identical blocks, a head.

Each part is a pipeline layer. The parts pass on a `Flow` tuple of tensors, so that the same modules
run in one process or as pipeline stages; the cut into stages is made outside this file.
"""

from dataclasses import replace

from megatron.core import ModelParallelConfig
from megatron.core.tensor_parallel import VocabParallelEmbedding
from torch import Tensor, nn

from esolm.model.attention import MaskBuilder
from esolm.model.columns import Column
from esolm.model.compiling import piece
from esolm.model.config import ModelConfig
from esolm.model.context_parallel import ContextSplit
from esolm.model.dropout import Dropout, feature_salts, keyed_dropout, site_salt, token_keys
from esolm.model.inputs import NetworkInput
from esolm.model.layers import Attention, Conditioning, FeedForward, Norm
from esolm.model.output import OutputLayer
from esolm.model.rotary import rotary_angles
from esolm.model.sequence_parallel import TokenSplit
from esolm.model.sharding import mark_split
from esolm.model.tensors import block_tensors, embedding_tensors, head_tensors

# (hidden [B * S, D], positions [B, S], rows [B, 6]) and, with adaLN, the conditioning vector [C].
# Under context parallelism a rank holds its part of the hidden states of every row, and under
# sequence parallelism its part of these tokens; positions and rows are whole.
Flow = tuple[Tensor, ...]


class Embedding(nn.Module):
    """The token embedding, split over the vocabulary, and with adaLN the conditioning vector.

    It maps (tokens [B, S], positions [B, S], rows [B, 6]) to a Flow.
    """

    def __init__(self, config: ModelConfig, parallel: ModelParallelConfig) -> None:
        super().__init__()
        vocab_size = config.padded_vocab_size(parallel.tensor_model_parallel_size)
        self.tokens = VocabParallelEmbedding(
            vocab_size, config.hidden_size, init_method=nn.init.zeros_, config=parallel
        )
        self.conditioning = Conditioning(config.cond_dim) if config.adaln else None
        self.split, self.context = TokenSplit(parallel), ContextSplit(parallel)
        mark_split(self, embedding_tensors(config), parallel.tensor_model_parallel_size)

    def forward(self, inputs: tuple[Tensor, Tensor, Tensor]) -> Flow:
        tokens, positions, rows = inputs
        held = self.context.cut_tokens(tokens, rows)
        hidden = self.split.scatter(self.tokens(held).flatten(0, 1))
        if self.conditioning is None:
            return hidden, positions, rows
        return hidden, positions, rows, self.conditioning()


class Block(nn.Module):
    """One pre-norm transformer block, which maps a Flow to a Flow.

    Of two streams the last block passes on the noised one alone, so that S = Q behind it: attention
    there reads the keys and values of the clean tokens, but nothing reads what becomes of them.
    """

    def __init__(
        self, config: ModelConfig, parallel: ModelParallelConfig, layer: int, masks: MaskBuilder
    ) -> None:
        super().__init__()
        self.config, self.layer, self.masks = config, layer, masks
        self.last = layer == config.num_layers - 1
        self.split, self.context = TokenSplit(parallel), ContextSplit(parallel)
        self.norm1, self.norm2 = Norm(config), Norm(config)
        self.attention = Attention(config, parallel)
        self.mlp = FeedForward(config, parallel)
        if config.adaln:
            self.modulation = nn.Linear(config.cond_dim, 6 * config.hidden_size)
        mark_split(self, block_tensors(config), parallel.tensor_model_parallel_size)

    def forward(self, flow: Flow) -> Flow:
        hidden, positions, rows, *conditioning = flow
        mask = self.masks(rows, positions.shape[1], self.last, positions)
        held = self.context.cut(positions, mask.streams)
        angles = rotary_angles(held, self.config.rotation(self.layer))
        if conditioning:
            modulation = self.modulation(conditioning[0]).chunk(6)
            shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = modulation
        else:
            shift_1 = scale_1 = gate_1 = shift_2 = scale_2 = gate_2 = None
        attended = self.attention(self.norm1(hidden, shift_1, scale_1), angles, mask)
        hidden, positions = self._queries(hidden, positions, mask.num_queries)
        places = self.context.places(positions.shape[1], mask.streams, positions.device)
        row = self.context.share(positions.shape[1]), places
        hidden = self._add(hidden, attended, gate_1, rows, row, 0)
        changed = self.mlp(self.norm2(hidden, shift_2, scale_2))
        hidden = self._add(hidden, changed, gate_2, rows, row, 1)
        return hidden, positions, rows, *conditioning

    def _queries(
        self, hidden: Tensor, positions: Tensor, num_queries: int
    ) -> tuple[Tensor, Tensor]:
        """Keeps the first Q tokens of every row: [B * S, D], [B, S] -> [B * Q, D], [B, Q]."""
        batch, seq_len = positions.shape
        if num_queries == seq_len:
            return hidden, positions
        rows = self.split.gather(hidden).view(batch, self.context.share(seq_len), -1)
        held = rows[:, : self.context.share(num_queries)]
        first = self.split.scatter(held.flatten(0, 1))
        return first, positions[:, :num_queries].contiguous()

    def _add(
        self,
        hidden: Tensor,
        branch: Tensor,
        gate: Tensor | None,
        rows: Tensor,
        row: tuple[int, Tensor | None],
        half: int,
    ) -> Tensor:
        """Adds what attention (half 0) or the feed-forward layer (half 1) has made.

        row: how many tokens of a row the hidden states are of, over the tensor-parallel ranks, and
        where in the row these stand; see `token_keys`.
        """
        if not self.training or self.config.dropout == 0.0:
            return add_branch(hidden, branch, gate, None)
        tokens, width = hidden.shape
        keys = token_keys(
            rows[:, Column.DROPOUT_KEY],
            site_salt(2 * self.layer + half),
            tokens,
            row[0],
            self.split.first_token(tokens),
            rows[0, Column.SKIPPED],
            row[1],
        )
        salts = feature_salts(width, hidden.device)
        return add_branch(hidden, branch, gate, Dropout(keys, salts, self.config.dropout))


@piece
def add_branch(
    hidden: Tensor, branch: Tensor, gate: Tensor | None, dropout: Dropout | None
) -> Tensor:
    """Returns hidden states [T, D] with a branch added that is scaled by gate [D] and dropped."""
    gated = branch if gate is None else gate * branch
    return hidden + (gated if dropout is None else keyed_dropout(gated, dropout))


class Head(nn.Module):
    """The final norm and the output layer.

    Called with the Flow of the last block, where S = Q, it returns the normalised hidden states
    [B * Q, D]; `logits` projects those of them that are wanted. The two steps are apart because
    only positions that carry loss are worth the width of the vocabulary.
    """

    def __init__(self, config: ModelConfig, parallel: ModelParallelConfig) -> None:
        super().__init__()
        self.norm = Norm(config)
        if config.adaln:
            self.modulation = nn.Linear(config.cond_dim, 2 * config.hidden_size)
        self.split = TokenSplit(parallel)
        self.output = OutputLayer(config, parallel)
        # A tied weight is marked as well, because a last stage holds a copy of it.
        tensors = head_tensors(replace(config, tied_embeddings=False))
        mark_split(self, tensors, parallel.tensor_model_parallel_size)

    def forward(self, flow: Flow) -> Tensor:
        last_hidden, _, _, *conditioning = flow
        modulation = self.modulation(conditioning[0]).chunk(2) if conditioning else ()
        return self.split.gather_for_split_layer(self.norm(last_hidden, *modulation))

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Returns logits [N, V of this rank], in float32 or wider.

        The logits of ids that are never predicted are -inf.
        """
        logits: Tensor = self.output(hidden_ND)
        return logits


class Network(nn.Module):
    """All layers in one module, for every layout without pipeline parallelism."""

    def __init__(self, config: ModelConfig, parallel: ModelParallelConfig) -> None:
        super().__init__()
        self.config = config
        masks = MaskBuilder()
        self.embedding = Embedding(config, parallel)
        self.blocks = nn.ModuleList(
            Block(config, parallel, layer, masks) for layer in range(config.num_layers)
        )
        self.head = Head(config, parallel)
        if config.tied_embeddings:
            self.head.output.weight = self.embedding.tokens.weight

    def forward(self, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Maps (tokens, positions, rows) to normalised hidden states [B * Q, D]; see `Head`."""
        flow = self.embedding(inputs)
        for block in self.blocks:
            flow = block(flow)
        hidden: Tensor = self.head(flow)
        return hidden

    def all_logits(self, inputs: NetworkInput) -> Tensor:
        """Returns the logits of all outputs, [B, Q, V of this rank], in float32 or wider.

        Evaluation and tests call it; training projects only the positions that carry loss.
        """
        device = self.embedding.tokens.weight.device
        tensors = (inputs.tokens, inputs.positions, inputs.rows())
        hidden = self(tuple(tensor.to(device) for tensor in tensors))
        logits: Tensor = self.head.logits(hidden)
        return logits.view(inputs.tokens.shape[0], -1, logits.shape[-1])
