"""The architecture of the network."""

from dataclasses import dataclass

from esolm.model.settings import BELOW_ONE, COUNT, NOT_NEGATIVE, POSITIVE, setting, setting_problems

RECOMPUTE = ("none", "selective", "full")
"""What the backward pass computes again; see `esolm.model.recompute`."""


@dataclass(frozen=True)
class Architecture:
    """The sizes and choices of the one network that every objective trains: `model:` of a run.

    The published Eso-LM architecture is `norm=layernorm activation=gelu_tanh mlp_bias=True
    output_bias=True adaln=True`; the modern one is `rmsnorm`, `swiglu` and no biases.
    """

    hidden_size: int = setting(768, "Width D.", within=COUNT)
    num_layers: int = setting(12, "Blocks.", within=COUNT)
    num_heads: int = setting(12, "Attention heads; divides by `parallel.tp`.", within=COUNT)
    ffn_hidden_size: int = setting(
        3072, "Width of the feed-forward layer; divides by `parallel.tp`.", within=COUNT
    )
    norm: str = setting(
        "layernorm",
        "`layernorm` (a weight, no bias) or `rmsnorm`; computed in fp32.",
        choices=("layernorm", "rmsnorm"),
    )
    norm_eps: float = setting(1e-05, "Epsilon of every norm.", within=POSITIVE)
    activation: str = setting(
        "gelu_tanh", "`gelu_tanh` or `swiglu`.", choices=("gelu_tanh", "swiglu")
    )
    mlp_bias: bool = setting(True, "Biases in the feed-forward layer.")
    output_bias: bool = setting(True, "Bias of the output layer.")
    tied_embeddings: bool = setting(
        False,
        "The output layer's weight is the token embedding's: one tensor, in every "
        "layout and checkpoint.",
    )
    adaln: bool = setting(
        True,
        "Modulate every norm by a constant conditioning vector, as the published checkpoints do.",
    )
    cond_dim: int = setting(128, "Width of that vector.", within=COUNT)
    rope_base: float = setting(10000.0, "Base of the rotary frequencies.", within=POSITIVE)
    dropout: float = setting(
        0.0, "After attention and feed-forward; keyed by sample.", within=BELOW_ONE
    )
    init_std: float = setting(
        0.02,
        "Standard deviation of initial matrices; residual outputs divide it by sqrt(2 layers).",
        within=NOT_NEGATIVE,
    )


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Architecture):
    """An architecture with its vocabulary, which comes with the dataset.

    vocab_size: the number of token ids, with the mask's and without padding. mask_id: the id whose
    logit is excluded from every softmax.
    """

    vocab_size: int
    mask_id: int

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def excluded_ids(self) -> tuple[int, ...]:
        """The ids that are never predicted."""
        return (self.mask_id,)

    def padded_vocab_size(self, tensor_parallel_size: int) -> int:
        """The vocabulary rounded up to a multiple of the tensor-parallel degree."""
        return -(-self.vocab_size // tensor_parallel_size) * tensor_parallel_size

    def problems(self) -> list[str]:
        """Says everything that makes this architecture impossible, one sentence each."""
        if min(self.vocab_size, self.hidden_size, self.num_heads) < 1:
            return [*self._vocabulary_problems(), *setting_problems(self, "model.")]
        found = []
        if self.hidden_size % self.num_heads:
            found.append(
                f"model.hidden_size {self.hidden_size} does not divide by "
                f"model.num_heads {self.num_heads}"
            )
        elif self.head_dim % 2:
            found.append(f"the head dimension {self.head_dim} must be even for rotary positions")
        return [*found, *setting_problems(self, "model."), *self._vocabulary_problems()]

    def _vocabulary_problems(self) -> list[str]:
        if self.vocab_size < 1:
            return [f"model.vocab_size is {self.vocab_size}; it must be at least 1"]
        if not 0 <= self.mask_id < self.vocab_size:
            return [f"mask id {self.mask_id} is outside the vocabulary of {self.vocab_size}"]
        return []
