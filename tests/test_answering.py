"""Extractive question answering: files, windows, decoding, scores of the official scripts."""

import gzip
import itertools
import json
import random
import re

import numpy as np
import pytest

from bert_jax.data.documents import find_sources, read_documents
from bert_jax.data.wordpiece import SPECIAL_TOKENS, WordPiece, load_wordpiece
from bert_jax.errors import UserError
from bert_jax.fields import build
from bert_jax.tasks import AnsweringTask, Task
from bert_jax.tasks.answering.decoding import Answer, Prediction
from bert_jax.tasks.answering.example import Question
from bert_jax.tasks.windows import make_windows, widest_context

pytestmark = pytest.mark.core

LETTERS = WordPiece((*SPECIAL_TOKENS, *"abcdefghijklmnopqrstuvwxyz?"), lowercase=True)
SQUAD2 = AnsweringTask(unanswerable=True)
CONTEXT = "Lincoln spoke in 1863. In 1865 he spoke again."


def squad(*questions, context=CONTEXT):
    """A file of SQuAD's format; a question is (id, answers) and what else its object has."""
    qas = [
        {"id": id_, "question": "When?", "answers": answers, **more}
        for id_, answers, *rest in questions
        for more in [rest[0] if rest else {}]
    ]
    return {
        "version": "1.1",
        "data": [{"title": "T", "paragraphs": [{"context": context, "qas": qas}]}],
    }


def answer(text, start):
    return {"text": text, "answer_start": start}


@pytest.fixture
def write(tmp_path):
    def write(content, name="dev.json"):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        (tmp_path / name).write_bytes(content)
        return str(tmp_path / name)

    return write


def gold_logits(features):
    """Logits of a model that knows the labels."""
    logits = [np.zeros((len(ids), 2), np.float32) for ids in features.input_ids]
    for window, (first, last) in zip(logits, features.labels):
        window[first, 0] = window[last, 1] = 9
    return logits


def given(*texts):
    """Questions with the gold answers `texts` each, wherever they may be."""
    return [Question(str(i), "?", "", tuple((t, 0) for t in gold)) for i, gold in enumerate(texts)]


def told(text, null_odds=0.0, null_threshold=0.0):
    best, null = Answer(text, 0, 1, 0.0, 0.0, 1.0), Answer("", None, None, 0.0, 0.0, 1.0)
    return Prediction(null if null_odds > null_threshold else best, best, (best,), null_odds)


def test_reads_both_versions(write):
    path = write(
        squad(("a", [answer("1863", 17), answer("in 1863", 14)]), ("b", [answer("he", 31)]))
    )
    assert AnsweringTask().read(path) == [
        Question("a", "When?", CONTEXT, (("1863", 17), ("in 1863", 14))),
        Question("b", "When?", CONTEXT, (("he", 31),)),
    ]
    possible, impossible = {"is_impossible": False}, {"is_impossible": True}
    path = write(squad(("a", [answer("1863", 17)], possible), ("b", [], impossible)))
    assert [question.answers for question in SQUAD2.read(path)] == [(("1863", 17),), ()]
    path = write(gzip.compress(json.dumps(squad(("a", None)), indent=2).encode()), "dev.json.gz")
    assert AnsweringTask().read(path, labelled=False) == [Question("a", "When?", CONTEXT)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"data": [', "dev.json: not JSON .*cut short or damaged"),
        ({"data": 0.5}, 'dev.json: not a JSON object with "data", a list'),
        ({"data": {"a": []}}, 'not a JSON object with "data", a list'),
        (b"[" * 100_000, "brackets nested too deeply"),
        ({"data": [3]}, "article 1: not in SQuAD's format: no list 'paragraphs'"),
        ({"data": [{"paragraphs": 3}]}, "article 1: not in SQuAD's format: no list 'paragraphs'"),
        ({"data": [{"paragraphs": [{"qas": {}}]}]}, "paragraph 1: .* no list 'qas'"),
        (squad((True, [answer("he", 31)])), "id is True; it must be a text"),
        (squad(("a", [answer("he", True)])), "answer_start is True"),
        (squad(("a", {"text": ["he"], "answer_start": []})), "equally long lists"),
        (squad(("a", {"text": "he", "answer_start": 31})), "equally long lists"),
        ([{"id": 1, "question": "?"}], "item 1: context is None"),
        (squad(("a", [], {"is_impossible": "False"})), "is_impossible is 'False'; it must be true"),
        (b'{"paragraphs": []}', 'not a JSON object with "data"'),
        (b'{"data": [{"t": "\xe9"}]}', "dev.json, line 1: byte 18 of the line is not UTF-8"),
        ({"data": []}, "dev.json: no questions found"),
        ({"data": [{"title": "T"}]}, "dev.json, article 1: .* no list 'paragraphs'"),
        (
            {"data": [{"paragraphs": [{"qas": [3]}]}]},
            "article 1, paragraph 1, question 1: not in SQuAD's format",
        ),
        ({"data": [{"paragraphs": [{"qas": [{"id": "a", "question": "?"}]}]}]}, "context is None"),
        (squad(("a", [answer("he", 31)], {"question": " "})), r"question 1 \(a\): question is ' '"),
        (squad(("a", [answer("he", 31)]), ("a", [answer("he", 31)])), "the id occurs twice"),
        (squad(("a", [])), r"question 1 \(a\): there are no answers; set unanswerable=True"),
        (squad(("a", "he")), "answers must be a list of objects with text and answer_start"),
        (squad(("a", [answer("", 0)])), "text is ''"),
        (squad(("a", [answer("he", "31")])), "answer_start is '31'"),
        (squad(("a", [], {"is_impossible": True})), "set unanswerable=True"),
        (
            squad(("a", [answer("1863", 17)]), ("b", [answer("1865", 25)])),
            r"dev.json, article 1, paragraph 1, question 2 \(b\): the answer '1865' is not at "
            r"character 25 of the context, where ' 186' is; the context has it 1 times; repair",
        ),
        (squad(("a", [answer("1864", 17)])), "the context has it 0 times$"),
    ],
)
def test_bad_files(write, content, message):
    with pytest.raises(UserError, match=message):
        AnsweringTask().read(write(content))


def test_questions_as_rows(write, tmp_path):
    """Files of the library `datasets`, and those that have no `is_impossible`."""
    rows = [
        {"id": 1, "answers": {"text": ["1863", "he"], "answer_start": [17, 31]}},
        {"id": "b", "answers": {"text": [], "answer_start": []}},
    ]
    rows = [{"context": CONTEXT, "question": "When?", **row} for row in rows]
    right = [
        Question("1", "When?", CONTEXT, (("1863", 17), ("he", 31))),
        Question("b", "When?", CONTEXT),
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    nested = squad((1, [answer("1863", 17), answer("he", 31)]), ("b", None))
    for path in (
        write(lines, "dev.jsonl"),
        write(lines),
        write(rows),
        write({"version": "v2.0", "data": rows}),
        write(json.dumps(rows, indent=1).encode()),
        write(nested),
        write(json.loads(json.dumps(nested).replace("17", "17.0"))),
    ):
        assert SQUAD2.read(path) == right
    assert SQUAD2.read(write(json.dumps(rows[0], indent=1).encode())) == right[:1]
    write(rows[:1], "part-1.json")
    write(rows[1:], "part-2.json")
    assert SQUAD2.read(str(tmp_path / "part-*.json")) == right
    with pytest.raises(UserError, match=r"dev.jsonl, line 2: there are no answers; set unans"):
        AnsweringTask().read(write(lines, "dev.jsonl"))
    possible = squad(("a", [], {"is_impossible": False}))
    with pytest.raises(UserError, match="the question is possible and has 0 answers"):
        SQUAD2.read(write(possible))
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.Table.from_pylist([{**row, "id": str(row["id"])} for row in rows])
    parquet.write_table(table, tmp_path / "dev.parquet")
    assert SQUAD2.read(str(tmp_path / "dev.parquet")) == right


def test_impossible_question_with_an_answer(write):
    path = write(squad(("a", [answer("he", 31)], {"is_impossible": True})))
    with pytest.raises(UserError, match="the question is impossible and has 1 answers"):
        SQUAD2.read(path)
    for name in ("doc_stride", "max_query_length", "max_answer_length", "n_best_size"):
        with pytest.raises(UserError, match=f"config.task.{name} must be positive, not 0"):
            build(Task, {"name": "answering", name: 0}, "config.task")
    with pytest.raises(UserError, match=r"no\.json: no such file"):
        SQUAD2.read(path.replace("dev", "no"))


def test_repair_takes_an_answer_that_is_there_once(write):
    task = AnsweringTask(repair=True)
    path = write(squad(("a", [answer("1865", 25), answer("1865", 26)]), ("b", [answer("he", 31)])))
    questions = task.read(path)
    assert [question.answers for question in questions] == [(("1865", 26),) * 2, (("he", 31),)]
    assert task.features(questions, LETTERS, 99).counts["answers_repaired"] == 1
    with pytest.raises(UserError, match=r"'spoke' is not at character 9 .* has it 2 times$"):
        task.read(write(squad(("a", [answer("spoke", 9)]))))


def test_tfds(tmp_path):
    import tensorflow_datasets as tfds

    class TinySquad(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            answers = {"text": tfds.features.Text(), "answer_start": np.int32}
            features = {
                **{name: tfds.features.Text() for name in ("title", "context", "question")},
                "id": np.str_,
                "answers": tfds.features.Sequence(answers),
                "is_impossible": np.bool_,
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"validation": self._generate_examples()}

        def _generate_examples(self):
            for id_, text, start in (("a", ["São", "a"], [4, 0]), ("b", [], [])):
                answers = {"text": text, "answer_start": start}
                yield (
                    id_,
                    {
                        "id": id_,
                        "title": "T",
                        "context": "a o São",
                        "question": "Que?",
                        "answers": answers,
                        "is_impossible": not text,
                    },
                )

    TinySquad(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    task = AnsweringTask(unanswerable=True, data_dir=str(tmp_path))
    assert sorted(task.read("tfds:tiny_squad:validation"), key=lambda question: question.id) == [
        Question("a", "Que?", "a o São", (("São", 4), ("a", 0))),
        Question("b", "Que?", "a o São"),
    ]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Éa\u0301 x\u0300\u0301y", ["É", "a\u0301", "x\u0300\u0301", "y"]),
        ("a中b 国", ["a", "中", "b", "国"]),
        ("a ❤️ 👨‍👩‍👧!", ["a", "❤️", "👨‍👩‍👧", "!"]),
        ("x\u200by\x00 \u00adz", ["x", "y", "z"]),
        ("İ…ﬁ", ["İ", "…", "ﬁ"]),
        (" \u0301a", ["a"]),
    ],
)
def test_tokens_know_their_characters(text, pieces):
    vocab = [*"aexyzi中国!…ﬁ", *(f"##{c}" for c in "aexyzi")]
    wordpiece = WordPiece((*SPECIAL_TOKENS, *vocab, "b"), lowercase=True)
    ids, offsets = wordpiece.encode_with_offsets(text)
    assert [text[start:end] for start, end in offsets] == pieces
    assert [ids] == wordpiece.encode([text])


def test_windows_cover_and_the_widest_is_the_one_with_most_context():
    for length, size, stride in itertools.product(range(1, 40), (1, 2, 7, 10), (1, 3, 7, 99)):
        windows = make_windows(length, size, stride)
        assert set().union(*(range(*window) for window in windows)) == set(range(length))
        assert all(end - start == size for start, end in windows[:-1])
        assert [window for window in windows if window[1] == length] == windows[-1:]
        for position, chosen in enumerate(widest_context(windows)):
            # As in BERT's run_squad.py.
            scores = [
                min(position - start, end - 1 - position) + 0.01 * (end - start)
                if start <= position < end
                else -1
                for start, end in windows
            ]
            assert chosen == scores.index(max(scores))
    assert make_windows(0, 5, 3) == [(0, 0)]
    assert not len(widest_context([(0, 0)]))


def test_features_token_by_token():
    def tokens(text):
        return [LETTERS.vocab.index(token) for token in text.split()]

    questions = [
        Question("1", "q r s ?", "a b c d e f g", (("e f", 8), ("a", 0))),
        Question("2", "q", "a b", (("B\x00", 2),)),
        Question("3", "q", "a b"),
        Question("4", "q", "\x00"),
    ]
    task = AnsweringTask(max_query_length=3, doc_stride=2, unanswerable=True)
    features = task.features(questions, LETTERS, 10)
    assert [ids.tolist() for ids in features.input_ids] == [
        tokens("[CLS] q r s [SEP] a b c d [SEP]"),
        tokens("[CLS] q r s [SEP] c d e f [SEP]"),
        tokens("[CLS] q r s [SEP] e f g [SEP]"),
        tokens("[CLS] q [SEP] a b [SEP]"),
        tokens("[CLS] q [SEP] a b [SEP]"),
        tokens("[CLS] q [SEP] [SEP]"),
    ]
    assert features.b_start.tolist() == [5, 5, 5, 3, 3, 3]
    assert features.labels.tolist() == [[0, 0], [7, 8], [5, 6], [4, 4], [0, 0], [0, 0]]
    assert features.labels.dtype == features.b_start.dtype == np.int32
    assert features.example.tolist() == [0, 0, 0, 1, 2, 3]
    assert [offsets[:, 0].tolist() for offsets in features.offsets[:2]] == [
        [0, 2, 4, 6],
        [4, 6, 8, 10],
    ]
    assert [widest.tolist() for widest in features.is_widest[:3]] == [
        [True, True, True, False],
        [False, True, True, False],
        [False, True, True],
    ]
    assert features.counts == {
        "examples": 4,
        "windowed": 1,
        "questions_cut": 1,
        "answers_repaired": 0,
        "answers_without_token": 0,
    }
    with pytest.raises(UserError, match="max_seq_length: 6 leaves no room for context"):
        task.features(questions, LETTERS, 6)


@pytest.mark.parametrize("max_seq_length", [48, 384])
def test_gold_spans_of_real_text_come_back(sotu_store, max_seq_length):
    wordpiece = load_wordpiece(sotu_store)
    speeches = itertools.islice(read_documents(find_sources(["corpus:sotu"])), 0, None, 25)
    draw, questions = random.Random(0), []
    for text in speeches:
        words = [match.span() for match in itertools.islice(re.finditer(r"\w{4,}", text), 150)]
        for _ in range(10):
            first = draw.randrange(len(words) - 5)
            start, end = words[first][0], words[first + draw.randrange(2)][1]
            query = " ".join(text.split()[first : first + 9])
            gold = ((text[start:end], start),)
            questions.append(Question(str(len(questions)), query, text[: words[-1][1]], gold))
    task = AnsweringTask(max_query_length=12, doc_stride=8)
    features = task.features(questions, wordpiece, max_seq_length)
    assert max(map(len, features.input_ids)) == max_seq_length
    predictions = task.predictions(gold_logits(features), features, questions)
    assert [p.answer[:3] for p in predictions] == [
        (text, start, start + len(text)) for ((text, start),) in (q.answers for q in questions)
    ]
    assert task.metrics(predictions, questions) == {"f1": 1.0, "exact_match": 1.0}


def test_best_span_is_the_best_of_all_that_are_allowed():
    draw = np.random.default_rng(0)
    context = " ".join("abcdefghijklmnopqrstuvwx")
    questions = [Question(str(i), "y z ?", context) for i in range(30)]
    task = AnsweringTask(
        unanswerable=True, doc_stride=4, max_query_length=3, max_answer_length=3, n_best_size=5
    )
    features = task.features(questions, LETTERS, 16)
    logits = [draw.normal(size=(len(ids), 2)).astype(np.float32) for ids in features.input_ids]
    for window, index in zip(logits, features.example):
        window[0] += index % 3  # so that "no answer" wins sometimes
    predictions = task.predictions(logits, features, questions)
    windows = make_windows(24, 10, 4)
    widest = widest_context(windows)
    for index, prediction in enumerate(predictions):
        spans, nulls = {}, []
        for number, (start, end) in enumerate(windows):
            window = logits[index * len(windows) + number].astype(float)
            nulls.append(window[0].sum())
            for first in np.flatnonzero(widest == number):
                for last in range(first, min(first + 3, end)):
                    score = window[5 + first - start, 0] + window[5 + last - start, 1]
                    spans[context[2 * first : 2 * last + 1]] = score
        best = sorted(spans, key=lambda text: -spans[text])[:5]
        assert [a.text for a in prediction.n_best if a.text] == best
        assert prediction.best.score == pytest.approx(spans[best[0]])
        assert context[prediction.best.start : prediction.best.end] == best[0]
        assert prediction.null_odds == pytest.approx(min(nulls) - spans[best[0]])
        assert prediction.answer.text == ("" if prediction.null_odds > 0 else best[0])
        assert sum(a.probability for a in prediction.n_best) == pytest.approx(1)
        odds = [a.probability / np.exp(a.score) for a in prediction.n_best]
        np.testing.assert_allclose(odds, odds[0])
    assert 0 < sum(not p.answer.text for p in predictions) < 30
    never = AnsweringTask(doc_stride=4, max_query_length=3, max_answer_length=3)
    assert all(p.answer.text for p in never.predictions(logits, features, questions))


def test_one_text_is_one_candidate_and_no_token_is_no_answer():
    questions = [Question("1", "q", "a b a"), Question("2", "q", "\x00")]
    task = AnsweringTask()
    features = task.features(questions, LETTERS, 99)
    repeated, empty = task.predictions([np.zeros((7, 2)), np.zeros((4, 2))], features, questions)
    assert sorted(a.text for a in repeated.n_best) == ["a", "a b", "a b a", "b", "b a"]
    assert empty.answer == Answer("", None, None, 0.0, 0.0, 1.0)
    assert (repeated.null_odds, empty.null_odds) == (0, 0)


# What evaluate-v1.1.py and evaluate-v2.0.py give: exact match and F1 of either.
@pytest.mark.parametrize(
    ("golds", "text", "version1", "version2"),
    [
        (["the cat"], "Cat!", (1, 1), (1, 1)),
        (["Theatre"], "atre", (0, 0), (0, 0)),  # articles are words
        (["another"], "an other", (0, 0), (0, 0)),
        (["a b a b"], "a b", (0, 2 / 3), (0, 2 / 3)),  # "a" is an article
        (["x x y"], "x y y", (0, 2 / 3), (0, 2 / 3)),  # repeated words count as often as in both
        (["one two", "two three"], "two three four", (0, 0.8), (0, 0.8)),
        (["The"], "", (1, 0), (1, 1)),  # nothing is left of an article
        (["a"], "the", (1, 0), (1, 1)),
        (["the the"], "the", (1, 0), (1, 1)),
        (["!"], "?", (1, 0), (1, 1)),
        (["!", "yes"], "", (1, 0), (0, 0)),
        (["yes"], "", (0, 0), (0, 0)),
        (["U.S."], "us", (1, 1), (1, 1)),
        (["“U.S.”"], "US", (0, 0), (0, 0)),  # ASCII punctuation alone is dropped
        (["co-op"], "coop", (1, 1), (1, 1)),
        (["co–op"], "coop", (0, 0), (0, 0)),
        (["don’t"], "dont", (0, 0), (0, 0)),
        (["an_hour"], "hour", (0, 0), (0, 0)),
        (["a.b"], "ab", (1, 1), (1, 1)),
        (["Anna a-the"], "anna", (0, 2 / 3), (0, 2 / 3)),
        (["50%"], "50", (1, 1), (1, 1)),
        (["x\ty\nz"], "x y z", (1, 1), (1, 1)),
        (["the\u3000cat"], "cat", (1, 1), (1, 1)),
        (["naïve"], "naive", (0, 0), (0, 0)),
        (["İstanbul"], "istanbul", (0, 0), (0, 0)),
        (["中国"], "中 国", (0, 0), (0, 0)),  # Chinese is compared whole
        (["李白，杜甫"], "李白", (0, 0), (0, 0)),
        ([], "", None, (1, 1)),
        ([], "x", None, (0, 0)),
    ],
)
def test_scores_of_the_official_scripts(golds, text, version1, version2):
    for task, expected in ((AnsweringTask(), version1), (SQUAD2, version2)):
        if expected:
            metrics = task.metrics([told(text)], given(golds))
            exact_match, f1 = expected
            assert metrics["exact_match"] == exact_match
            assert metrics["f1"] == pytest.approx(f1, abs=1e-12)


def test_thresholds_of_the_official_script():
    golds = ["x y"], [], ["z"], ["x"], [], ["y z"], [], ["q"]
    texts = "x", "y", "z", "q", "x", "y z", "q", "q"
    null_odds = -3.0, -2.5, -1.0, -1.0, 0.5, 0.25, 2.0, 1.5
    predictions = [told(text, odds) for text, odds in zip(texts, null_odds)]
    assert SQUAD2.metrics(predictions, given(*golds)) == pytest.approx(
        {
            "f1": (2 / 3 + 0 + 1 + 0 + 1 + 0 + 1 + 0) / 8,
            "exact_match": 3 / 8,
            "answerable_f1": (2 / 3 + 1) / 5,
            "answerable_exact_match": 1 / 5,
            "impossible_f1": 2 / 3,
            "impossible_exact_match": 2 / 3,
            # In the order of null odds: 3 + 2/3, - 1, + 1, + 0, + 1, - 1, + 1, - 1.
            "best_f1": (3 + 2 / 3 + 1) / 8,
            "best_f1_threshold": 0.25,
            "best_exact_match": 4 / 8,
            "best_exact_match_threshold": 0.25,
        }
    )
    none_right = SQUAD2.metrics([told("x", -1.0), told("x", 1.0)], given(["y"], []))
    assert (none_right["best_f1"], none_right["best_f1_threshold"]) == (0.5, 0.0)
    lenient = AnsweringTask(unanswerable=True, null_threshold=-2.0)
    assert lenient.metrics([told("x", -1.0, -2.0)], given([]))["f1"] == 1


def test_baseline():
    question = Question("1", "When did he speak again?", CONTEXT, (("In 1865 he spoke again", 23),))
    assert AnsweringTask().baseline([], [question]) == {"f1": 1.0, "exact_match": 1.0}
    assert SQUAD2.baseline([], [question, Question("2", "Why?", CONTEXT)])["f1"] == 0.5


def test_writes_what_the_official_scripts_take(tmp_path):
    questions = [Question("1", "q", "a “Ü”", (("Ü", 3),)), Question("2", "q", "a b")]
    features = SQUAD2.features(questions, LETTERS, 99)
    predictions = SQUAD2.predictions(gold_logits(features), features, questions)
    directory = tmp_path / "predictions"
    SQUAD2.write_predictions(directory, questions, predictions)
    files = {path.name: json.loads(path.read_text("utf-8")) for path in directory.iterdir()}
    assert set(files) == {"predictions.json", "nbest_predictions.json", "null_odds.json"}
    assert files["predictions.json"] == {"1": "Ü", "2": ""}
    assert files["null_odds.json"] == {"1": -18.0, "2": 18.0}
    best = files["nbest_predictions.json"]["1"][0]
    assert best.pop("probability") > 0.99
    assert best == {"text": "Ü", "start": 3, "end": 4, "start_logit": 9.0, "end_logit": 9.0}
