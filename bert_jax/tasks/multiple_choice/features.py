"""Token sequences of the choices of questions."""

from collections.abc import Sequence

import numpy as np

from bert_jax.data.tokenizer import Tokenizer
from bert_jax.tasks.features import Features, pair_ids
from bert_jax.tasks.multiple_choice.example import Question


def make_features(
    examples: Sequence[Question], tokenizer: Tokenizer, max_seq_length: int
) -> Features:
    """A token sequence for each choice: question and choice, or context, question and choice.

    The choice is the second text of a pair; with a context, question and choice together are, with
    a space between them. `counts` has `examples`, `unlabelled` ones, `choices`, `truncated` ones
    and the `tokens_cut` from those.

    Args:
      examples: questions.
      tokenizer: vocabulary of the model.
      max_seq_length: longer sequences are cut.
    """
    first = tokenizer.encode([e.question if e.context is None else e.context for e in examples])
    seconds = [
        choice if example.context is None else f"{example.question} {choice}"
        for example in examples
        for choice in example.choices
    ]
    group = np.repeat(np.arange(len(examples)), [len(e.choices) for e in examples])
    sequences = [
        pair_ids(tokenizer, first[number], second, max_seq_length)
        for number, second in zip(group.tolist(), tokenizer.encode(seconds), strict=True)
    ]
    is_right = [
        -1 if example.answer is None else number == example.answer
        for example in examples
        for number in range(len(example.choices))
    ]
    cut = [tokens_cut for _, _, tokens_cut in sequences]
    return Features(
        input_ids=[ids for ids, _, _ in sequences],
        b_start=np.array([b_start for _, b_start, _ in sequences], np.int32),
        labels=np.stack([group, is_right], axis=1).astype(np.int32),
        group=group.astype(np.int32),
        counts={
            "examples": len(examples),
            "unlabelled": sum(example.answer is None for example in examples),
            "choices": len(sequences),
            "truncated": sum(n > 0 for n in cut),
            "tokens_cut": sum(cut),
        },
    )
