"""The architecture of the network."""

from dataclasses import dataclass

from esolm.model.settings import (
    BELOW_ONE,
    COUNT,
    NOT_NEGATIVE,
    POSITIVE,
    Range,
    setting,
    setting_problems,
)


@dataclass(frozen=True)
class Rotation:
    """The rotary positions of a layer; factor: see `Architecture.rope_factor`."""

    head_dim: int
    base: float
    factor: float = 1.0
    original_length: int = 0


RECOMPUTE = ("none", "selective", "full")
"""What the backward pass computes again; see `esolm.model.recompute`."""
FP8_RECIPES = ("tensorwise", "rowwise", "rowwise_with_gw_hp")
"""How products in FP8 are scaled, as torchao names it; see `esolm.model.fp8`."""
FP8_MULTIPLE = 16
"""Products in FP8 are of matrices whose sizes are multiples of this."""


@dataclass(frozen=True)
class Architecture:
    """The sizes and choices of the one network that every objective trains: `model:` of a run.

    The published Eso-LM architecture is `norm=layernorm activation=gelu_tanh mlp_bias=True
    output_bias=True adaln=True`; the modern one is `rmsnorm`, `swiglu` and no biases.
    """

    hidden_size: int = setting(768, "Width D.", within=COUNT)
    num_layers: int = setting(12, "Blocks.", within=COUNT)
    num_heads: int = setting(
        12, "Attention heads; divides by `parallel.tp` x `parallel.cp`.", within=COUNT
    )
    num_kv_heads: int = setting(
        0,
        "Heads of keys and values, each shared by a group of attention heads; divides "
        "`model.num_heads`, and divides by `parallel.tp` or divides it, as those of a rank do with "
        "`parallel.cp`. 0: one for each of those.",
        within=NOT_NEGATIVE,
    )
    ffn_hidden_size: int = setting(
        3072, "Width of the feed-forward layer; divides by `parallel.tp`.", within=COUNT
    )
    qk_norm: bool = setting(
        False,
        "Normalise the queries and keys of every head, before rotation, by a norm of the kind of "
        "`model.norm`; all heads of a layer share its weight.",
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
    logit_softcap: float = setting(
        0.0, "Bound c of the logits, which become c tanh(logit / c); 0: none.", within=NOT_NEGATIVE
    )
    rope_base: float = setting(10000.0, "Base of the rotary frequencies.", within=POSITIVE)
    rope_bases: tuple[float, ...] = setting(
        (),
        "Bases that the layers take in turn instead of `rope_base`: of [1e4, 1e4, 1e6] every third "
        "layer has the last.",
        within=POSITIVE,
    )
    rope_factor: float = setting(
        1.0,
        "YaRN: how many times longer than `model.rope_original_length` the context is to be; 1: "
        "rotary positions as they are.",
        within=Range(1),
    )
    rope_original_length: int = setting(
        0,
        "With `model.rope_factor` the length that the network was trained on before.",
        within=NOT_NEGATIVE,
    )
    dropout: float = setting(
        0.0, "After attention and feed-forward; keyed by sample.", within=BELOW_ONE
    )
    z_loss: float = setting(
        0.0,
        "Adds this times (log Z)^2 to the loss of a token, where Z is the sum of its exponential "
        "logits; not in any loss that is reported.",
        within=NOT_NEGATIVE,
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

    def __post_init__(self) -> None:
        if self.num_kv_heads == self.num_heads:  # one network has one description
            object.__setattr__(self, "num_kv_heads", 0)
        object.__setattr__(self, "rope_bases", tuple(self.rope_bases))  # JSON has lists

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def kv_heads(self) -> int:
        """The heads of keys and values; `num_kv_heads` is 0 where every head has its own."""
        return self.num_kv_heads or self.num_heads

    @property
    def kv_size(self) -> int:
        """The width of all keys, and of all values."""
        return self.kv_heads * self.head_dim

    @property
    def excluded_ids(self) -> tuple[int, ...]:
        """The ids that are never predicted."""
        return (self.mask_id,)

    def rotation(self, layer: int) -> Rotation:
        """The rotary positions of a layer."""
        bases = self.rope_bases or (self.rope_base,)
        base = bases[layer % len(bases)]
        return Rotation(self.head_dim, base, self.rope_factor, self.rope_original_length)

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
        if self.num_kv_heads > 0 and self.num_heads % self.num_kv_heads:
            found.append(
                f"model.num_heads {self.num_heads} does not divide by "
                f"model.num_kv_heads {self.num_kv_heads}"
            )
        found += setting_problems(self, "model.")
        return [*found, *self._rotation_problems(), *self._vocabulary_problems()]

    def _rotation_problems(self) -> list[str]:
        found = []
        if len(self.rope_bases) > self.num_layers:
            found.append(
                f"model.rope_bases has {len(self.rope_bases)} bases for {self.num_layers} layers"
            )
        if self.rope_factor > 1 and self.rope_original_length == 0:
            found.append(
                f"model.rope_factor is {self.rope_factor:g}: give model.rope_original_length, the "
                "train.seq_len of the network whose context is extended"
            )
        if self.rope_factor > 1 and min((self.rope_base, *self.rope_bases)) <= 1:
            found.append("model.rope_factor needs bases of rotary frequencies above 1")
        return found

    def _vocabulary_problems(self) -> list[str]:
        if self.vocab_size < 1:
            return [f"model.vocab_size is {self.vocab_size}; it must be at least 1"]
        if not 0 <= self.mask_id < self.vocab_size:
            return [f"mask id {self.mask_id} is outside the vocabulary of {self.vocab_size}"]
        return []
