"""How much the loss of a task depends on each head and each layer.

Reference: Michel et al. 2019, https://arxiv.org/abs/1905.10650, section 4.1.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.model.parameters import Params
from bert_jax.model.pruning import scaled
from bert_jax.objective.finetuning import FineTuning

Scales = dict[str, jax.Array]  # arguments of `scaled`


class Importance(NamedTuple):
    """The mean over examples of |d loss / d scale|, in nats.

    Attributes:
      heads: fp32 [layers, heads].
      layers: fp32 [layers].
    """

    heads: np.ndarray
    layers: np.ndarray

    def least_heads(self, share: float) -> np.ndarray:
        """Bool [layers, heads], the least important: `share` of all heads.

        Heads of different layers are compared by their importance / the norm of that of all heads
        of their layer.
        """
        norms = np.linalg.norm(self.heads, axis=1, keepdims=True)
        order = np.argsort((self.heads / np.maximum(norms, 1e-30)).ravel(), kind="stable")
        least = np.zeros(self.heads.size, bool)
        least[order[: round(share * self.heads.size)]] = True
        return least.reshape(self.heads.shape)

    def layers_without(self, count: int) -> list[int]:
        """The layers, counted from 0, without the `count` least important ones."""
        return sorted(np.argsort(self.layers, kind="stable")[count:].tolist())


def importance(
    objective: FineTuning,
    params: Params,
    batches: Iterable[Mapping[str, np.ndarray]],
    shape: tuple[int, int],
) -> Importance:
    """Measures it on examples, in one compiled program.

    Args:
      objective: the loss.
      params: parameters of its model.
      batches: batches of the task, each row with one example at most.
      shape: numbers of layers and of heads.
    """

    ones = {"heads": jnp.ones(shape), "layers": jnp.ones(shape[0])}

    def of_row(params: Params, row: Mapping[str, jax.Array]) -> tuple[Scales, jax.Array]:
        batch = {name: x[None] for name, x in row.items()}

        def loss(scales: Scales) -> tuple[jax.Array, jax.Array]:
            sums = objective.sums(scaled(params, **scales), batch)
            return sums["task_loss"] / jnp.maximum(sums["task_count"], 1), sums["task_count"] > 0

        gradients, has_example = jax.grad(loss, has_aux=True)(ones)
        return jax.tree.map(jnp.abs, gradients), has_example

    @jax.jit
    def of_batch(params: Params, batch: Mapping[str, jax.Array]) -> tuple[Scales, jax.Array]:
        found, has_example = jax.lax.map(lambda row: of_row(params, row), batch)
        return jax.tree.map(lambda x: x.sum(axis=0), found), has_example.sum()

    params, total, count = jax.device_put(params), jax.tree.map(np.zeros_like, ones), 0
    for batch in batches:
        sums, examples = jax.device_get(of_batch(params, batch))
        total, count = jax.tree.map(np.add, total, sums), count + int(examples)
    return Importance(**{name: values / max(count, 1) for name, values in total.items()})
