"""The card of a published model: Markdown with the header that the Hugging Face Hub reads."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bert_jax.json_values import dump_json
from bert_jax.model.heads import CROSS_ATTENTION
from bert_jax.report.curves import BASELINES, PRETRAINING
from bert_jax.report.page import Run, last_scores, training_seconds, training_tokens
from bert_jax.report.units import compact, duration, shown

# What the parts of a model are good for: a task of transformers, and what it says of the model.
USES = {
    "sequence_classifier": ("text-classification", "It classifies texts."),
    "token_classifier": ("token-classification", "It tags the words of texts."),
    "answer_span": ("question-answering", "It answers questions from a text."),
    "masked_lm": (
        "fill-mask",
        "It fills masks, and is a starting point for fine-tuning. It does not generate text.",
    ),
}

# How transformers, which has no pipeline for it, writes a text; {} is the name of the model.
WRITES = """\
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{0}")
model = AutoModelForSeq2SeqLM.from_pretrained("{0}")
ids = model.generate(tokenizer("A sentence.", return_tensors="pt").input_ids, num_beams=4)
tokenizer.decode(ids[0], skip_special_tokens=True)"""


@dataclass(frozen=True)
class Card:
    """What a card says that is not in the records of the run.

    Attributes:
      name: name of the model.
      license: identifier of its licence, as the Hub spells it; empty if it is not stated.
      language: codes of its languages.
      limits: what it is not meant for; empty if nobody says.
      architecture: sentence about the shape of the model.
      parts: its parts besides the encoder.
      mask: how its tokenizer spells a mask.
      sources: names and checksums of what its store was made from.
      revisions: steps of the checkpoints that are published beside it.
    """

    name: str
    license: str
    language: Sequence[str]
    limits: str
    architecture: str
    parts: Sequence[str]
    mask: str
    sources: Sequence[Mapping[str, Any]]
    revisions: Sequence[int]


def card(about: Card, run: Run) -> str:
    """The text of a model card; `curves.png` is beside it."""
    return "\n".join([*_header(about), *_body(about, run)]) + "\n"


def _header(about: Card) -> Iterator[str]:
    yield "---"
    if about.license:
        yield f"license: {about.license}"
    if about.language:
        yield f"language: {dump_json(list(about.language))}"
    yield "library_name: transformers"
    if use := _use(about):
        yield f"pipeline_tag: {use[0]}"
    yield "tags: [bert_jax]"
    yield "---"


def _body(about: Card, run: Run) -> Iterator[str]:
    yield f"\n# {about.name}\n"
    use, writes = _use(about), CROSS_ATTENTION in about.parts
    said = "A decoder writes a text for a text." if writes else use[1] if use else ""
    yield f"{about.architecture} {said}".strip()
    yield "\n## Use\n"
    yield "```python"
    if writes:
        yield WRITES.format(about.name)
    elif use:
        text = f"A sentence with a {about.mask}." if use[0] == "fill-mask" else "A sentence."
        yield "from transformers import pipeline\n"
        yield f'pipeline("{use[0]}", model="{about.name}")("{text}")'
    else:
        yield "from transformers import AutoModel, AutoTokenizer\n"
        yield f'tokenizer = AutoTokenizer.from_pretrained("{about.name}")'
        yield f'model = AutoModel.from_pretrained("{about.name}")'
    yield "```"
    yield "\n## Training\n"
    devices = run.starts[-1]["devices"] if run.starts else ""
    tokens = training_tokens(run)
    yield f"- steps: {run.lines[-1]['step']:,}" + (f", {compact(tokens)} tokens" if tokens else "")
    yield f"- time: {duration(training_seconds(run))}" + (f" on {devices}" if devices else "")
    for line in run.data:
        yield f"- data: {line}"
    for source in about.sources:
        yield f"- source: {source['name']} (sha256 {source['sha256']})"
    yield "\nFields of the recipe that are not the default of bert_jax:\n"
    yield from _table(["field", "value"], [[name, run.fields[name]] for name in run.changed])
    yield "\n## Evaluation\n"
    rows = list(_scores(run))
    if rows:
        yield "On held-out data, beside the score of a guess that ignores the context:\n"
        yield from _table(["", "score", "guess"], rows)
    if suites := last_scores(run, "suites"):
        yield "\nWithout fine-tuning:\n"
        yield from _table(["", "score"], [[n, shown(n, x)] for n, x in suites.items()])
    for split in ("dev", "test"):
        if metrics := run.results.get(split, {}).get("metrics"):
            yield f"\n{split}:\n"
            yield from _table(["", "score"], [[n, shown(n, x)] for n, x in metrics.items()])
    yield "\n![Curves](curves.png)"
    if about.revisions:
        yield "\n## Revisions\n"
        yield "Checkpoints of the same run; `revision=` of `from_pretrained` takes the name.\n"
        scores = {line["step"]: line for line in run.lines if line["split"] == "heldout"}
        rows = [
            [f"step-{step}", *(_at(scores.get(step, {}), name) for name in _losses(run))]
            for step in about.revisions
        ]
        yield from _table(["revision", *(PRETRAINING[name] for name in _losses(run))], rows)
    yield "\n## Intended use and limits\n"
    yield about.limits or (
        "The authors state none. The model has seen the data above and nothing else: other "
        "languages, times and domains were not tested, and it repeats the views of its texts."
    )


def _use(about: Card) -> tuple[str, str] | None:
    if CROSS_ATTENTION in about.parts:
        return None
    return next((use for part, use in USES.items() if part in about.parts), None)


def _scores(run: Run) -> Iterator[Sequence[str]]:
    baseline = last_scores(run, "baseline")
    for name, value in last_scores(run, "heldout").items():
        guess = shown(name, baseline[name]) if name in baseline else ""
        if guess and name in BASELINES:
            guess += f" ({BASELINES[name]})"
        yield [PRETRAINING.get(name, name).removesuffix(" (%)"), shown(name, value), guess]


def _losses(run: Run) -> list[str]:
    heldout = last_scores(run, "heldout")
    return [name for name in PRETRAINING if name.endswith("loss") and name in heldout]


def _at(scores: Mapping[str, Any], name: str) -> str:
    return shown(name, scores[name]) if name in scores else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for row in rows:
        cells = (cell.replace("|", "\\|") for cell in row)
        yield f"| {' | '.join(cells)} |"
