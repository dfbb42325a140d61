"""From a validated config to the parts of a run: the one place where both are known."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from flax import nnx
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from bert_jax.config import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    differences,
    read_config,
)
from bert_jax.data.batches import Batches, PremaskedBatches, batches_of, heldout_batches
from bert_jax.data.store import Store, open_store
from bert_jax.data.tfrecords import PremaskedStore, is_premasked, open_premasked
from bert_jax.data.wordpiece import WordPiece, load_wordpiece
from bert_jax.errors import UserError
from bert_jax.model.attention import SPLASH_MULTIPLE, Attend, attention, splash_attention
from bert_jax.model.bert import padded_vocab_size, unconstrained
from bert_jax.model.heads import PRETRAINING, BertWithHeads
from bert_jax.objective.masking import Masking
from bert_jax.parallel import hosts, rules
from bert_jax.parallel.compiler import compiler_options
from bert_jax.report.flops import pretraining_flops_per_example
from bert_jax.train import optimizers
from bert_jax.train.checkpoints import Checkpoints
from bert_jax.train.state import Params, TrainState, init_state, split_model
from bert_jax.train.step import Objective, make_train_step

# Parameters and masks fold small numbers (a count, an epoch) into the key of the seed: dropout
# keeps away from them.
DROPOUT_STREAM = 2**31
# Below it the scores are small and XLA's own fusions are as good.
SPLASH_MIN_LENGTH = 512
RNG_IMPLEMENTATIONS = {"threefry": "threefry2x32", "rbg": "rbg"}
AnyStore = Store | PremaskedStore


class Model(NamedTuple):
    """`graphdef` for `nnx.merge(graphdef, params)` and `init(key) -> params`."""

    graphdef: nnx.GraphDef
    init: Callable[[jax.Array], Params]


def build_model(
    config: ModelConfig,
    mesh: Mesh | None,
    parts: Sequence[str] = PRETRAINING,
    num_labels: int = 0,
) -> Model:
    """The model with the parts that `BertWithHeads` is given; computes nothing yet.

    Without a mesh it is tied to no devices: it runs on any, by XLA's attention, and layouts follow
    from its arguments.
    """
    options = dataclasses.asdict(config)
    options["dtype"] = jnp.dtype(options.pop("compute_dtype"))
    implementation = options.pop("attention")
    options["attend"] = build_attention(implementation, mesh) if mesh else attention
    options["constrain"] = rules.activation_constraint(mesh) if mesh else unconstrained
    options["gather_layer"] = rules.gather_layer(mesh) if mesh else lambda params: params
    options |= {"parts": parts, "num_labels": num_labels}
    return Model(*split_model(lambda rngs: BertWithHeads(rngs=rngs, **options)))


def build_attention(implementation: str, mesh: Mesh) -> Attend:
    """The attention function of a model on a mesh.

    Args:
      implementation: "xla"; "splash", the TPU kernel, where the length is a multiple of
        `SPLASH_MULTIPLE` and nothing is dropped, and XLA elsewhere; or "auto", which is splash on
        TPUs from `SPLASH_MIN_LENGTH` tokens a row on.
      mesh: of the run. Off TPUs the kernel runs in its interpreter, slowly.
    """
    on_tpu = mesh.devices.flat[0].platform == "tpu"
    if implementation == "xla" or (implementation == "auto" and not on_tpu):
        return attention
    heads = rules.spec(("batch", None, "heads", None))
    kernel = jax.shard_map(
        functools.partial(splash_attention, interpret=not on_tpu),
        mesh=mesh,
        in_specs=(heads, heads, heads, rules.spec(("batch", None))),
        out_specs=heads,
        check_vma=False,
    )

    shortest = SPLASH_MULTIPLE if implementation == "splash" else SPLASH_MIN_LENGTH

    def attend(query, key, value, segment_ids, *, dropout_rate=0.0, dropout_key=None):
        length = query.shape[1]
        dropped = dropout_key is not None and dropout_rate > 0
        if dropped or length < shortest or length % SPLASH_MULTIPLE:
            return attention(
                query, key, value, segment_ids, dropout_rate=dropout_rate, dropout_key=dropout_key
            )
        return kernel(query, key, value, segment_ids)

    return attend


def build_masking(config: DataConfig, wordpiece: WordPiece) -> Masking:
    """How to mask the batches of this config in this vocabulary."""
    return Masking(
        strategy=config.masking,
        masked_lm_prob=config.masked_lm_prob,
        max_predictions_per_seq=config.max_predictions_per_seq,
        max_predictions_per_row=config.max_predictions_per_row,
        mask_id=wordpiece.mask_id,
        is_special=np.isin(np.arange(len(wordpiece.vocab)), wordpiece.special_ids),
        is_continuation=wordpiece.is_continuation,
    )


def build_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """The optimizer without its learning rate."""
    common = {"weight_decay": config.weight_decay, "clip_norm": config.clip_norm}
    adam = {"b1": config.b1, "b2": config.b2, "eps": config.eps}
    return {
        "adamw": lambda: optimizers.adamw(**adam, bias_correction=config.bias_correction, **common),
        "lamb": lambda: optimizers.lamb(**adam, **common),
        "adafactor": lambda: optimizers.adafactor(**common),
        "sgd": lambda: optimizers.sgd(momentum=config.b1, **common),
    }[config.name]()


def build_schedule(config: RunConfig, first_step: int = 0) -> Callable[..., jax.Array]:
    """The learning rate of each step of a run.

    With a budget it has a second argument, the number of steps that the time allows, to which the
    schedule of `config.steps` is shrunk.

    Args:
      config: of the run, or of a stage of it.
      first_step: at which the schedule starts.
    """
    schedule = optimizers.learning_rate_schedule(
        config.optimizer.schedule,
        peak=config.optimizer.learning_rate,
        warmup_steps=config.optimizer.warmup_steps,
        steps=config.steps,
        power=config.optimizer.poly_power,
    )
    if config.budget_hours:
        return lambda step, steps: schedule(step * (config.steps / steps))
    return lambda step: schedule(step - first_step)


def dropout_key(config: RunConfig) -> jax.Array | None:
    """The key that the step folds with its number; None if nothing is dropped."""
    if config.model.hidden_dropout == config.model.attention_dropout == 0:
        return None
    key = jax.random.key(config.seed, impl=RNG_IMPLEMENTATIONS[config.rng])
    return jax.random.fold_in(key, DROPOUT_STREAM)


def abstract_state(
    model: Model, optimizer: optax.GradientTransformation, mesh: Mesh, *, zero1: bool = False
) -> tuple[TrainState, Any]:
    """The shapes of a state with their shardings, and `init(key)` that makes it sharded.

    `zero1` is that of `rules.state_shardings`.
    """
    init = functools.partial(init_state, model.init, optimizer)
    shapes = jax.eval_shape(init, jax.random.key(0))
    shardings = rules.state_shardings(mesh, shapes, zero1)
    abstract = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )
    return abstract, jax.jit(init, out_shardings=shardings)


def open_data(path: epath.PathLike) -> AnyStore:
    """Opens a token store, or a folder of pre-masked TFRecords in its place.

    Raises:
      UserError: as `open_store` and `open_premasked`.
    """
    return open_premasked(path) if is_premasked(path) else open_store(path)


def configured_store(config: Config) -> AnyStore:
    """Opens the store of a config.

    Raises:
      UserError: none is named, it cannot be opened, or its vocabulary is not the model's.
    """
    if not config.data.store:
        raise UserError(
            "config.data.store is empty: name the directory that `bert-jax prepare` wrote"
        )
    store = open_data(config.data.store)
    size = len(store.wordpiece.vocab)
    if config.model.vocab_size != size:
        raise UserError(
            f"config.model.vocab_size={config.model.vocab_size}, but {store.path} has a vocabulary "
            f"of {size}: set --config.model.vocab_size={size} or prepare another store"
        )
    return store


def check_same(config: Config, store: AnyStore) -> None:
    """Raises UserError if a process has another config or other data than process 0."""
    mine = config.to_dict() | {"store_fingerprint": store.fingerprint}
    first, *others = map(json.loads, hosts.gather(json.dumps(mine)))
    for process, other in enumerate(others, start=1):
        changed = differences(first, other)
        if changed:
            raise UserError(
                f"process {process} differs from process 0: {'; '.join(changed)}. "
                f"Start all with the same config and token store"
            )


def check_mesh(config: Config, mesh: Mesh) -> None:
    """Raises UserError if rows or parameters cannot be split over the mesh."""
    check_model(config.model, mesh)
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = config.data.batch_size // config.optimizer.gradient_accumulation
    if rows % devices:
        raise UserError(
            f"config.data.batch_size={config.data.batch_size} in "
            f"{config.optimizer.gradient_accumulation} microbatches gives {rows} rows, which "
            f"{devices} devices (axes data and fsdp) cannot share equally"
        )


def check_model(model: ModelConfig, mesh: Mesh) -> None:
    """Raises UserError if parameters cannot be split over the mesh."""
    vocab_size = padded_vocab_size(model.vocab_size)
    for axis, field, size in (
        ("fsdp", "hidden_size", model.hidden_size),
        ("tensor", "num_heads", model.num_heads),
        ("tensor", "intermediate_size", model.intermediate_size),
        ("tensor", "vocab_size", vocab_size),
    ):
        if size % mesh.shape[axis]:
            raise UserError(
                f"config.mesh.{axis}={mesh.shape[axis]} must divide config.model.{field}, {size}"
                + (" with its padding" if size == vocab_size else "")
            )


def abstract_batch(config: Config, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and shardings of a global training batch; see `Batches.batch`."""
    rows, length = config.data.batch_size, config.data.max_seq_length
    examples = config.data.examples_per_row
    per_token = ("input_ids", "token_type_ids", "position_ids", "segment_ids")
    shapes = dict.fromkeys(per_token, (rows, length)) | {
        "cls_positions": (rows, examples),
        "next_sentence_label": (rows, examples),
        "example_ids": (rows, examples, 2),
    }
    sharding = rules.batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)
        for name, shape in shapes.items()
    }


def load_params(config: ModelConfig, mesh: Mesh) -> Callable[[Params], Params]:
    """The function from stored parameters to those to compute with.

    Weights of matrix products and embeddings are cast first and gathered then, at half the bytes
    where they are bf16; so their gradients are reduced in bf16 too. Biases and LayerNorm stay fp32.
    """
    dtype = jnp.dtype(config.compute_dtype)

    def cast(path, leaf):
        return leaf.astype(dtype) if path[-1].key in ("kernel", "embedding") else leaf

    return lambda params: rules.gather(mesh, jax.tree_util.tree_map_with_path(cast, params))


def jit_train_step(
    config: RunConfig,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    mesh: Mesh,
    first_step: int = 0,
) -> Callable:
    """The compiled training step, (state, batch) -> (state, metrics); the state is donated.

    With a budget its third argument is that of `build_schedule`.

    Args:
      config: of the run, or of a stage of it.
      objective, optimizer: of the run.
      state: abstract, with shardings.
      mesh: of the run.
      first_step: at which the schedule starts.
    """
    shardings = jax.tree.map(lambda x: x.sharding, state)

    def store(gradients: Params) -> Params:
        gradients = rules.scatter(mesh, gradients, shardings.params)
        return jax.tree.map(lambda g: g.astype(jnp.float32), gradients)

    train_step = make_train_step(
        objective,
        optimizer,
        build_schedule(config, first_step),
        dropout_key=dropout_key(config),
        gradient_accumulation=config.optimizer.gradient_accumulation,
        load=load_params(config.model, mesh),
        store=store,
    )
    horizon = [rules.replicated(mesh)] if config.budget_hours else []
    return jax.jit(
        train_step,
        in_shardings=(shardings, rules.batch_sharding(mesh), *horizon),
        out_shardings=(shardings, rules.replicated(mesh)),
        donate_argnums=0,
        compiler_options=compiler_options(mesh, config.rng),
    )


def flops_per_row(config: Config) -> float:
    """Training FLOPs of a full row that holds one example."""
    return pretraining_flops_per_example(
        num_layers=config.model.num_layers,
        hidden_size=config.model.hidden_size,
        intermediate_size=config.model.intermediate_size,
        vocab_size=config.model.vocab_size,
        length=config.data.max_seq_length,
        predictions=config.data.masked_lm_prob * config.data.max_seq_length,
    )


class Trained(NamedTuple):
    """What a workdir holds of a model, read back."""

    config: Config
    wordpiece: WordPiece
    model: Model
    params: Params
    step: int


def load_trained(workdir: epath.Path, mesh: Mesh, step: int | None = None) -> Trained:
    """Restores the parameters of a run onto a mesh.

    Args:
      workdir: of a training run.
      mesh: where to put the parameters; need not be the one of the run.
      step: which checkpoint; None for the newest.

    Raises:
      UserError: no run, or no such checkpoint, in `workdir`.
    """
    config = read_config(workdir / "config.json")
    with Checkpoints(workdir, read_only=True) as checkpoints:
        params, step = checkpoints.read_params(step)
    trained_with = config.stage_of(step).config
    model = build_model(config.model, mesh)
    check_params(workdir / "checkpoints" / str(step), model, params)
    return Trained(trained_with, load_wordpiece(workdir), model, put_params(params, mesh), step)


def check_params(path: epath.Path, model: Model, params: Params) -> None:
    """Raises UserError, which names `path`, if parameters are not those of the model."""
    expected = flatten_dict(jax.eval_shape(model.init, jax.random.key(0)), sep="/")
    found = flatten_dict(params, sep="/")
    for name in expected | found:
        shapes = [tree[name].shape if name in tree else "nothing" for tree in (found, expected)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"{path}: cannot be restored into this model: {name} is {shapes[0]}, due is "
                f"{shapes[1]}; is its config.json that of the run?"
            )


def put_params(params: Params, mesh: Mesh, *, zero1: bool = False) -> Params:
    """Parameters on the mesh, from the same numpy arrays on every host; see `abstract_state`."""

    def put(array: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
        return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)

    return jax.tree.map(put, params, rules.state_shardings(mesh, params, zero1))


def sampling_options(config: DataConfig, wordpiece: WordPiece) -> dict[str, Any]:
    """What `Batches` and `heldout_batches` have in common."""
    return {
        "cls_id": wordpiece.cls_id,
        "sep_id": wordpiece.sep_id,
        "pad_id": wordpiece.pad_id,
        "batch_size": config.batch_size,
        "max_seq_length": config.max_seq_length,
        "pairs": config.pairs,
        "short_seq_prob": config.short_seq_prob,
        "packing": config.packing,
        "max_examples_per_row": config.max_examples_per_row,
    }


def batch_options(config: DataConfig, store: AnyStore) -> dict[str, Any]:
    """What training and held-out batches of a store have in common.

    Raises:
      UserError: the config is not that of pre-masked examples.
    """
    if isinstance(store, Store):
        return sampling_options(config, store.wordpiece)
    if config.packing:
        raise UserError(
            f"config.data.packing=True, but {store.path} has pre-masked examples, which take a row "
            "each: set config.data.packing to False"
        )
    for split in (store.train, store.heldout):
        for field in ("max_seq_length", "max_predictions_per_seq"):
            configured, found = getattr(config, field), getattr(split, field)
            if configured != found:
                raise UserError(
                    f"config.data.{field}={configured}, but the {split.name} examples in "
                    f"{store.path} are masked already and have {found}: "
                    f"set config.data.{field} to {found}"
                )
    return {"batch_size": config.batch_size}


def training_batches(config: Config, store: AnyStore, mesh: Mesh) -> Batches | PremaskedBatches:
    """This host's rows of every training batch."""
    options = batch_options(config.data, store)
    rows = hosts.local_rows(rules.batch_sharding(mesh), config.data.batch_size)
    return batches_of(store.train, seed=config.seed, host_rows=rows, **options)


def evaluation_batches(
    config: Config, store: AnyStore, mesh: Mesh
) -> Iterable[dict[str, np.ndarray]]:
    """This host's rows of the fixed held-out batches; may be iterated again.

    A batch is as large as in training, rounded up to what the mesh can share equally.
    """
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    options = batch_options(config.data, store)
    options["batch_size"] = -(-config.data.batch_size // devices) * devices
    rows = hosts.local_rows(rules.batch_sharding(mesh), options["batch_size"])
    return heldout_batches(
        store.heldout, num_batches=config.eval_batches, host_rows=rows, **options
    )


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """The global batch on the mesh, from the rows of every host; see `hosts.local_rows`."""
    sharding = rules.batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
