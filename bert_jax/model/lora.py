"""Low-rank adaptation (LoRA): matrices stay as they are, and a product of two thin ones is added.

Reference: Hu et al. 2021, https://arxiv.org/abs/2106.09685. A matrix W of a layer becomes
W + (alpha / rank) A B. B is 0 at first. A, B, the pooler and the heads are trained.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from bert_jax.errors import UserError
from bert_jax.model.architecture import Architecture, Numerics, Parallel
from bert_jax.model.bert import Bert
from bert_jax.model.model import BertWithHeads, Model, model_of
from bert_jax.model.parameters import Params

A, B = "lora_a", "lora_b"  # their names in the parameters, beside the kernel


@dataclass(frozen=True)
class LowRank:
    """What is adapted, and how much.

    Attributes:
      rank: columns of A and rows of B.
      alpha: the product has the factor `alpha / rank`.
      matrices: names of the matrices of a layer, such as "attention/query"; empty for all.
    """

    rank: int
    alpha: float
    matrices: tuple[str, ...]

    def adapt(self, bert: Bert, rngs: nnx.Rngs) -> None:
        """Gives the matrices of an encoder their A and B.

        Raises:
          UserError: its layers have no matrix of such a name.
        """
        found: list[str] = []

        def adapted(name: str, dense: nnx.Linear) -> nnx.Module:
            found.append(name)
            if self.matrices and name not in self.matrices:
                return dense
            return LoraLinear(dense, self.rank, self.alpha / self.rank, rngs)

        bert.encoder.replace_dense(adapted)
        if strange := [name for name in self.matrices if name not in found]:
            raise UserError(
                f"config.lora_matrices: {strange[0]!r} is no matrix of a layer: use some of "
                f"{', '.join(sorted(found))}, or () for all"
            )

    def merged(self, params: Mapping[str, object]) -> Params:
        """The parameters of the model without A and B, from all of those with them."""
        found = flatten_dict(params)
        for path in [path for path in found if path[-1] == A]:
            kernel = (*path[:-1], "kernel")
            a, b = found.pop(path), found.pop((*path[:-1], B))
            found[kernel] = found[kernel] + (self.alpha / self.rank) * (a @ b)
        merged: Params = unflatten_dict(found)
        return merged


class LoraLinear(nnx.Module):
    """A dense layer with A and B, in the place of one without, whose parameters may be stacked.

    A is uniform within 1 / sqrt(inputs), as in the authors' code
    (https://github.com/microsoft/LoRA, loralib/layers.py).
    """

    def __init__(self, dense: nnx.Linear, rank: int, factor: float, rngs: nnx.Rngs):
        *layers, inputs, outputs = dense.kernel.shape
        *stack, from_axis, to_axis = dense.kernel.get_metadata()["axes"]
        bound = inputs**-0.5
        a = jax.random.uniform(rngs.params(), (*layers, inputs, rank), minval=-bound, maxval=bound)
        self.kernel, self.bias, self.dtype = dense.kernel, dense.bias, dense.dtype
        self.lora_a = nnx.Param(a, axes=(*stack, from_axis, "rank"))
        self.lora_b = nnx.Param(jnp.zeros((*layers, rank, outputs)), axes=(*stack, "rank", to_axis))
        self.factor = factor

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out] in the compute dtype."""
        x = x.astype(self.dtype)
        kernel, a, b = (
            each[...].astype(x.dtype) for each in (self.kernel, self.lora_a, self.lora_b)
        )
        found = x @ kernel + self.factor * (x @ a @ b)
        return found if self.bias is None else found + self.bias[...].astype(x.dtype)


def model_with_factors(
    architecture: Architecture,
    numerics: Numerics,
    parallel: Parallel,
    *,
    parts: Sequence[str],
    outputs: int,
    lora: LowRank,
) -> Model:
    """The `Model` of a `BertWithHeads` whose matrices have A and B.

    Its `init` makes what is trained. The step adds the other parameters; `axes` has theirs, too.

    Raises:
      UserError: see `LowRank.adapt`.
    """

    def make(rngs: nnx.Rngs) -> BertWithHeads:
        model = BertWithHeads(architecture, numerics, parallel, rngs, parts=parts, outputs=outputs)
        lora.adapt(model.bert, rngs)
        return model

    model = model_of(make)
    return model._replace(init=lambda key: trained_params(model.init(key)))


def has_factors(params: Mapping[str, object]) -> bool:
    """Whether these parameters have A and B, so that they are none of a plain model."""
    return any(path[-1] == A for path in flatten_dict(params))


def frozen_params(params: Mapping[str, object]) -> Params:
    """Those parameters of a model that are not trained: its encoder without the pooler."""
    return _chosen(params, frozen=True)


def trained_params(params: Mapping[str, object]) -> Params:
    """The others: A and B, the pooler and the heads."""
    return _chosen(params, frozen=False)


def _chosen(params: Mapping[str, object], *, frozen: bool) -> Params:
    def is_frozen(path: tuple[str, ...]) -> bool:
        return path[0] == "bert" and path[1] != "pooler" and path[-1] not in (A, B)

    flat = flatten_dict(params)
    chosen: Params = unflatten_dict({p: x for p, x in flat.items() if is_frozen(p) == frozen})
    return chosen
