"""Teachers: trained models that others learn from, and that stay as they are."""

from etils import epath
from jax.sharding import Mesh

from bert_jax.config.pretraining import PretrainConfig
from bert_jax.data.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.interop.formats import casing, read
from bert_jax.interop.initial import with_parts_only
from bert_jax.interop.portable import Portable
from bert_jax.model.architecture import Architecture
from bert_jax.model.heads import parts_of
from bert_jax.model.int8 import in_float32
from bert_jax.model.parameters import Axes, Params
from bert_jax.model.teacher import TEACHER
from bert_jax.objective.protocol import Teacher
from bert_jax.parallel import rules
from bert_jax.parallel.mesh import check_divides
from bert_jax.train.checksums import weights_fingerprint

FINGERPRINT = "teacher_weights"  # in data.json


def read_teacher(name: str, path: str, tokenizer: Tokenizer, max_seq_length: int) -> Portable:
    """Reads a teacher.

    Args:
      name: the field that names it, for messages.
      path: anything that `bert_jax.load` reads.
      tokenizer: tokenizer of the data.
      max_seq_length: tokens of the longest example.

    Raises:
      UserError: there is no model, or its vocabulary or its positions do not fit.
    """
    try:
        teacher = read(path, lowercase=casing(epath.Path(path), tokenizer.lowercase))
    except UserError as error:
        raise UserError(f"{name}={path}: {error}") from error
    if teacher.tokenizer.vocab_hash != tokenizer.vocab_hash:
        raise UserError(
            f"{name}={path}: its vocabulary ({teacher.tokenizer.description}) is not that of the "
            f"model that learns ({tokenizer.description}), so they cannot read the same tokens"
        )
    positions = teacher.architecture.max_position_embeddings
    if positions < max_seq_length:
        raise UserError(
            f"{name}={path} has {positions} positions, fewer than the {max_seq_length} of "
            "max_seq_length"
        )
    return teacher._replace(params=in_float32(teacher.params))


class Teachers:
    """The teachers of the stages of a pretraining run, each read once.

    Attributes:
      fingerprints: what identifies them, for `data.json`; empty without teachers.
    """

    def __init__(self, config: PretrainConfig, tokenizer: Tokenizer):
        """Reads them.

        Args:
          config: configuration of the run, or of a stage.
          tokenizer: tokenizer of its data.

        Raises:
          UserError: one cannot be read, or does not fit the objective, the model or the data.
        """
        self._read: dict[str, Portable] = {}
        self._placed: dict[tuple[str, tuple[str, ...], Mesh, bool], Params] = {}
        self.fingerprints: dict[str, str] = {}
        fingerprints: dict[str, str] = {}
        for stage in config.stages():
            objective = stage.config.objective
            if not (path := objective.teacher):
                continue
            with stage.errors():
                longest = stage.config.data.max_seq_length
                if path not in self._read:
                    name = "config.objective.teacher"
                    self._read[path] = read_teacher(name, path, tokenizer, longest)
                    fingerprints[path] = weights_fingerprint(self._read[path].params)
                found = self._read[path]
                pooling = found.vectors.pooling if found.vectors else "mean"
                teacher = Teacher(found.architecture, parts_of(found.params), pooling)
                objective.check_teacher("config", stage.config.model, teacher)
            prefix = f"{stage.name}." if stage.first_step > config.first_step else ""
            self.fingerprints[f"{prefix}{FINGERPRINT}"] = fingerprints[path]

    def architecture(self, config: PretrainConfig) -> Architecture | None:
        """That of the teacher of a stage; None if it has none."""
        path = config.objective.teacher
        return self._read[path].architecture if path else None

    def beside(self, config: PretrainConfig, mesh: Mesh, axes: Axes) -> Params:
        """The parameters that the step of a stage reads and does not train, on its mesh.

        Args:
          config: configuration of the stage.
          mesh: devices of the stage.
          axes: names of the axes of its model's parameters.

        Raises:
          UserError: the devices cannot share them.
        """
        objective, zero1 = config.objective, config.mesh.zero1
        if not objective.teacher:
            return {}
        teacher, wanted = self._read[objective.teacher], objective.teacher_parts
        key = objective.teacher, wanted, mesh, zero1
        if key not in self._placed:
            check_divides(mesh, teacher.architecture, "the teacher's ")
            params = {TEACHER: with_parts_only(teacher.params, wanted)}
            self._placed[key] = rules.put_params(params, mesh, axes, zero1=zero1)
        return self._placed[key]
