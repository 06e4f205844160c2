"""The parts of a transformer block over megatron-core's tensor-parallel linear layers.

Hidden states are flat, [T, D] with T = B * S, because norms and residuals work on single tokens and
only attention needs to know the rows. Shape letters: H is the number of heads on this rank, G
that of heads of keys and values, K the dimension of a head, F the width of the feed-forward layer.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from megatron.core import ModelParallelConfig, parallel_state
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from torch import Tensor, nn

from esolm.model.attention import AttentionMask, attend
from esolm.model.compiling import piece
from esolm.model.config import ModelConfig
from esolm.model.context_parallel import ContextSplit
from esolm.model.kernels import kernels_in_use
from esolm.model.numerics import at_least_float32
from esolm.model.rotary import rotate
from esolm.model.sequence_parallel import TokenSplit
from esolm.model.split_linears import split_linears
from esolm.model.tensors import NUM_FEATURES

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(inputs [T, D], weight [F, D], bias [F]) -> [T, F], in other numbers than `F.linear`."""


def product(
    multiply: Product | None, hidden_TD: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Returns what a layer multiplies by what it was given, or by torch's own product."""
    if multiply is not None:
        return multiply(hidden_TD, weight, bias)
    # Looked up here and now: under ZeRO-3 DeepSpeed puts another one there, which keeps the weight
    # itself for the backward pass. torch's keeps a view, and so all gathered weights.
    return F.linear(hidden_TD, weight, bias)


def column_linear(
    inputs: int, outputs: int, bias: bool, parallel: ModelParallelConfig
) -> nn.Module:
    """Makes a linear layer whose outputs are split over the tensor-parallel ranks."""
    if parallel.tensor_model_parallel_size == 1:
        return WholeLinear(inputs, outputs, bias)
    return ColumnLinear(
        inputs, outputs, config=parallel, init_method=nn.init.zeros_, bias=bias, gather_output=False
    )


def row_linear(inputs: int, outputs: int, bias: bool, parallel: ModelParallelConfig) -> nn.Module:
    """Makes a linear layer whose inputs are split over the tensor-parallel ranks.

    The outputs of the ranks are summed.
    """
    if parallel.tensor_model_parallel_size == 1:
        return WholeLinear(inputs, outputs, bias)
    return RowLinear(
        inputs,
        outputs,
        config=parallel,
        init_method=nn.init.zeros_,
        bias=bias,
        input_is_parallel=True,
        skip_bias_add=False,
    )


class ColumnLinear(ColumnParallelLinear):  # type: ignore[misc]
    """megatron-core's; or with another product, which keeps the gathered tokens for its backward.

    megatron-core's own gathers them again.
    """

    multiply: Product | None = None

    def forward(self, hidden_TD: Tensor) -> tuple[Tensor, None]:
        """Returns (the outputs of this rank for all tokens, None)."""
        if self.multiply is None:
            outputs: tuple[Tensor, None] = super().forward(hidden_TD)
            return outputs
        whole_TD = TokenSplit(self.config).gather_for_split_product(hidden_TD)
        return self.multiply(whole_TD, self.weight, self.bias), None


class RowLinear(RowParallelLinear):  # type: ignore[misc]
    """megatron-core's; or with another product."""

    multiply: Product | None = None

    def forward(self, hidden_TD: Tensor) -> tuple[Tensor, None]:
        """Returns (the outputs for all tokens, or under sequence parallelism this rank's, None)."""
        if self.multiply is None:
            outputs: tuple[Tensor, None] = super().forward(hidden_TD)
            return outputs
        partial_TD = self.multiply(hidden_TD, self.weight, None)
        total_TD = TokenSplit(self.config).sum_of_products(partial_TD)
        return total_TD if self.bias is None else total_TD + self.bias, None


class WholeLinear(nn.Module):
    """What takes the place of megatron-core's layers where nothing is split, with zero weights.

    Those add the bias in a pass of its own, which also makes the output once more.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.multiply: Product | None = None

    def forward(self, hidden_TD: Tensor) -> tuple[Tensor, None]:
        """Returns (the outputs, None), as those layers do."""
        return product(self.multiply, hidden_TD, self.weight, self.bias), None


class Norm(nn.Module):
    """LayerNorm without bias, or RMSNorm, computed in at least fp32.

    size: of the last dimension, over which it normalises; by default the hidden width.
    """

    def __init__(self, config: ModelConfig, size: int | None = None) -> None:
        super().__init__()
        shape = (size or config.hidden_size,)
        self.weight = nn.Parameter(torch.ones(shape))
        self.kind, self.eps = config.norm, config.norm_eps

    def forward(
        self, hidden_TD: Tensor, shift: Tensor | None = None, scale: Tensor | None = None
    ) -> Tensor:
        """Normalises; with shift and scale [D], which go together, modulates the result by them."""
        return _normalised(hidden_TD, self.weight, self.kind, self.eps, shift, scale)


@piece
def _normalised(
    hidden_TD: Tensor,
    weight: Tensor,
    kind: str,
    eps: float,
    shift: Tensor | None,
    scale: Tensor | None,
) -> Tensor:
    normal_TD = norm_kernel(kind)(at_least_float32(hidden_TD), weight.shape, eps=eps)
    normed_TD: Tensor = (normal_TD * at_least_float32(weight)).to(hidden_TD.dtype)
    if shift is None or scale is None:
        return normed_TD
    return normed_TD * (1 + scale) + shift


def norm_kernel(norm: str) -> Callable[..., Tensor]:
    """Returns what normalises tensors, given (input, normalized_shape, eps)."""
    if kernels_in_use().apex_norm:
        from apex.normalization.fused_layer_norm import fused_layer_norm, fused_rms_norm

        fused: Callable[..., Tensor] = fused_layer_norm if norm == "layernorm" else fused_rms_norm
        return fused
    return F.layer_norm if norm == "layernorm" else F.rms_norm


class Conditioning(nn.Module):
    """The constant conditioning vector of adaLN: SiLU of the timestep MLP at sigma = 0.

    At sigma = 0 the sinusoid features are cos(0) = 1 for the first half and sin(0) = 0 for the
    second, whatever the frequencies (layout of the published checkpoints: cos first).
    """

    def __init__(self, cond_dim: int) -> None:
        super().__init__()
        self.linear_in = nn.Linear(NUM_FEATURES, cond_dim)
        self.linear_out = nn.Linear(cond_dim, cond_dim)

    def forward(self) -> Tensor:
        """Returns the vector [C] that every modulation reads."""
        weight = self.linear_in.weight
        features = torch.zeros(NUM_FEATURES, device=weight.device, dtype=weight.dtype)
        features[: NUM_FEATURES // 2] = 1.0
        return F.silu(self.linear_out(F.silu(self.linear_in(features))))


class GroupedProjection(nn.Module):
    """Makes queries, and the keys and values that groups of heads share, of hidden states.

    The rows of q are laid out as [head, dim], those of kv as [head of keys and values, (k, v),
    dim]. Of more tensor-parallel ranks than such heads each holds the whole kv, and computes the
    one head that its queries ask.
    """

    def __init__(self, config: ModelConfig, parallel: ModelParallelConfig) -> None:
        super().__init__()
        self.parallel, self.head_dim = parallel, config.head_dim
        size, heads = config.hidden_size, config.kv_heads
        ranks, rows_of_a_head = parallel.tensor_model_parallel_size, 2 * config.head_dim
        is_split = heads % ranks == 0
        self.q = nn.Parameter(torch.zeros(size // ranks, size))
        held = heads // ranks if is_split else heads
        self.kv = nn.Parameter(torch.zeros(held * rows_of_a_head, size))
        first = parallel_state.get_tensor_model_parallel_rank() * heads // ranks * rows_of_a_head
        self.rows = None if is_split else slice(first, first + rows_of_a_head)
        self.multiply: Product | None = None

    def forward(self, hidden_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns queries [T, H, K], keys and values [T, G, K], T tokens over all ranks."""
        # Without need no view is taken: ZeRO-3 could not let go of what it has gathered.
        weights = self.q, self.kv if self.rows is None else self.kv[self.rows]
        if self.parallel.tensor_model_parallel_size == 1:
            q, kv = (product(self.multiply, hidden_TD, weight) for weight in weights)
        elif self.multiply is None:
            q, kv = split_linears(hidden_TD, weights, self.parallel)
        else:
            whole_TD = TokenSplit(self.parallel).gather_for_split_product(hidden_TD)
            q, kv = (self.multiply(whole_TD, weight, None) for weight in weights)
        k, v = kv.view(len(kv), -1, 2, self.head_dim).unbind(2)
        return q.view(len(q), -1, self.head_dim), k, v


class Attention(nn.Module):
    """Multi-head attention with rotary positions; heads are split over tensor-parallel ranks.

    The rows of the qkv weight are laid out as [head, (q, k, v), dim], so that equal contiguous
    parts of them are groups of whole heads.
    """

    def __init__(self, config: ModelConfig, parallel: ModelParallelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        size = config.hidden_size
        self.qkv = (
            GroupedProjection(config, parallel)
            if config.num_kv_heads
            else column_linear(size, 3 * size, False, parallel)
        )
        norms = [
            Norm(config, config.head_dim) if config.qk_norm else nn.Identity() for _ in range(2)
        ]
        self.q_norm, self.k_norm = norms
        self.context = ContextSplit(parallel)
        self.out = row_linear(size, size, False, parallel)

    def forward(
        self, hidden_TD: Tensor, angles: tuple[Tensor, Tensor], mask: AttentionMask
    ) -> Tensor:
        """Maps hidden states [B * S, D] to [B * Q, D]; Q is the mask's number of queries.

        Under context parallelism S and Q, of angles too, are what this rank holds of them.
        """
        (batch, seq_len), num_queries = angles[0].shape[:2], self.context.share(mask.num_queries)
        q_BSHK, k_BSGK, v_BSGK = (
            part.view(batch, seq_len, -1, self.head_dim) for part in self._heads(hidden_TD)
        )
        q_BQHK = self.q_norm(q_BSHK[:, :num_queries])
        q_BQHK = rotate(q_BQHK, *(angle[:, :num_queries] for angle in angles))
        k_BSGK = rotate(self.k_norm(k_BSGK), *angles)
        q, k, v = self.context.to_heads((q_BQHK, k_BSGK, v_BSGK), mask.streams)
        out = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask)
        out_BQHK = self.context.to_tokens(out.transpose(1, 2), mask.streams)
        out_TD: Tensor = self.out(out_BQHK.reshape(batch * num_queries, -1))[0]
        return out_TD

    def _heads(self, hidden_TD: Tensor) -> tuple[Tensor, ...]:
        """Returns queries [T, H, K], and keys and values [T, G, K], as projected."""
        if isinstance(self.qkv, GroupedProjection):
            grouped: tuple[Tensor, ...] = self.qkv(hidden_TD)
            return grouped
        qkv: Tensor = self.qkv(hidden_TD)[0]
        return qkv.view(len(qkv), -1, 3, self.head_dim).unbind(2)


class FeedForward(nn.Module):
    """The feed-forward layer, with GELU (tanh) or SwiGLU.

    The rows of the `up` weight of a SwiGLU alternate between gate and value.
    """

    def __init__(self, config: ModelConfig, parallel: ModelParallelConfig) -> None:
        super().__init__()
        self.gated = config.activation == "swiglu"
        width = config.ffn_hidden_size * (2 if self.gated else 1)
        self.up = column_linear(config.hidden_size, width, config.mlp_bias, parallel)
        self.down = row_linear(
            config.ffn_hidden_size, config.hidden_size, config.mlp_bias, parallel
        )

    def forward(self, hidden_TD: Tensor) -> Tensor:
        down_TD: Tensor = self.down(activate(self.up(hidden_TD)[0], self.gated))[0]
        return down_TD


@piece
def activate(up_TF: Tensor, gated: bool) -> Tensor:
    """Returns GELU (tanh), or where gate and value alternate the SwiGLU of the two."""
    if not gated:
        return F.gelu(up_TF, approximate="tanh")
    gate_TF, value_TF = up_TF.view(*up_TF.shape[:-1], -1, 2).unbind(-1)
    return F.silu(gate_TF) * value_TF
