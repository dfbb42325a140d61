"""A model on the devices of this process: texts become rows, and programs run on them."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from bert_jax.data.packing import Batch, Example
from bert_jax.errors import UserError
from bert_jax.inference import programs
from bert_jax.inference.devices import Devices
from bert_jax.inference.functions import Function, live_functions
from bert_jax.inference.texts import Text, excerpt
from bert_jax.interop.portable import Portable
from bert_jax.model.heads import CROSS_ATTENTION, WRITING, Head
from bert_jax.tasks.features import ONE_TYPE, check_token_types, lacks_types, pair_ids
from bert_jax.tasks.protocol import AnyTask

T = TypeVar("T")
# The task whose fine-tuning trains a part.
FINE_TUNED = {
    "sequence_classifier": "classification",
    "token_classifier": "tagging",
    "answer_span": "answering",
    "multiple_choice": "multiple_choice",
    CROSS_ATTENTION: "generation",
}

_log = logging.getLogger(__name__)


class Outputs(NamedTuple):
    """What the model says of a task's examples: windows, the logits of each, predictions."""

    features: Any
    logits: list[np.ndarray]
    predictions: Sequence[Any]

    def windows_of_examples(self) -> list[list[int]]:
        """The windows of each example."""
        starts = np.flatnonzero(np.diff(self.features.example)) + 1
        return [each.tolist() for each in np.split(np.arange(len(self.logits)), starts)]


class Runner:
    """What every use of a trained model (`bert_jax.inference.uses`) needs of it.

    Attributes:
      model: the model, without its parameters.
      architecture, tokenizer: those of the model.
      limit: its positions, the most tokens of a text.
      functions: see `bert_jax.inference.functions.part_functions`.
      params: their first argument, on the devices.
      devices: the devices.
      is_export: whether the functions are those of an export.
    """

    def __init__(self, model: Portable, functions: Mapping[str, Function] | None = None):
        """Puts the parameters onto the devices.

        Args:
          model: model to use.
          functions: the model's functions, if they are already compiled; default: built from its
            architecture and numerics.
        """
        self.architecture, self.tokenizer = model.architecture, model.tokenizer
        self.limit = model.architecture.max_position_embeddings
        self.is_export = functions is not None
        self.functions = dict(live_functions(model) if functions is None else functions)
        self.devices = Devices(model.tokenizer.pad_id, self.limit)
        self.params = self.devices.put_params(model.params)
        self.model = model._replace(params={}, generator=None)
        self._compiled: dict[tuple[Callable[..., Any], bool], Callable[..., Any]] = {}

    def program(
        self, program: Callable[..., Any], *static: str, exact: bool = False
    ) -> Callable[..., Any]:
        """One of `bert_jax.inference.programs`, compiled, from its second argument on.

        Args:
          program: takes the functions, the parameters and rows.
          *static: names of its arguments that are no arrays.
          exact: whether it computes in fp32, whatever the model's compute_dtype.

        Raises:
          UserError: `exact`, but the model is an export in bf16.
        """
        if (program, exact) not in self._compiled:
            functions = self._exact_functions if exact else self.functions
            function = functools.partial(program, functions)
            self._compiled[program, exact] = jax.jit(function, static_argnames=static)
        return self._compiled[program, exact]

    @functools.cached_property
    def _exact_functions(self) -> Mapping[str, Function]:
        numerics = self.model.numerics
        if numerics.compute_dtype == "float32":
            return self.functions
        if self.is_export:
            raise UserError(
                f"the export computes in {numerics.compute_dtype}, which is too coarse for "
                "scores: use the model that it was made from"
            )
        exact = dataclasses.replace(numerics, compute_dtype="float32")
        return live_functions(self.model._replace(params=self.params, numerics=exact))

    def require(self, *parts: str) -> None:
        """Raises UserError if the model lacks one of `bert_jax.model.heads.PARTS`."""
        there = (*self.functions, *(part for part in WRITING if part in self.params))
        if missing := [part for part in parts if part not in there]:
            names = " and no ".join(missing)
            if tasks := [FINE_TUNED[part] for part in missing if part in FINE_TUNED]:
                raise UserError(
                    f"the model has no {names}: fine-tune it with `bert-jax finetune "
                    f"--config=finetune:{tasks[0]} --config.init_from=MODEL`"
                )
            raise UserError(
                f"the model has no {names}: use one that has, or add it "
                f"with `bert-jax convert --initialise={','.join(missing)}` and train it"
            )

    def tokenize(self, text: Text, limit: int) -> tuple[Example, int]:
        """A text or pair, cut to `limit` tokens, and how many were cut off."""
        if not isinstance(text, str) and lacks_types(
            self.architecture.type_vocab_size, self.tokenizer
        ):
            raise UserError(ONE_TYPE)
        a_ids, *others = self.tokenizer.encode([text] if isinstance(text, str) else text)
        ids, b_start, lost = pair_ids(self.tokenizer, a_ids, others[0] if others else None, limit)
        return Example(ids, b_start), lost

    def tokenized(self, texts: Iterable[Text], limit: int) -> Iterator[Example]:
        """Texts and pairs as tokens; a warning counts those that are cut to `limit`."""
        return self.reported(texts, limit, lambda text: self.tokenize(text, limit))

    def reported(
        self, texts: Iterable[Any], limit: int, tokenize: Callable[[Any], tuple[T, int]]
    ) -> Iterator[T]:
        """Texts as tokens; a warning counts those that `tokenize` cuts to `limit` tokens."""
        cut, first, marked = 0, "", ""
        tokenizer = self.tokenizer
        ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id)
        special = [tokenizer.vocab[id_] for id_ in (*ids, tokenizer.mask_id)]
        for number, text in enumerate(texts, 1):
            whole = text if isinstance(text, str) else " ".join(text)
            if not marked and any(token in whole for token in special):
                marked = f"text number {number}, {excerpt(text)}"
            tokens, lost = tokenize(text)
            if lost:
                cut += 1
                first = first or f"number {number}, {excerpt(text)}"
            yield tokens
        if marked:
            _log.warning(f"{', '.join(special)} are plain text here, as in {marked}")
        if cut:
            _log.warning(f"{cut} of {number} texts cut to {limit} tokens; the first is {first}")

    def task_limit(self, task: AnyTask) -> int:
        """Tokens of a task's sequences: no more than the model's positions."""
        return min(task.max_seq_length, self.limit)

    def logits(self, head: Head, examples: Iterable[Example]) -> Iterator[np.ndarray]:
        """Yields the logits of a head that reads texts or their tokens, one text after the other.

        Args:
          head: one of the model's heads.
          examples: texts, none longer than the model's positions.

        Returns:
          For each text fp32 [outputs] of a pooled head, else [tokens, outputs].

        Raises:
          UserError: the model has no such head.
        """
        self.require(*head.parts(self.architecture))
        program = self.program(programs.logits, "head", "architecture")

        def start(batch: Batch) -> jax.Array:
            rows = self.devices.put(batch)
            return program(self.params, rows, head=head, architecture=self.architecture)

        def finish(batch: Batch, found: np.ndarray) -> list[np.ndarray]:
            return head.by_example(found, batch)

        return self.devices.run(examples, start, finish)

    def outputs(self, task: AnyTask, examples: Sequence[Any]) -> Outputs:
        """The logits and predictions of examples of a task."""
        features = task.features(examples, self.tokenizer, self.task_limit(task))
        check_token_types(features, self.architecture.type_vocab_size, self.tokenizer)
        windows = map(Example, features.input_ids, features.b_start)
        logits = list(self.logits(task.head, windows))
        return Outputs(features, logits, task.predictions(logits, features, examples))
