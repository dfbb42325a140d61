"""The kinds of models that transformers has classes for: names of their fields and tensors.

A lineage is data: the fields of its config.json, its blocks, its classes and the names of its
tensors. `bert_jax.interop.configs` and `bert_jax.interop.tensors` read and write by them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from bert_jax.errors import UserError
from bert_jax.fields import Plain
from bert_jax.interop.choices import CLASSES
from bert_jax.json_values import typed
from bert_jax.model.architecture import Architecture
from bert_jax.model.positions import Learned, Rope


@dataclass(frozen=True)
class Lineage:
    """One model type of transformers.

    Attributes:
      model_type: its name in config.json.
      base: prefix of the encoder's tensors, which classes without heads lack.
      modules: our module -> theirs, with {} for the number of the layer. Modules of one part that
        have the same name are one tensor there, in this order, along the axis of its outputs.
      decoder: class that can be the decoder of an EncoderDecoderModel; empty if none can be read.
      classifier: modules that are called otherwise in classes with a sequence classifier.
      tied: name of a tensor that may be stored, though it is a copy -> its original.
      constants: regular expression of tensors that are no parameters, without `base`.
      unread: beginning of names of tensors that have no place here, without `base` -> their use.
      fields: "model." or "numerics." and our field -> theirs.
      defaults: values of fields that a file lacks.
      required: fields that change what the weights mean, with the value that can be read.
      blocks: our fields that have one value in all models of this type.
      read: their fields, and the file for messages -> further fields of ours.
      write: architecture -> further fields of theirs.
      buffers: architecture -> the constants that transformers expects in a file, by name.
    """

    model_type: str
    base: str
    modules: Mapping[str, str]
    fields: Mapping[str, str]
    decoder: str = ""
    classifier: Mapping[str, str] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    constants: str = r"$^"
    unread: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    required: Mapping[str, Any] = field(default_factory=dict)
    blocks: Mapping[str, Any] = field(default_factory=dict)
    read: Callable[[Plain, str], Plain] = lambda fields, where: {}
    write: Callable[[Architecture], Plain] = lambda architecture: {}
    buffers: Callable[[Architecture], dict[str, np.ndarray]] = lambda architecture: {}

    @property
    def classes(self) -> Mapping[str, tuple[str, ...]]:
        """The parts of each class besides the encoder."""
        return CLASSES[self.model_type]

    @property
    def words(self) -> str:
        """The table of words, which every model has, without `base`."""
        return f"{self.modules['bert/embeddings/word']}.weight".removeprefix(f"{self.base}.")

    @property
    def roots(self) -> tuple[str, ...]:
        """What the encoder's names begin with in classes without heads."""
        names = [name for name in self.modules.values() if name.startswith(f"{self.base}.")]
        return tuple(dict.fromkeys(name.split(".")[1] for name in names))


def _layers(prefix: str, modules: Mapping[str, str]) -> dict[str, str]:
    return {
        f"bert/encoder/layers/{ours}": f"{prefix}.{{}}.{theirs}" for ours, theirs in modules.items()
    }


FIELDS = {  # of BERT
    "model.vocab_size": "vocab_size",
    "model.num_layers": "num_hidden_layers",
    "model.hidden_size": "hidden_size",
    "model.num_heads": "num_attention_heads",
    "model.intermediate_size": "intermediate_size",
    "model.max_position_embeddings": "max_position_embeddings",
    "model.type_vocab_size": "type_vocab_size",
    "model.hidden_act": "hidden_act",
    "numerics.hidden_dropout": "hidden_dropout_prob",
    "numerics.attention_dropout": "attention_probs_dropout_prob",
    "model.layer_norm_eps": "layer_norm_eps",
    "model.initializer_range": "initializer_range",
}
# Values of fields that a file lacks; older files omit fields that had only one value then.
DEFAULTS = {
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "initializer_range": 0.02,
}
ENCODER = {"is_decoder": False, "add_cross_attention": False}


def _bert_modules(base: str) -> dict[str, str]:
    """The encoder of BERT, ELECTRA and RoBERTa."""
    return {
        "bert/embeddings/word": f"{base}.embeddings.word_embeddings",
        "bert/embeddings/position": f"{base}.embeddings.position_embeddings",
        "bert/embeddings/token_type": f"{base}.embeddings.token_type_embeddings",
        "bert/embeddings/norm": f"{base}.embeddings.LayerNorm",
        **_layers(
            f"{base}.encoder.layer",
            {
                "attention/query": "attention.self.query",
                "attention/key": "attention.self.key",
                "attention/value": "attention.self.value",
                "attention/output": "attention.output.dense",
                "attention_norm": "attention.output.LayerNorm",
                "feed_forward/intermediate": "intermediate.dense",
                "feed_forward/output": "output.dense",
                "feed_forward_norm": "output.LayerNorm",
            },
        ),
    }


def _cross_attention(base: str) -> dict[str, str]:
    """What the layers of a decoder have besides."""
    theirs = f"{base}.encoder.layer.{{}}.crossattention"
    return {
        "cross_attention/layers/attention/query": f"{theirs}.self.query",
        "cross_attention/layers/attention/key": f"{theirs}.self.key",
        "cross_attention/layers/attention/value": f"{theirs}.self.value",
        "cross_attention/layers/attention/output": f"{theirs}.output.dense",
        "cross_attention/layers/norm": f"{theirs}.output.LayerNorm",
    }


BERT = Lineage(
    "bert",
    "bert",
    decoder="BertLMHeadModel",
    modules={
        **_bert_modules("bert"),
        **_cross_attention("bert"),
        "bert/pooler": "bert.pooler.dense",
        "masked_lm/dense": "cls.predictions.transform.dense",
        "masked_lm/norm": "cls.predictions.transform.LayerNorm",
        "masked_lm": "cls.predictions",
        "next_sentence": "cls.seq_relationship",
        "sequence_classifier": "classifier",
        "token_classifier": "classifier",
        "multiple_choice": "classifier",
        "answer_span": "qa_outputs",
    },
    tied={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    constants=r"embeddings\.(position_ids|token_type_ids)",
    fields=FIELDS,
    defaults=DEFAULTS,
    required={"position_embedding_type": "absolute", **ENCODER},
)


@dataclass(frozen=True)
class RobertaFields:
    """Positions count from the id of the padding + 1, and the table has rows for these, too."""

    pad_token_id: int = 1
    max_position_embeddings: int = 512


def _read_roberta(fields: Plain, where: str) -> Plain:
    given = typed(fields, RobertaFields, where)
    offset = given.pad_token_id + 1
    return {
        "max_position_embeddings": given.max_position_embeddings - offset,
        "position_embedding": {"name": "learned", "offset": offset},
    }


def _write_roberta(architecture: Architecture) -> Plain:
    encoding = architecture.position_embedding
    offset = encoding.offset if isinstance(encoding, Learned) else 0
    positions = architecture.max_position_embeddings + offset
    return {"max_position_embeddings": positions, "pad_token_id": offset - 1}


ROBERTA = Lineage(
    "roberta",
    "roberta",
    decoder="RobertaForCausalLM",
    modules={
        **_bert_modules("roberta"),
        **_cross_attention("roberta"),
        "bert/pooler": "roberta.pooler.dense",
        "masked_lm/dense": "lm_head.dense",
        "masked_lm/norm": "lm_head.layer_norm",
        "masked_lm": "lm_head",
        "sequence_classifier": "classifier.out_proj",
        "token_classifier": "classifier",
        "answer_span": "qa_outputs",
    },
    classifier={"bert/pooler": "classifier.dense"},
    tied={
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    },
    constants=r"embeddings\.(position_ids|token_type_ids)",
    fields=FIELDS,
    defaults=DEFAULTS,
    # The activation of its MLM head is always the exact GELU.
    required={"position_embedding_type": "absolute", "hidden_act": "gelu", **ENCODER},
    read=_read_roberta,
    write=_write_roberta,
)
XLM_ROBERTA = replace(ROBERTA, model_type="xlm-roberta", decoder="XLMRobertaForCausalLM")

DISTILBERT = Lineage(
    "distilbert",
    "distilbert",
    modules={
        "bert/embeddings/word": "distilbert.embeddings.word_embeddings",
        "bert/embeddings/position": "distilbert.embeddings.position_embeddings",
        "bert/embeddings/norm": "distilbert.embeddings.LayerNorm",
        **_layers(
            "distilbert.transformer.layer",
            {
                "attention/query": "attention.q_lin",
                "attention/key": "attention.k_lin",
                "attention/value": "attention.v_lin",
                "attention/output": "attention.out_lin",
                "attention_norm": "sa_layer_norm",
                "feed_forward/intermediate": "ffn.lin1",
                "feed_forward/output": "ffn.lin2",
                "feed_forward_norm": "output_layer_norm",
            },
        ),
        "bert/pooler": "pre_classifier",
        "masked_lm/dense": "vocab_transform",
        "masked_lm/norm": "vocab_layer_norm",
        "masked_lm": "vocab_projector",
        "sequence_classifier": "classifier",
        "token_classifier": "classifier",
        "answer_span": "qa_outputs",
    },
    tied={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
    constants=r"embeddings\.position_ids",
    fields={
        "model.vocab_size": "vocab_size",
        "model.num_layers": "n_layers",
        "model.hidden_size": "dim",
        "model.num_heads": "n_heads",
        "model.intermediate_size": "hidden_dim",
        "model.max_position_embeddings": "max_position_embeddings",
        "model.hidden_act": "activation",
        "numerics.hidden_dropout": "dropout",
        "numerics.attention_dropout": "attention_dropout",
        "model.initializer_range": "initializer_range",
    },
    defaults={
        "activation": "gelu",
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "max_position_embeddings": 512,
        "initializer_range": 0.02,
    },
    blocks={"type_vocab_size": 0, "layer_norm_eps": 1e-12, "pooler": "relu"},
)


@dataclass(frozen=True)
class ElectraFields:
    """Embeddings of the size of the layers need no projection."""

    embedding_size: int = 128
    hidden_size: int = 256


def _read_electra(fields: Plain, where: str) -> Plain:
    given = typed(fields, ElectraFields, where)
    same = given.embedding_size == given.hidden_size
    return {"embedding_size": None if same else given.embedding_size}


ELECTRA = Lineage(
    "electra",
    "electra",
    modules={
        **_bert_modules("electra"),
        "bert/embeddings/projection": "electra.embeddings_project",
        "bert/pooler": "classifier.dense",
        "masked_lm/dense": "generator_predictions.dense",
        "masked_lm/norm": "generator_predictions.LayerNorm",
        "masked_lm": "generator_lm_head",
        "sequence_classifier": "classifier.out_proj",
        "token_classifier": "classifier",
        "answer_span": "qa_outputs",
        "replaced_token/dense": "discriminator_predictions.dense",
        "replaced_token/output": "discriminator_predictions.dense_prediction",
    },
    tied={"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"},
    constants=r"embeddings\.(position_ids|token_type_ids)",
    fields=FIELDS,
    defaults=DEFAULTS,
    # The activation of the generator's head is always the exact GELU.
    required={"position_embedding_type": "absolute", "hidden_act": "gelu", **ENCODER},
    blocks={"pooler": "gelu"},
    read=_read_electra,
    write=lambda architecture: {"embedding_size": architecture.embedding_features},
)


@dataclass(frozen=True)
class EsmFields:
    """Positions are RoPE in ESM-2, and learned ones with an offset in ESM-1b."""

    position_embedding_type: Literal["absolute", "rotary"] = "absolute"
    rope_theta: float = 10_000.0
    emb_layer_norm_before: bool | None = None
    token_dropout: bool | None = False
    mask_token_id: int | None = None


def _read_esm(fields: Plain, where: str) -> Plain:
    given = typed(fields, EsmFields, where)
    if given.token_dropout and given.mask_token_id is None:
        raise UserError(f"{where}: token_dropout needs mask_token_id")
    ours: Plain = {
        "embedding_norm": bool(given.emb_layer_norm_before),
        "token_dropout_id": given.mask_token_id if given.token_dropout else None,
    }
    if given.position_embedding_type == "rotary":
        return ours | {"position_embedding": {"name": "rope", "theta": given.rope_theta}}
    return ours | _read_roberta(fields, where)


def _write_esm(architecture: Architecture) -> Plain:
    encoding, mask_id = architecture.position_embedding, architecture.token_dropout_id
    fields: Plain = {
        "emb_layer_norm_before": architecture.embedding_norm,
        "token_dropout": mask_id is not None,
        **({} if mask_id is None else {"mask_token_id": mask_id}),
    }
    if isinstance(encoding, Rope):
        return fields | {"position_embedding_type": "rotary", "rope_theta": encoding.theta}
    return fields | {"position_embedding_type": "absolute"} | _write_roberta(architecture)


def _esm_buffers(architecture: Architecture) -> dict[str, np.ndarray]:
    """The rates of RoPE, which its files have once for each layer."""
    encoding = architecture.position_embedding
    if not isinstance(encoding, Rope):
        return {}
    rates = encoding.rates(architecture.hidden_size // architecture.num_heads)
    return {
        f"esm.encoder.layer.{layer}.attention.self.rotary_embeddings.inv_freq": rates
        for layer in range(architecture.num_layers)
    }


ESM_LACKS = ("type_vocab_size", "hidden_act")
ESM = Lineage(
    "esm",
    "esm",
    modules={
        "bert/embeddings/word": "esm.embeddings.word_embeddings",
        "bert/embeddings/position": "esm.embeddings.position_embeddings",
        "bert/embeddings/norm": "esm.embeddings.layer_norm",
        **_layers(
            "esm.encoder.layer",
            {
                "attention_norm": "attention.LayerNorm",
                "attention/query": "attention.self.query",
                "attention/key": "attention.self.key",
                "attention/value": "attention.self.value",
                "attention/output": "attention.output.dense",
                "feed_forward_norm": "LayerNorm",
                "feed_forward/intermediate": "intermediate.dense",
                "feed_forward/output": "output.dense",
            },
        ),
        "bert/norm": "esm.encoder.emb_layer_norm_after",
        "bert/pooler": "esm.pooler.dense",
        "masked_lm/dense": "lm_head.dense",
        "masked_lm/norm": "lm_head.layer_norm",
        "masked_lm": "lm_head",
        "sequence_classifier": "classifier.out_proj",
        "token_classifier": "classifier",
    },
    classifier={"bert/pooler": "classifier.dense"},
    tied={"lm_head.decoder.weight": "esm.embeddings.word_embeddings.weight"},
    constants=r"embeddings\.position_ids|(.*\.)?rotary_embeddings\.inv_freq",
    unread={"contact_head.": "predicts contacts from attention"},
    fields={ours: theirs for ours, theirs in FIELDS.items() if theirs not in ESM_LACKS},
    defaults={name: value for name, value in DEFAULTS.items() if name not in ESM_LACKS}
    | {"max_position_embeddings": 1026},
    required={"is_folding_model": False, **ENCODER},
    blocks={
        "type_vocab_size": 0,
        "hidden_act": "gelu",
        "norm_position": "pre",
        "final_norm": True,
    },
    read=_read_esm,
    write=_write_esm,
    buffers=_esm_buffers,
)


@dataclass(frozen=True)
class RopeFields:
    """One kind of layer in `rope_parameters`."""

    rope_type: Literal["default"] = "default"
    rope_theta: float | None = None


@dataclass(frozen=True)
class ModernBertFields:
    """The pattern of layers and the bases of RoPE, each under its newer and its older name."""

    layer_types: list[Literal["full_attention", "sliding_attention"]] | None = None
    global_attn_every_n_layers: int = 3
    rope_parameters: dict[str, RopeFields | None] | None = None
    global_rope_theta: float = 160_000.0
    local_rope_theta: float = 10_000.0
    classifier_pooling: Literal["cls", "mean"] = "cls"

    def theta(self, kind: str, older: float) -> float:
        """The base of RoPE in a kind of layer."""
        found = (self.rope_parameters or {}).get(kind)
        return older if found is None or found.rope_theta is None else found.rope_theta

    def global_every(self, where: str) -> int:
        """Every how many layers there is a global one."""
        kinds = self.layer_types
        if kinds is None:
            return self.global_attn_every_n_layers
        for every in range(1, len(kinds) + 1):
            local = [kind == "sliding_attention" for kind in kinds]
            if local == [layer % every != 0 for layer in range(len(kinds))]:
                return every
        raise UserError(f"{where}: layer_types must have a global layer after every n-th")


def _read_modernbert(fields: Plain, where: str) -> Plain:
    given = typed(fields, ModernBertFields, where)
    theta = given.theta("full_attention", given.global_rope_theta)
    local = given.theta("sliding_attention", given.local_rope_theta)
    return {
        "position_embedding": {
            "name": "rope",
            "theta": theta,
            "local_theta": None if local == theta else local,
        },
        "global_every": given.global_every(where),
        "pooling": given.classifier_pooling,
    }


def _write_modernbert(architecture: Architecture) -> Plain:
    encoding = architecture.position_embedding
    rope = encoding if isinstance(encoding, Rope) else Rope()
    return {
        "global_attn_every_n_layers": architecture.global_every,
        "global_rope_theta": rope.theta,
        "local_rope_theta": rope.theta if rope.local_theta is None else rope.local_theta,
        "classifier_pooling": architecture.pooling,
    }


MODERNBERT = Lineage(
    "modernbert",
    "model",
    modules={
        "bert/embeddings/word": "model.embeddings.tok_embeddings",
        "bert/embeddings/norm": "model.embeddings.norm",
        **_layers(
            "model.layers",
            {
                "attention_norm": "attn_norm",
                "attention/query": "attn.Wqkv",
                "attention/key": "attn.Wqkv",
                "attention/value": "attn.Wqkv",
                "attention/output": "attn.Wo",
                "feed_forward_norm": "mlp_norm",
                "feed_forward/intermediate": "mlp.Wi",
                "feed_forward/gate": "mlp.Wi",
                "feed_forward/output": "mlp.Wo",
            },
        ),
        "bert/norm": "model.final_norm",
        "bert/pooler/dense": "head.dense",
        "bert/pooler/norm": "head.norm",
        "masked_lm/dense": "head.dense",
        "masked_lm/norm": "head.norm",
        "masked_lm": "decoder",
        "sequence_classifier": "classifier",
        "token_classifier": "classifier",
        "answer_span": "classifier",
    },
    tied={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
    constants=r"rotary_emb\.",
    fields={
        "model.vocab_size": "vocab_size",
        "model.num_layers": "num_hidden_layers",
        "model.hidden_size": "hidden_size",
        "model.num_heads": "num_attention_heads",
        "model.intermediate_size": "intermediate_size",
        "model.max_position_embeddings": "max_position_embeddings",
        "model.hidden_act": "hidden_activation",
        "model.layer_norm_eps": "norm_eps",
        "model.norm_bias": "norm_bias",
        "model.attention_bias": "attention_bias",
        "model.feed_forward_bias": "mlp_bias",
        "model.head_bias": "classifier_bias",
        "model.decoder_bias": "decoder_bias",
        "model.local_window": "local_attention",
        "model.initializer_range": "initializer_range",
        "numerics.embedding_dropout": "embedding_dropout",
        "numerics.attention_dropout": "attention_dropout",
        "numerics.feed_forward_dropout": "mlp_dropout",
    },
    defaults={
        "max_position_embeddings": 8192,
        "hidden_activation": "gelu",
        "norm_eps": 1e-5,
        "norm_bias": False,
        "attention_bias": False,
        "mlp_bias": False,
        "classifier_bias": False,
        "decoder_bias": True,
        "local_attention": 128,
        "initializer_range": 0.02,
        "embedding_dropout": 0.0,
        "attention_dropout": 0.0,
        "mlp_dropout": 0.0,
    },
    required={"classifier_activation": "gelu"},
    blocks={
        "type_vocab_size": 0,
        "feed_forward": "glu",
        "norm_position": "pre",
        "first_norm": False,
        "final_norm": True,
        "pooler": "transform",
        "scaled_output_init": True,
    },
    read=_read_modernbert,
    write=_write_modernbert,
)


@dataclass(frozen=True)
class EuroBertFields:
    """Keys and values may have fewer heads than queries, which cannot be read."""

    num_attention_heads: int
    hidden_size: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    rope_parameters: RopeFields | None = None
    rope_theta: float = 10_000.0


def _read_eurobert(fields: Plain, where: str) -> Plain:
    given = typed(fields, EuroBertFields, where)
    heads, size = given.num_attention_heads, given.hidden_size
    if given.num_key_value_heads not in (None, heads):
        raise UserError(
            f"{where}: num_key_value_heads must be {heads}, as many as those of queries"
        )
    if given.head_dim is not None and given.head_dim * heads != size:
        raise UserError(f"{where}: head_dim must be hidden_size / num_attention_heads")
    rope = given.rope_parameters or RopeFields()
    theta = given.rope_theta if rope.rope_theta is None else rope.rope_theta
    return {"position_embedding": {"name": "rope", "theta": theta}}


def _write_eurobert(architecture: Architecture) -> Plain:
    encoding = architecture.position_embedding
    theta = (encoding if isinstance(encoding, Rope) else Rope()).theta
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}


EUROBERT = Lineage(
    "eurobert",
    "model",
    modules={
        "bert/embeddings/word": "model.embed_tokens",
        **_layers(
            "model.layers",
            {
                "attention_norm": "input_layernorm",
                "attention/query": "self_attn.q_proj",
                "attention/key": "self_attn.k_proj",
                "attention/value": "self_attn.v_proj",
                "attention/output": "self_attn.o_proj",
                "feed_forward_norm": "post_attention_layernorm",
                "feed_forward/intermediate": "mlp.gate_proj",
                "feed_forward/gate": "mlp.up_proj",
                "feed_forward/output": "mlp.down_proj",
            },
        ),
        "bert/norm": "model.norm",
        "masked_lm/decoder": "lm_head",
        "token_classifier": "classifier",
    },
    fields={
        "model.vocab_size": "vocab_size",
        "model.num_layers": "num_hidden_layers",
        "model.hidden_size": "hidden_size",
        "model.num_heads": "num_attention_heads",
        "model.intermediate_size": "intermediate_size",
        "model.max_position_embeddings": "max_position_embeddings",
        "model.hidden_act": "hidden_act",
        "model.layer_norm_eps": "rms_norm_eps",
        "model.attention_bias": "attention_bias",
        "model.initializer_range": "initializer_range",
        "numerics.attention_dropout": "attention_dropout",
    },
    defaults={
        "hidden_act": "silu",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "attention_bias": False,
        "initializer_range": 0.02,
        "attention_dropout": 0.0,
    },
    required={"mlp_bias": False},
    blocks={
        "type_vocab_size": 0,
        "norm": "rms_norm",
        "norm_position": "pre",
        "embedding_norm": False,
        "final_norm": True,
        "feed_forward": "glu",
        "feed_forward_bias": False,
        "head_transform": False,
        "decoder_bias": False,
        "tied_decoder": False,
    },
    read=_read_eurobert,
    write=_write_eurobert,
)

# In the order in which a model that we trained is tried.
LINEAGES = {
    lineage.model_type: lineage
    for lineage in (BERT, ROBERTA, XLM_ROBERTA, DISTILBERT, ELECTRA, ESM, MODERNBERT, EUROBERT)
}
