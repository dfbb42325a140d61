"""Settings of a model: its architecture, how it is computed, and what a mesh adds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax

from bert_jax.errors import UserError
from bert_jax.fields import NOT_NEGATIVE, POSITIVE, field
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
    embedding_size: int | None = field(
        None,
        "features of the embeddings, which a dense layer brings to hidden_size, as in ELECTRA; "
        "None for hidden_size",
        bounds=POSITIVE,
    )
    num_heads: int = field(12, "attention heads; divides hidden_size", bounds=POSITIVE)
    intermediate_size: int = field(3072, "features inside a feed-forward layer", bounds=POSITIVE)
    max_position_embeddings: int = field(512, "maximum tokens per row", bounds=POSITIVE)
    type_vocab_size: int = field(
        2, "token types; sentence pairs need 2, 0 adds no type embedding", bounds=NOT_NEGATIVE
    )
    hidden_act: str = field(
        "gelu",
        'activation: "gelu" is exact (erf), "gelu_tanh" the approximation in Google\'s later code, '
        '"silu" is x sigmoid(x)',
        choices=("gelu", "gelu_tanh", "silu"),
    )
    feed_forward: str = field(
        "mlp",
        '"mlp"; "glu" multiplies the activation by a second projection '
        "(https://arxiv.org/abs/2002.05202)",
        choices=("mlp", "glu"),
    )
    position_embedding: PositionEncoding = field(Learned(), "how positions are encoded")
    norm: str = field(
        "layer_norm",
        '"layer_norm", or "rms_norm", which does not center and has no bias',
        choices=("layer_norm", "rms_norm"),
    )
    norm_position: str = field(
        "post",
        '"post" normalizes each residual sum, "pre" the input of each attention and feed-forward',
        choices=("post", "pre"),
    )
    norm_scale: bool = field(True, "whether norms have a learned scale")
    norm_bias: bool = field(True, "whether norms have a learned bias")
    embedding_norm: bool = field(True, "normalize the embeddings")
    first_norm: bool = field(True, "pre-norm: normalize the input of the first attention")
    inner_norm: bool = field(
        False, "normalize the inputs of the output projections of attention and feed-forward"
    )
    final_norm: bool = field(False, "normalize the output of the last layer")
    attention_bias: bool = field(True, "whether the projections of attention have biases")
    feed_forward_bias: bool = field(True, "whether feed-forward layers have biases")
    head_bias: bool = field(
        True, "whether the pooler and the transform of the MLM head have biases"
    )
    head_transform: bool = field(
        True, "dense layer, activation and norm before the decoder of the MLM head"
    )
    value_gate: bool = field(
        False,
        "what attention returns is multiplied by the GELU of another projection of its input, as "
        "in GPT-BERT (https://arxiv.org/abs/2410.24159)",
    )
    layer_mixing: bool = field(
        False,
        "each attention and feed-forward reads a learned mix of the results of all before it; "
        "layers are unrolled (https://arxiv.org/abs/2402.02622)",
    )
    tied_decoder: bool = field(True, "the decoder of the MLM head is the word embeddings")
    decoder_bias: bool = field(True, "whether the decoder of the MLM head has a bias")
    pooler: str = field(
        "tanh",
        'dense layer that classifiers read, with an activation: "tanh", "gelu" or "relu"; '
        '"transform" is like that of the MLM head, and heads on tokens read it too',
        choices=("tanh", "gelu", "relu", "transform"),
    )
    pooling: str = field(
        "cls",
        'what the pooler reads: "cls", or the "mean" of an example\'s tokens',
        choices=("cls", "mean"),
    )
    token_dropout_id: int | None = field(
        None,
        "id of [MASK], whose embedding is 0 while those of the other tokens grow by 0.88 / (share "
        "of an example that is not masked), as in ESM-2; None for neither",
        bounds=NOT_NEGATIVE,
    )
    global_every: int = field(
        1,
        "layers 0, n, 2n, ... attend to the whole example, the others within local_window",
        bounds=POSITIVE,
    )
    local_window: int = field(
        128,
        "width in tokens of the window of local layers, half on each side",
        bounds=POSITIVE,
    )
    layer_norm_eps: float = field(1e-12, "added to the variance in norms", bounds=POSITIVE)
    initializer_range: float = field(
        0.02, "standard deviation of the truncated normal for initial weights", bounds=POSITIVE
    )
    scaled_output_init: bool = field(
        False,
        "initial output projections are smaller by sqrt(2 num_layers), as in Megatron-LM "
        "(https://arxiv.org/abs/1909.08053)",
    )
    depth_scaled_init: bool = field(
        False,
        "initial feed-forward projections of layer i, counted from 0, are smaller by "
        "sqrt(2 (i + 1)), as in GPT-BERT",
    )

    def check(self, path: str) -> None:
        """Raises UserError if fields contradict each other."""
        if self.hidden_size % self.num_heads:
            raise UserError(
                f"{path}.hidden_size={self.hidden_size} is not a multiple of "
                f"{path}.num_heads={self.num_heads}"
            )
        if not self.first_norm and self.norm_position != "pre":
            raise UserError(f"{path}.first_norm=False needs {path}.norm_position='pre'")
        if self.embedding_size is not None and not self.head_transform:
            raise UserError(f"{path}.embedding_size needs {path}.head_transform=True")
        self.position_embedding.check_architecture(self, path)

    @property
    def embedding_features(self) -> int:
        """Features of the embeddings."""
        return self.embedding_size or self.hidden_size

    def is_local(self, layer: int) -> bool:
        """Whether a layer, counted from 0, attends within a window."""
        return layer % self.global_every != 0

    @property
    def output_stddev(self) -> float:
        """Standard deviation of the initial output projections of layers."""
        factor = (2 * self.num_layers) ** 0.5 if self.scaled_output_init else 1.0
        return self.initializer_range / factor

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
        0.1, "dropout rate of the outputs of attention", bounds=MOST_DROPOUT
    )
    embedding_dropout: float | None = field(
        None, "dropout rate of the embeddings; None for hidden_dropout", bounds=MOST_DROPOUT
    )
    feed_forward_dropout: float | None = field(
        None, "dropout rate of feed-forward outputs; None for hidden_dropout", bounds=MOST_DROPOUT
    )
    attention_dropout: float = field(
        0.1, "dropout rate of attention probabilities", bounds=MOST_DROPOUT
    )
    compute_dtype: str = field(
        "bfloat16", "dtype of matrix products and activations", choices=("float32", "bfloat16")
    )
    fake_int8: bool = field(
        False,
        "round the weights and inputs of layers, and the word embeddings, as a model in int8 does; "
        "weights stay fp32 and are trained (docs/compression.md)",
    )
    attention: str = field(
        "auto",
        '"xla"; "splash", a TPU kernel without dropout; "auto", splash on TPUs for long rows if '
        'nothing is dropped; "flash", a TPU kernel with dropout, and as "auto" where nothing is '
        "dropped",
        choices=("auto", "xla", "splash", "flash"),
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

    def rate(self, name: str) -> float:
        """The dropout rate of a field, with `hidden_dropout` in place of None."""
        own: float | None = getattr(self, name)
        return self.hidden_dropout if own is None else own


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
