"""The architecture of the network."""

from dataclasses import dataclass

RECOMPUTE = ("none", "selective", "full")
"""What the backward pass computes again; see `model.recompute`."""


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and choices of the one network that every objective trains.

    The published Eso-LM architecture is `norm=layernorm activation=gelu_tanh mlp_bias=True
    output_bias=True adaln=True`; the modern one is `rmsnorm`, `swiglu` and no biases.
    """

    vocab_size: int
    """Number of token ids, the mask's included; not padded."""
    mask_id: int
    """The id whose logit is excluded from every softmax."""
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    ffn_hidden_size: int = 3072
    norm: str = "layernorm"
    """`layernorm` (a weight and no bias) or `rmsnorm`; both computed in fp32."""
    norm_eps: float = 1e-5
    activation: str = "gelu_tanh"
    """`gelu_tanh` or `swiglu`."""
    mlp_bias: bool = True
    output_bias: bool = True
    tied_embeddings: bool = False
    """The output layer's weight is the token embedding's."""
    adaln: bool = True
    """Modulate every norm by a conditioning vector that is constant (sigma = 0)."""
    cond_dim: int = 128
    rope_base: float = 10000.0
    dropout: float = 0.0
    init_std: float = 0.02

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def excluded_ids(self) -> tuple[int, ...]:
        """Ids that are never predicted."""
        return (self.mask_id,)

    def padded_vocab_size(self, tensor_parallel_size: int) -> int:
        """The vocabulary rounded up to a multiple of the tensor-parallel degree."""
        return -(-self.vocab_size // tensor_parallel_size) * tensor_parallel_size

    def problems(self) -> list[str]:
        """Everything that makes this architecture impossible, in words."""
        found = []
        for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "ffn_hidden_size"):
            if getattr(self, name) < 1:
                found.append(f"model.{name} is {getattr(self, name)}; it must be at least 1")
        if found:
            return found
        if self.hidden_size % self.num_heads:
            found.append(
                f"model.hidden_size {self.hidden_size} does not divide by "
                f"model.num_heads {self.num_heads}"
            )
        elif self.head_dim % 2:
            found.append(f"the head dimension {self.head_dim} must be even for rotary positions")
        if self.norm not in ("layernorm", "rmsnorm"):
            found.append(f"model.norm is '{self.norm}'; choose layernorm or rmsnorm")
        if self.activation not in ("gelu_tanh", "swiglu"):
            found.append(f"model.activation is '{self.activation}'; choose gelu_tanh or swiglu")
        if not 0.0 <= self.dropout < 1.0:
            found.append(f"model.dropout is {self.dropout}; it must lie in [0, 1)")
        if not 0 <= self.mask_id < self.vocab_size:
            found.append(f"mask id {self.mask_id} is outside the vocabulary of {self.vocab_size}")
        return found
