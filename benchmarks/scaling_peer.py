"""Compiles the pretraining step of Hugging Face's Flax BERT for a TPU slice and prints JSON.

    python -m venv peer
    peer/bin/pip install transformers==4.57.6 flax==0.12.8 jax==0.10.2 libtpu==0.0.42.1 optax
    PYTHONPATH=. peer/bin/python benchmarks/scaling_peer.py --rows 32 --length 128 --rng rbg

Transformers 5 has no Flax models, so this runs in a separate environment. The step is that of
their examples/flax/language-modeling/run_mlm_flax.py with the next-sentence loss added and without
its pmap: BERT-base in bf16 with fp32 parameters, predictions at every position, AdamW, state
replicated, batch split over the devices of one v5e:2x4.
"""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from transformers import BertConfig, FlaxBertForPreTraining

from bert_jax.parallel.topologies import topology_devices
from bert_jax.report import compiled

TOPOLOGY = "v5e:2x4"


def train_step(model, optimizer):
    """`step(params, opt_state, batch, key) -> (params, opt_state, loss)`."""

    def loss(params, batch, key):
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
        outputs = model(**inputs, params=params, dropout_rng=key, train=True)
        logits, labels = outputs.prediction_logits, batch["labels"]
        weights = labels > 0
        masked_lm = optax.softmax_cross_entropy(logits, jax.nn.one_hot(labels, logits.shape[-1]))
        next_sentence = optax.softmax_cross_entropy_with_integer_labels(
            outputs.seq_relationship_logits, batch["next_sentence_label"]
        )
        return jnp.sum(masked_lm * weights) / jnp.sum(weights) + jnp.mean(next_sentence)

    def step(params, opt_state, batch, key):
        value, gradients = jax.value_and_grad(loss)(params, batch, key)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    return step


def decayed(params):
    """Which parameters decay: neither biases nor LayerNorm."""
    paths = flatten_dict(params)
    return unflatten_dict({path: path[-1] not in ("bias", "scale") for path in paths})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, required=True, help="rows per device")
    parser.add_argument("--length", type=int, required=True, help="tokens per row")
    parser.add_argument("--rng", choices=("threefry2x32", "rbg"), required=True)
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_default_prng_impl", arguments.rng)
    options = {"xla_tpu_spmd_rng_bit_generator_unsafe": arguments.rng == "rbg"}

    mesh = Mesh(np.array(topology_devices(TOPOLOGY)), ("data",))
    rows, length = arguments.rows * mesh.size, arguments.length
    model = FlaxBertForPreTraining(BertConfig(), dtype=jnp.bfloat16, _do_init=False)
    optimizer = optax.adamw(
        optax.linear_schedule(1e-4, 0.0, 1_000_000), weight_decay=0.01, mask=decayed
    )
    params = model.params_shape_tree
    per_token = ("input_ids", "attention_mask", "token_type_ids", "labels")
    batch = {name: jax.ShapeDtypeStruct((rows, length), jnp.int32) for name in per_token}
    batch["next_sentence_label"] = jax.ShapeDtypeStruct((rows,), jnp.int32)
    everywhere, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    lowered = jax.jit(
        train_step(model, optimizer),
        in_shardings=(everywhere, everywhere, split, everywhere),
        out_shardings=everywhere,
        donate_argnums=(0, 1),
        compiler_options=options,
    ).lower(
        params,
        jax.eval_shape(optimizer.init, params),
        batch,
        jax.eval_shape(lambda: jax.random.PRNGKey(0)),
    )
    program = lowered.compile()
    memory, text = program.memory_analysis(), program.as_text()
    result = {
        "cycles": compiled.entry_cycles(text),
        "cycles_by_kind": compiled.cycles_by_kind(text),
        "argument_bytes": memory.argument_size_in_bytes,
        "peak_bytes": memory.peak_memory_in_bytes,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
