"""Tagging: CoNLL files, what the model gets, and how entities are counted."""

import itertools
import json
import random

import numpy as np
import pytest

from bert_jax.data.documents import find_sources, read_documents
from bert_jax.data.wordpiece import SPECIAL_TOKENS, WordPiece, load_wordpiece
from bert_jax.errors import UserError
from bert_jax.fields import build, to_plain
from bert_jax.tasks import TaggingTask, Task
from bert_jax.tasks.tagging.decoding import Prediction
from bert_jax.tasks.tagging.example import Sentence
from bert_jax.tasks.tagging.plain_text import Entity, find_entities, split_words
from bert_jax.tasks.tagging.schemes import find_spans

pytestmark = pytest.mark.core

LETTERS = WordPiece((*SPECIAL_TOKENS, *"abcdefgh", *(f"##{c}" for c in "xyz")), lowercase=True)
PLACES = TaggingTask(labels=("O", "B-LOC", "I-LOC"))
IOBES = TaggingTask(scheme="BIOES")


def ids(text):
    return [LETTERS.vocab.index(token) for token in text.split()]


def sentence(tags, words=None):
    return Sentence(words or ["a"] * len(tags.split()), tags.split(), "a.conll, line 1")


def predicted(tags, probability=1.0):
    return Prediction(tags.split(), np.full(len(tags.split()), probability, np.float32))


def gold_logits(task, features):
    """Logits of a model that knows the labels."""
    return [9 * np.eye(task.num_labels, dtype=np.float32)[labels] for labels in features.labels]


@pytest.fixture
def write(tmp_path):
    def write(content, name="a.conll"):
        content = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(content)
        return str(tmp_path / name)

    return write


def words_and_tags(sentences):
    return [(" ".join(s.words), " ".join(s.tags)) for s in sentences]


@pytest.mark.parametrize(
    "content",
    [
        "U.N. B-ORG\nin O\nRome B-LOC\n\n# O\n1 O\n",
        "\ufeffU.N.\tB-ORG\r\nin\tO\r\nRome\tB-LOC\r\n\t\r\n  \n#\tO\r\n1\tO",
        "-DOCSTART- O\n\nU.N.  NNP  B-ORG \nin IN O\nRome NNP B-LOC\n\n# # O\n1 CD O\n\n",
        "# id 7\nU.N. B-ORG\nin O\n# a comment\nRome B-LOC\n\n# text = # 1\n# O\n1 O\n",
        "U.N. B-ORG\nin O\nRome B-LOC\n-DOCSTART- -X- O\n# O\n1 O\n",
    ],
)
def test_conll_files(write, content):
    sentences = TaggingTask().read(write(content))
    assert words_and_tags(sentences) == [("U.N. in Rome", "B-ORG O B-LOC"), ("# 1", "O O")]


def test_columns_encodings_and_places(write):
    path = write("\nB-X 1 \xe9t\xe9 p\nO 2 a\xa0b p\n".encode("latin-1"))
    task = TaggingTask(word_column=-2, tag_column=1, encoding="latin-1")
    assert task.read(path) == [
        Sentence(["\xe9t\xe9", "a\xa0b"], ["B-X", "O"], f"{path}, line 2"),
    ]
    unlabelled = TaggingTask(word_column=1).read(write("# id\na\n#\nb\n\nc\n"), labelled=False)
    assert [(s.words, s.tags) for s in unlabelled] == [(["a", "#", "b"], None), (["c"], None)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a O\nb I-LOC\n", "a.conll, line 2: tag 'I-LOC' does not fit .* BIO has 'B-LOC' there"),
        ("a B-PER\nb I-LOC\n", "a.conll, line 2: tag 'I-LOC' does not fit its neighbours"),
        ("a B-PER\n\nb I-PER\n", "a.conll, line 3: tag 'I-PER' does not fit its neighbours"),
        ("a S-LOC\n", "a.conll, line 1: 'S-LOC' is not a BIO tag; check scheme and tag_column"),
        ("a O\nb NNP\n", "a.conll, line 2: 'NNP' is not a BIO tag"),
        ("a O\nb\n", "a.conll, line 2: 1 columns, but 2 in the lines before"),
        ("a\n", "a.conll, line 1: 1 columns, fewer than 2; columns are separated by tabs"),
        ("a\tO\nb c\tB-X\n d e B-X\n", "a.conll, line 3: 3 columns, but 2 in the lines before"),
        ("a\tO\n\tO\n", "a.conll, line 2: the word is empty"),
        (b"a O\n\n\xe9 O\n", "a.conll, line 3: byte 1 of the line is not UTF-8; set `encoding`"),
        ("# nothing\n\n", "a.conll: no sentences found"),
    ],
)
def test_bad_files(write, content, message):
    with pytest.raises(UserError, match=message):
        TaggingTask(scheme="BIO").read(write(content))


def test_bad_options(tmp_path):
    with pytest.raises(UserError, match=r"config\.task\.scheme='IOB3': use one of auto, BIO, BIO"):
        build(Task, {"name": "tagging", "scheme": "IOB3"}, "config.task")
    with pytest.raises(UserError, match="encoding: cannot read lines of 'utf8000'"):
        TaggingTask(encoding="utf8000").read(__file__)
    with pytest.raises(UserError, match="columns count from 1"):
        TaggingTask(word_column=0)
    with pytest.raises(UserError, match=r"no\.conll: no such file"):
        TaggingTask().read(str(tmp_path / "no.conll"))


@pytest.mark.parametrize(
    ("tags", "scheme", "labels"),
    [
        ("B-X I-X O", "BIO", "O B-X I-X"),
        ("O I-X B-X O I-Y", "BIO", "O B-X I-X B-Y I-Y"),  # IOB1
        ("B-X I-X E-X S-Y O", "BIOES", "O B-X I-X E-X S-X B-Y I-Y E-Y S-Y"),
        ("B-PER L-PER O O U-LOC", "BILOU", "O B-LOC I-LOC L-LOC U-LOC B-PER I-PER L-PER U-PER"),
        ("U-X O", "BILOU", "O B-X I-X L-X U-X"),
        ("B-PER M-PER E-PER O", "BMES", "O B-PER M-PER E-PER S-PER"),
        ("B M E S S", "BMES", "O B M E S"),
        ("B I O B", "BIO", "O B I"),
        ("DET NOUN VERB", "none", "DET NOUN VERB"),
        ("N S M V", "none", "M N S V"),
        ("-LRB- NN-HL NN", "none", "-LRB- NN NN-HL"),
        ("O LOC LOC PER", "IO", "O LOC PER"),
    ],
)
def test_schemes_are_found(write, tags, scheme, labels):
    content = "".join(f"w{index} {tag}\n" for index, tag in enumerate(tags.split()))
    examples = TaggingTask().read(write(content))
    task = TaggingTask().with_labels_of(examples)
    assert task.label_names == tuple(labels.split())
    assert task.entity_scheme == TaggingTask(labels=task.labels).entity_scheme == scheme
    assert task.read(write(content)) == examples
    features = task.features(examples, LETTERS, 30)
    assert features.counts["tags_repaired"] == 0
    predictions = task.predictions(gold_logits(task, features), features, examples)
    assert [p.tags for p in predictions] == [e.tags for e in examples]
    metrics = task.metrics(predictions, examples)
    names = (
        ["accuracy", "macro_f1"] if scheme == "none" else ["f1", "precision", "recall", "accuracy"]
    )
    assert metrics == dict.fromkeys(names, 1.0)
    assert [*task.baseline(examples, examples)][: len(names)] == names
    assert task.per_class(predictions, examples)
    words = [(2 * index, 2 * index + 1) for index in range(len(tags.split()))]
    text = " ".join("w" * len(words))
    found = task.find_entities(text, words, predictions[0])
    if scheme == "none":
        assert [entity.type for entity in found] == tags.split()
    else:
        assert sum(row["support"] for row in task.per_class(predictions, examples)) == len(found)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "a B-X\nb NNP\n",
            "a.conll, line 2: 'NNP' is not a BIO tag; .* scheme=none takes any tags",
        ),
        ("a B-X\nb B\n", "a.conll, line 2: 'B' is not a BIO tag"),
        ("a U-X\nb M-X\n", "a.conll, line 2: 'M-X' is not a BILOU tag"),
        ("a B-X\nb I-Y\n\nc I-Y\n", "a.conll, line 2: tag 'I-Y' does not fit its neighbours"),
        ("a B-X\nb O\nc I-X\n", "a.conll, line 3: tag 'I-X' does not fit its neighbours"),
        ("a\tDET\nb\t\n", "a.conll, line 2: the tag is empty"),
    ],
)
def test_tags_of_no_single_scheme(write, content, message):
    with pytest.raises(UserError, match=message):
        TaggingTask().read(write(content))


def test_iob1_is_said(write, caplog):
    path = write("a I-X\nb I-X\nc B-X\n\nd O\ne I-Y\n")
    assert words_and_tags(TaggingTask().read(path)) == [("a b c", "B-X I-X B-X"), ("d e", "O B-Y")]
    assert "a.conll: its tags are IOB1; read as BIO" in caplog.text
    assert TaggingTask(scheme="IOB1").read(path) == TaggingTask().read(path)


@pytest.mark.parametrize(
    "tags", ["b-per i-per o", "B_PER I_PER O", "PER-B PER-I O", "LOC_b LOC_i O"]
)
def test_other_notations_of_entities_are_refused(write, tags):
    path = write("".join(f"a {tag}\n" for tag in tags.split()))
    begin, inside, _ = tags.split()
    with pytest.raises(UserError, match=f"'{begin}' and '{inside}' are not written as B-TYPE"):
        TaggingTask().read(path)
    assert words_and_tags(TaggingTask(scheme="none").read(path)) == [("a a a", tags)]


def test_files_of_conllu(write):
    rows = [(1, "vamos", "VERB"), ("1-2", "vámonos", "_"), (2, "nos", "PRON"), ("2.1", "x", "X")]
    lines = ["\t".join([str(n), word, "_", tag, *"______"]) for n, word, tag in rows]
    path = write("# text = vámonos\n" + "\n".join(lines) + "\n")
    task = TaggingTask(word_column=2, tag_column=4)
    assert words_and_tags(task.read(path)) == [("vamos nos", "VERB PRON")]
    with pytest.raises(UserError, match=r"words are the numbers 1, 2, \.\.\.; set word_column=2"):
        TaggingTask(tag_column=4).read(path)


def test_strict_schemes_count_as_seqeval_does():
    """BILOU and BMES entities are those of seqeval's own BILOU, and of IOBES with M for I."""
    from seqeval.metrics import f1_score
    from seqeval.scheme import BILOU, IOBES

    draw = random.Random(0)
    for scheme, kind, names in (("BILOU", BILOU, "BILU"), ("BMES", IOBES, "BMES")):
        tags = ["O", *(f"{prefix}-{type_}" for prefix in names for type_ in "XY")]
        task = TaggingTask(labels=tuple(tags))
        assert task.entity_scheme == scheme
        gold = [draw.choices(tags, k=6) for _ in range(300)]
        guesses = [[draw.choice([tag, draw.choice(tags)]) for tag in each] for each in gold]
        examples = [sentence(" ".join(each)) for each in gold]
        found = task.metrics([predicted(" ".join(each)) for each in guesses], examples)["f1"]
        gold, guesses = (
            [[tag.replace("M-", "I-") for tag in each] for each in some] for some in (gold, guesses)
        )
        assert found == f1_score(gold, guesses, mode="strict", scheme=kind)


def test_parts_of_speech_are_scored_by_word():
    task = TaggingTask(labels=("DET", "NOUN", "VERB"))
    examples, guesses = [sentence("DET NOUN VERB NOUN")], [predicted("DET NOUN NOUN NOUN")]
    assert task.metrics(guesses, examples) == {
        "accuracy": 0.75,
        "macro_f1": pytest.approx((1 + 0.8 + 0) / 3),
    }
    assert [(row["label"], row["support"]) for row in task.per_class(guesses, examples)] == [
        ("DET", 1),
        ("NOUN", 2),
        ("VERB", 1),
    ]
    train = [sentence("DET NOUN NOUN", ["the", "dog", "cat"])]
    assert task.baseline(train, [sentence("DET VERB", ["the", "ran"])])["accuracy"] == 0.5
    with pytest.raises(UserError, match="have no tag but DET"):
        TaggingTask().with_labels_of([sentence("DET DET")])
    with pytest.raises(UserError, match="tag_column: 1,001 different tags; is it that of the tags"):
        TaggingTask().with_labels_of([sentence(" ".join(f"T{i}" for i in range(1001)))])


def test_hash_signs_are_words_or_comments(write):
    content = "# text = no word\n# a b\nIt DET\n# SYM\n\n# SYM\nIs DET\n"
    found = TaggingTask().read(write(content))
    assert words_and_tags(found) == [("It", "DET"), ("Is", "DET")]
    found = TaggingTask().read(write("a SYM\n# SYM\n\n# comment\nb DET\n"))
    assert words_and_tags(found) == [("a #", "SYM SYM"), ("b", "DET")]
    assert words_and_tags(TaggingTask().read(write("#\t#\na\tDET\n"))) == [("# a", "# DET")]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_rows_with_lists(tmp_path, suffix):
    """As the library `datasets` has them."""
    rows = [
        {"id": "0", "tokens": ["em", "São", "Paulo"], "ner_tags": [0, 1, 2]},
        {"id": "1", "tokens": [], "ner_tags": []},
        {"id": "2", "tokens": ["a"], "ner_tags": [0]},
    ]
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows) if suffix == "json" else "\n".join(map(json.dumps, rows)))
    found = PLACES.read(str(path))
    assert words_and_tags(found) == [("em São Paulo", "O B-LOC I-LOC"), ("a", "O")]
    assert found[1].place.endswith(", word 0")
    assert PLACES.read(str(path), labelled=False)[0].tags is None
    with pytest.raises(UserError, match="0 in ner_tags is not text; list the tags in `labels`"):
        TaggingTask().read(str(path))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a"], "ner_tags": ["O", "O"]}, "line 1: 1 words, but 2 tags"),
        ({"tokens": "a b", "ner_tags": ["O"]}, "line 1: tokens is str, not a list"),
        ({"tokens": [None], "ner_tags": ["O"]}, "line 1: None in tokens is not text"),
        ({"tokens": ["a"], "ner_tags": [7]}, "line 1: 7 in ner_tags is not text; list the tags"),
        ({"text": "a"}, "line 1: no column 'tokens' or 'words'; there are \\[text"),
    ],
)
def test_bad_rows(tmp_path, row, message):
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match=f"a.jsonl, {message}"):
        PLACES.read(str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize(
    ("scheme", "tags", "repaired"),
    [
        # IOB1: B- only where an entity follows another of its type.
        ("BIO", "I-A I-A O I-A B-A I-A I-B", "B-A I-A O B-A B-A I-A B-B"),
        ("BIO", "O I-A-B I-A-B B-A-B", "O B-A-B I-A-B B-A-B"),
        ("BIO", "B-A I-A O B-B", "B-A I-A O B-B"),
        ("BIOES", "S-A B-A E-A O B-B I-B E-B", "S-A B-A E-A O B-B I-B E-B"),
        ("BIOES", "B-A O I-A E-B", "S-A O S-A S-B"),
        ("BIOES", "B-A I-A B-A E-A E-A S-B I-B", "B-A E-A B-A E-A S-A S-B S-B"),
    ],
)
def test_repair(write, scheme, tags, repaired):
    content = "".join(f"a {tag}\n" for tag in tags.split())
    task = TaggingTask(scheme=scheme, repair=True)
    (found,) = task.read(write(content))
    changed = sum(a != b for a, b in zip(tags.split(), repaired.split()))
    assert (found.tags, found.num_repaired) == (repaired.split(), changed)
    features = task.with_labels_of([found]).features([found], LETTERS, 30)
    assert features.counts["tags_repaired"] == changed
    if changed:
        with pytest.raises(UserError, match="does not fit its neighbours"):
            TaggingTask(scheme=scheme).read(write(content))


def test_entities_are_those_of_seqeval():
    from seqeval.metrics.sequence_labeling import get_entities

    draw = random.Random(0)
    tags = ["O", *(f"{prefix}-{type_}" for prefix in "BIES" for type_ in ("A", "A-B", "C"))]
    for _ in range(5000):
        some = draw.choices(tags, k=draw.randrange(9))
        assert find_spans(some) == get_entities(some), some
    of_no_scheme = ["LOC", "LOC", "O", "PER"]  # as a model from elsewhere may have them
    assert find_spans(of_no_scheme) == [("LOC", 0, 1), ("PER", 3, 3)]


def test_labels_are_all_tags_of_the_types_in_training(write):
    train = [sentence("O B-PER"), sentence("B-A-LOC I-A-LOC"), Sentence(["a"], None, "")]
    task = TaggingTask().with_labels_of(train)
    assert task.label_names == ("O", "B-A-LOC", "I-A-LOC", "B-PER", "I-PER")
    assert task.num_labels == 5
    assert task.with_labels_of([sentence("B-X")]).label_names == task.label_names
    assert task.with_labels(["O", "B-X"]) is task
    assert TaggingTask().with_labels(["O", "B-X"]).label_names == ("O", "B-X")
    tags = IOBES.with_labels_of([sentence("S-PER")]).labels
    assert tags == ("O", "B-PER", "I-PER", "E-PER", "S-PER")
    message = "tag 'B-ORG' is none of O, B-A-LOC, I-A-LOC, B-PER, I-PER, the labels given or those"
    with pytest.raises(UserError, match=f"a.conll, line 2: {message}"):
        task.read(write("a O\nb B-ORG\n"))
    with pytest.raises(UserError, match=f"a.conll, line 1: {message}"):
        task.features([sentence("O B-ORG")], LETTERS, 9)
    with pytest.raises(UserError, match="have no tag but O"):
        TaggingTask().with_labels_of([sentence("O O")])


def test_features_token_by_token():
    examples = [
        Sentence(["ax", "b!", "\x00"], ["B-LOC", "I-LOC", "O"], ""),
        Sentence(["a", "b", "cxy", "d"], ["O", "O", "O", "B-LOC"], ""),
        Sentence(["a"], None, ""),
        Sentence(["axy", "b", "c"], ["O", "O", "B-LOC"], "", predicate=(0, 2), num_repaired=1),
    ]
    features = PLACES.features(examples, LETTERS, 9)
    assert [window.tolist() for window in features.input_ids] == [
        ids("[CLS] a ##x b [UNK] [UNK] [SEP]"),
        ids("[CLS] a b c ##x ##y d [SEP]"),
        ids("[CLS] a [SEP]"),
        ids("[CLS] a ##x [SEP] a ##x ##y c [SEP]"),
        ids("[CLS] ##x ##y [SEP] a ##x ##y c [SEP]"),
        ids("[CLS] ##y b [SEP] a ##x ##y c [SEP]"),
        ids("[CLS] b c [SEP] a ##x ##y c [SEP]"),
    ]
    assert features.b_start.tolist() == [7, 8, 3, 4, 4, 4, 4]
    assert [labels.tolist() for labels in features.labels] == [
        [-1, 1, -1, 2, -1, 0, -1],
        [-1, 0, 0, 0, -1, -1, 1, -1],
        [-1, -1, -1],
        [-1, 0, *[-1] * 7],
        [-1] * 9,
        [-1, -1, 0, *[-1] * 6],
        [-1, -1, 1, *[-1] * 6],
    ]
    assert [words.tolist() for words in features.words[:3]] == [
        [-1, 0, -1, 1, -1, 2, -1],
        [-1, 0, 1, 2, -1, -1, 3, -1],
        [-1, 0, -1],
    ]
    assert features.example.tolist() == [0, 1, 2, 3, 3, 3, 3]
    assert all(labels.dtype == np.int32 for labels in features.labels)
    assert features.counts == {
        "examples": 4,
        "windowed": 1,
        "tags_repaired": 1,
        "unknown_words": 1,
    }
    with pytest.raises(UserError, match="max_seq_length: 8 leaves no room for words"):
        PLACES.features(examples, LETTERS, 8)


def test_the_predicate_is_marked_in_a_column(write):
    path = write("He - B-A0\nmay - O\nnot _ O\ngive give B-V\nin x I-V\n\nNo 0 O\nverb - O\n")
    task = TaggingTask(predicate_column=2)
    examples = task.read(path)
    assert [example.predicate for example in examples] == [(3, 4), ()]
    (first, second) = task.with_labels_of(examples).features(examples, LETTERS, 20).input_ids
    assert (len(first), len(second)) == (2 + 5 + 3, 2 + 2)


@pytest.mark.parametrize("max_seq_length", [16, 128])
def test_every_word_of_real_text_is_tagged_once(sotu_store, max_seq_length):
    wordpiece = load_wordpiece(sotu_store)
    speeches = itertools.islice(read_documents(find_sources(["corpus:sotu"])), 0, None, 25)
    draw, examples = random.Random(0), []
    for text in speeches:
        words = text.split()
        for length in (1, 7, 60, 300):
            tags = draw.choices(PLACES.labels, k=length)
            examples.append(Sentence(words[:length], tags, ""))
            words = words[length:]
    features = PLACES.features(examples, wordpiece, max_seq_length)
    assert max(map(len, features.input_ids)) == max_seq_length
    counted = [
        (e, w) for e, words in zip(features.example, features.words) for w in words if w >= 0
    ]
    assert sorted(counted) == [(e, w) for e, s in enumerate(examples) for w in range(len(s.words))]
    for window, words in zip(features.input_ids, features.words):
        assert not wordpiece.is_continuation[window[words >= 0]].any()
        # A word has a quarter of the window on both sides, but for the ends of the sentence.
        inside = words[words >= 0]
        if len(inside) and inside[0] > 0:
            assert np.flatnonzero(words >= 0)[0] >= max_seq_length // 4 - 1
    predictions = PLACES.predictions(gold_logits(PLACES, features), features, examples)
    assert [p.tags for p in predictions] == [s.tags for s in examples]
    assert PLACES.metrics(predictions, examples)["accuracy"] == 1


def test_predictions_have_probabilities():
    examples = [Sentence(["a", "bx"], None, "")]
    features = PLACES.features(examples, LETTERS, 9)
    logits = np.log([[9, 1, 1], [1, 2, 1], [3, 1, 1], [1, 9, 9], [1, 1, 1]])
    (prediction,) = PLACES.predictions([logits], features, examples)
    assert prediction.tags == ["B-LOC", "O"]
    np.testing.assert_allclose(prediction.probabilities, [0.5, 0.6], rtol=1e-6)


# Counted by hand: entities in the gold tags, in the predicted ones, and in both.
@pytest.mark.parametrize(
    ("task", "gold", "guess", "counts"),
    [
        (PLACES, "B-LOC I-LOC O", "B-LOC I-LOC O", (1, 1, 1)),
        (PLACES, "B-LOC I-LOC O", "B-LOC O O", (1, 1, 0)),  # half an entity is none
        (PLACES, "B-LOC I-LOC O", "B-PER I-PER O", (1, 1, 0)),
        (PLACES, "B-LOC I-LOC O", "I-LOC I-LOC O", (1, 1, 1)),  # as conlleval
        (PLACES, "B-LOC I-LOC O", "O I-LOC O", (1, 1, 0)),
        (PLACES, "B-LOC B-LOC", "B-LOC I-LOC", (2, 1, 0)),
        (PLACES, "B-LOC B-PER", "B-LOC I-PER", (2, 2, 2)),
        (PLACES, "B-LOC I-LOC", "B-LOC I-PER", (1, 2, 0)),
        (PLACES, "O B-A-B I-A-B", "O B-A-B I-A-B", (1, 1, 1)),
        (PLACES, "O O", "O B-LOC", (0, 1, 0)),
        (PLACES, "O O", "O O", (0, 0, 0)),
        (IOBES, "B-LOC E-LOC S-PER", "B-LOC E-LOC S-PER", (2, 2, 2)),
        (IOBES, "B-LOC I-LOC E-LOC", "I-LOC I-LOC E-LOC", (1, 0, 0)),  # strict: no beginning
        (IOBES, "B-LOC I-LOC E-LOC", "B-LOC I-LOC I-LOC", (1, 0, 0)),  # no end
        (IOBES, "B-LOC E-LOC", "S-LOC E-LOC", (1, 1, 0)),
        (IOBES, "B-LOC E-LOC", "B-LOC E-PER", (1, 0, 0)),
        (IOBES, "O O", "O O", (0, 0, 0)),
    ],
)
def test_entities_are_counted_as_conlleval_or_strictly(task, gold, guess, counts, recwarn):
    num_gold, num_guessed, right = counts
    examples, predictions = [sentence(gold)], [predicted(guess)]
    metrics = task.metrics(predictions, examples)
    assert metrics["precision"] == (right / num_guessed if num_guessed else 0)
    assert metrics["recall"] == (right / num_gold if num_gold else 0)
    assert metrics["f1"] == pytest.approx(2 * right / max(1, num_gold + num_guessed))
    same = [a == b for a, b in zip(gold.split(), guess.split())]
    assert metrics["accuracy"] == np.mean(same)
    rows = task.per_class(predictions, examples)
    assert sum(row["support"] for row in rows) == num_gold
    assert not recwarn


def test_an_entity_does_not_reach_into_the_next_sentence():
    examples = [sentence("O B-LOC"), sentence("B-LOC O"), Sentence(["a"], None, "")]
    predictions = [predicted("O B-LOC"), predicted("I-LOC O"), predicted("O")]
    assert PLACES.metrics(predictions, examples)["f1"] == 1


def test_per_class():
    examples = [sentence("B-LOC I-LOC O B-PER")]
    assert PLACES.per_class([predicted("B-LOC I-LOC B-PER B-PER")], examples) == [
        {"label": "LOC", "precision": 1, "recall": 1, "f1": 1, "support": 1},
        {"label": "PER", "precision": 0.5, "recall": 1, "f1": pytest.approx(2 / 3), "support": 1},
    ]


def test_baseline_is_the_commonest_tag_of_the_word():
    train = [sentence("B-LOC O O O", ["Rome", "is", "in", "Rome"]), sentence("B-LOC", ["Rome"])]
    test = [sentence("B-LOC O B-LOC", ["Rome", "and", "Oslo"])]
    assert PLACES.baseline(train, test) == {
        "f1": pytest.approx(2 / 3),
        "precision": 1.0,
        "recall": 0.5,
        "accuracy": pytest.approx(2 / 3),
        "share_of_o": pytest.approx(1 / 3),
    }


def test_predictions_are_a_conll_file(tmp_path):
    examples = [sentence("B-LOC O", ["New York", "#"]), sentence("O", ["a"])]
    path = tmp_path / "predictions.conll"
    PLACES.write_predictions(path, examples, [predicted("O O"), predicted("B-LOC")])
    assert [file.name for file in tmp_path.iterdir()] == ["predictions.conll"]
    gold = TaggingTask(tag_column=2).read(str(path))
    assert words_and_tags(gold) == words_and_tags(examples)
    assert words_and_tags(TaggingTask().read(str(path))) == [("New York #", "O O"), ("a", "B-LOC")]
    PLACES.write_predictions(path, [Sentence(["a"], None, "")], [predicted("O")])
    assert path.read_text() == "a\tO\n"


def test_entities_of_plain_text():
    vocab = (*SPECIAL_TOKENS, *"a,中国.", "sao", "paulo", "visit", "##s", "rome")
    wordpiece = WordPiece(vocab, lowercase=True)
    text = "Visits São\u0303\tPaulo, Rome ❤️中国. \x00"
    words = split_words(wordpiece, text)
    assert [text[start:end] for start, end in words] == [
        *("Visits", "São\u0303", "Paulo", ",", "Rome", "❤️", "中", "国", "."),
    ]
    alone = wordpiece.encode([text[start:end] for start, end in words])
    assert wordpiece.encode([text]) == [list(itertools.chain.from_iterable(alone))]
    tags = predicted("O B-LOC I-LOC O I-LOC O B-LOC I-PER O")
    tags.probabilities[:] = np.linspace(0, 0.8, 9)
    found = find_entities(text, words, tags)
    assert [entity[:4] for entity in found] == [
        ("LOC", "São\u0303\tPaulo", 7, 17),
        ("LOC", "Rome", 19, 23),
        ("LOC", "中", 26, 27),
        ("PER", "国", 27, 28),
    ]
    assert [entity.score for entity in found] == pytest.approx([0.15, 0.4, 0.6, 0.7])
    assert isinstance(found[0], Entity)
    assert split_words(wordpiece, " \x00") == []


CONLL = [  # words as CoNLL has them
    "U.N. official Ekeus heads for Baghdad .",
    "Mr. Smith-Jones , of Coca-Cola 's U.S. unit , left AT&T Inc. yesterday .",
    '" O\'Neil said " and went to St. Paul ( Minn. ) ...',
]


def test_plain_text_is_split_as_training_was():
    """Sentences whose words are parted by spaces come back, and so does running text."""
    words = [text.split() for text in CONLL]
    task = TaggingTask().with_labels_of(
        [sentence(" ".join(["O"] * len(w) + ["B-X"]), [*w, "x"]) for w in words]
    )
    wordpiece = WordPiece((*SPECIAL_TOKENS, "a"), lowercase=True)

    def split(text, task=task):
        return [text[start:end] for start, end in task.split_words(wordpiece, text)]

    for text in CONLL:
        assert split(text) == text.split()
    assert split(
        "Mr. O'Neil (of Coca-Cola's Paul) saw AT&T Inc., U.N. and U.K. \"Smith-Jones\"..."
    ) == [
        *("Mr.", "O'Neil", "(", "of", "Coca-Cola", "'s", "Paul", ")", "saw", "AT&T", "Inc.", ","),
        *("U.N.", "and", "U.K.", '"', "Smith-Jones", '"', "..."),
    ]
    assert split("Ada Lovelace lived in London.") == [
        "Ada",
        "Lovelace",
        "lived",
        "in",
        "London",
        ".",
    ]
    assert split("Yahoo! and -5% of $3.50") == ["Yahoo!", "and", "-5%", "of", "$3.50"]
    again = build(Task, to_plain(task), "config.task")
    assert split("Mr. Smith-Jones's Inc.", again) == ["Mr.", "Smith-Jones", "'s", "Inc."]
    # Nothing is known of a model from elsewhere, but that words are not cut inside.
    assert split("Coca-Cola's AT&T, U.N. and Yahoo!", PLACES) == [
        *("Coca-Cola", "'s", "AT&T", ",", "U.N.", "and", "Yahoo", "!"),
    ]
    # Where no punctuation stands alone, words are what spaces part.
    spaced = TaggingTask().with_labels_of([sentence("B-X O O", ["U.N.", "in", "Rome,"])])
    assert split("(Rome) U.N. Yahoo! it's", spaced) == ["(Rome)", "U.N.", "Yahoo!", "it's"]


def test_ideographs_are_words_as_in_training():
    wordpiece = WordPiece((*SPECIAL_TOKENS, *"我爱北京，。"), lowercase=True)
    for words, expected in (
        (["我", "爱", "北", "京", "。"], ["我", "爱", "北", "京", "，", "。"]),
        (["我", "爱", "北京", "。"], ["我爱北京", "，", "。"]),
    ):
        task = TaggingTask().with_labels_of([sentence("B-X" + " O" * (len(words) - 1), words)])
        text = "我爱北京，。"
        if len(words) == 4:
            text = "我爱北京 ， 。"
        found = [text[start:end] for start, end in task.split_words(wordpiece, text)]
        assert found == expected


def test_a_text_without_a_token_has_no_entity():
    for text in ("", " ", "\u200b", "\x00 \u200b"):
        words = PLACES.split_words(LETTERS, text)
        assert words == []
        features = PLACES.features([Sentence([], None, "")], LETTERS, 9)
        assert [window.tolist() for window in features.input_ids] == [ids("[CLS] [SEP]")]
        logits = [np.zeros((2, 3), np.float32)]
        (found,) = PLACES.predictions(logits, features, [Sentence([], None, "")])
        assert PLACES.find_entities(text, words, found) == []


def test_tfds(tmp_path):
    import tensorflow_datasets as tfds

    class TinyConll(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            tags = tfds.features.ClassLabel(names=["O", "B-LOC", "I-LOC"])
            features = {
                "tokens": tfds.features.Sequence(tfds.features.Text()),
                "ner": tfds.features.Sequence(tags),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"dev": self._generate_examples()}

        def _generate_examples(self):
            yield 0, {"tokens": ["em", "São", "Paulo"], "ner": ["O", "B-LOC", "I-LOC"]}

    TinyConll(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    task = TaggingTask(data_dir=str(tmp_path))
    place = "tfds:tiny_conll:dev, example 0, word 0"
    assert task.read("tfds:tiny_conll:dev") == [
        Sentence(["em", "São", "Paulo"], ["O", "B-LOC", "I-LOC"], place)
    ]
    assert task.read("tfds:tiny_conll:dev", labelled=False)[0].tags is None
