"""Metrics of written texts, by the libraries whose numbers papers give."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from bert_jax.errors import UserError
from bert_jax.tasks.classification.example import Example


def text_metrics(
    names: Sequence[str], texts: Sequence[str], targets: Sequence[str], *, lowercase: bool
) -> dict[str, float]:
    """Scores of texts beside their targets, from 0 to 100.

    BLEU and chrF are sacrebleu's with its default settings, of the whole corpus; ROUGE is the mean
    F1 of rouge-score, with stemming. References: Post 2018, https://arxiv.org/abs/1804.08771;
    Popović 2015, https://aclanthology.org/W15-3049; Lin 2004, https://aclanthology.org/W04-1013.

    Args:
      names: which of `SCORES`.
      texts: texts to score.
      targets: target of each.
      lowercase: whether BLEU and chrF compare in lower case; ROUGE always does.

    Raises:
      UserError: a library is not installed.
    """
    return {name: SCORES[name](name, texts, targets, lowercase) for name in names}


def metrics_of_known(
    names: Sequence[str], texts: Sequence[str], examples: Sequence[Example], *, lowercase: bool
) -> dict[str, float]:
    """`text_metrics` of a text for each example, over those whose label, its target, is known."""
    known = [index for index, example in enumerate(examples) if example.label is not None]
    targets = [str(examples[index].label) for index in known]
    return text_metrics(names, [texts[index] for index in known], targets, lowercase=lowercase)


def _bleu(name: str, texts: Sequence[str], targets: Sequence[str], lowercase: bool) -> float:
    scorer = _sacrebleu(name).BLEU(lowercase=lowercase)
    return float(scorer.corpus_score(texts, [targets]).score)


def _chrf(name: str, texts: Sequence[str], targets: Sequence[str], lowercase: bool) -> float:
    scorer = _sacrebleu(name).CHRF(lowercase=lowercase)
    return float(scorer.corpus_score(texts, [targets]).score)


def _rouge(name: str, texts: Sequence[str], targets: Sequence[str], lowercase: bool) -> float:
    del lowercase  # it always is
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise _missing("rouge-score", name) from error
    scorer = RougeScorer([name], use_stemmer=True)
    scores = [scorer.score(target, text)[name] for text, target in zip(texts, targets, strict=True)]
    return 100 * statistics.fmean(score.fmeasure for score in scores)


def _sacrebleu(metric: str) -> Any:
    try:
        from sacrebleu import metrics
    except ImportError as error:
        raise _missing("sacrebleu", metric) from error
    return metrics


def _missing(library: str, metric: str) -> UserError:
    return UserError(
        f"metric_names: {metric} needs {library}: pip install {library}, or leave it out"
    )


SCORES: dict[str, Callable[[str, Sequence[str], Sequence[str], bool], float]] = {
    "bleu": _bleu,
    "chrf": _chrf,
    "rouge1": _rouge,
    "rouge2": _rouge,
    "rougeL": _rouge,
}
