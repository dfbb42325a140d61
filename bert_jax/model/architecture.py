"""Settings of a model: its architecture, how it is computed, and what a mesh adds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax

from bert_jax.errors import UserError
from bert_jax.fields import POSITIVE, field
from bert_jax.model.attention import Attend, attention
from bert_jax.model.parameters import Axes, Params
from bert_jax.model.positions import Learned, PositionEncoding

Constrain = Callable[[jax.Array, tuple[str | None, ...]], jax.Array]

LARGE_VOCAB = 2**14
MOST_DROPOUT = "[0, 0.99]"  # rates are multiples of 1/256, and 256/256 would drop everything


@dataclass(frozen=True)
class Architecture:
    """The shapes of the weights, and what the model computes from them.

    Reference: Devlin et al. 2019, https://arxiv.org/abs/1810.04805.
    """

    vocab_size: int = field(30_522, "tokens in the vocabulary", bounds=POSITIVE)
    num_layers: int = field(12, "Transformer layers", bounds=POSITIVE)
    hidden_size: int = field(768, "features per token", bounds=POSITIVE)
    num_heads: int = field(12, "attention heads; divides hidden_size", bounds=POSITIVE)
    intermediate_size: int = field(3072, "features inside a feed-forward layer", bounds=POSITIVE)
    max_position_embeddings: int = field(512, "maximum tokens per row", bounds=POSITIVE)
    type_vocab_size: int = field(2, "token types; sentence pairs need 2", bounds=POSITIVE)
    hidden_act: str = field(
        "gelu",
        'activation: "gelu" is exact (erf), "gelu_tanh" the approximation in Google\'s later code',
        choices=("gelu", "gelu_tanh"),
    )
    position_embedding: PositionEncoding = field(Learned(), "how positions are encoded")
    layer_norm_eps: float = field(1e-12, "added to the variance in LayerNorm", bounds=POSITIVE)
    initializer_range: float = field(
        0.02, "standard deviation of the truncated normal for initial weights", bounds=POSITIVE
    )

    def check(self, path: str) -> None:
        """Raises UserError if num_heads does not divide hidden_size."""
        if self.hidden_size % self.num_heads:
            raise UserError(
                f"{path}.hidden_size={self.hidden_size} is not a multiple of "
                f"{path}.num_heads={self.num_heads}"
            )

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table: `vocab_size` rounded up to whole TPU lanes.

        Large vocabularies are rounded up to a multiple of 1024, so that they split evenly over a
        thousand devices: 30,522 becomes 30,720.
        """
        multiple = 128 if self.vocab_size < LARGE_VOCAB else 1024
        return -(-self.vocab_size // multiple) * multiple


@dataclass(frozen=True)
class Numerics:
    """How a model is computed. Parameters, LayerNorm, softmax and losses are always fp32."""

    hidden_dropout: float = field(
        0.1,
        "dropout rate of embeddings and of attention and feed-forward outputs",
        bounds=MOST_DROPOUT,
    )
    attention_dropout: float = field(
        0.1, "dropout rate of attention probabilities", bounds=MOST_DROPOUT
    )
    compute_dtype: str = field(
        "bfloat16", "dtype of matrix products and activations", choices=("float32", "bfloat16")
    )
    attention: str = field(
        "auto",
        '"xla"; "splash", a TPU kernel without dropout; "auto", splash on TPUs for long rows if '
        "nothing is dropped",
        choices=("auto", "xla", "splash"),
        resume=True,
    )
    scan_layers: bool = field(
        True,
        "compile one layer and loop over it: a fifth of the compile time, but unrolled layers run "
        "faster",
        resume=True,
    )
    remat: str = field(
        "dots",
        'what the backward pass recomputes: "none" keeps all activations, "dots" keeps the '
        'results of matrix products, "full" keeps only the input of each layer',
        choices=("none", "dots", "full"),
        resume=True,
    )


def unconstrained(x: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
    """The `constrain` for a single device: returns `x` unchanged."""
    del names
    return x


def gathered(axes: Axes) -> Callable[[Params], Params]:
    """The `gather_layer` for a single device: leaves a layer's parameters unchanged."""
    del axes
    return lambda params: params


class Parallel(NamedTuple):
    """Functions with which a model runs on a mesh without knowing it.

    Attributes:
      constrain: pins the sharding of an activation, given the names of its axes.
      gather_layer: maps the axes of a layer's parameters (without the layer axis) to a function
        that gathers these parameters before the layer runs.
      attend: computes attention as `bert_jax.model.attention.attention` does.
    """

    constrain: Constrain = unconstrained
    gather_layer: Callable[[Axes], Callable[[Params], Params]] = gathered
    attend: Attend = attention
