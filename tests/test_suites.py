"""Suites: what is read, what is counted, and what `bert-jax evaluate --suite` prints and writes."""

import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
from portables import make_portable
from test_training import recipe

from bert_jax.__main__ import main
from bert_jax.api.evaluate_suite import evaluate_suite
from bert_jax.api.pretrain import pretrain
from bert_jax.data.suites import Pair, Paradigm, read_suite, subsample, suite_name
from bert_jax.data.wordpiece import load_wordpiece
from bert_jax.errors import UserError
from bert_jax.evaluation.suite_scores import SuiteScores, exact
from bert_jax.evaluation.suites import MinimalPairs, open_suite, separation
from bert_jax.inference.trained import TrainedBert
from bert_jax.interop.workdir import write_workdir
from bert_jax.model.architecture import Numerics
from bert_jax.model.heads import parts_of
from bert_jax.model.model import build_model
from bert_jax.parallel import rules
from bert_jax.parallel.mesh import Layout
from bert_jax.parallel.parallelism import parallelism
from bert_jax.report.curves import _panels
from bert_jax.report.metrics_file import read_metrics
from bert_jax.report.suites import table

pytestmark = pytest.mark.core


def blimp_line(good, bad, uid="adjunct_island", field="syntax", term="island_effects") -> str:
    names = ("sentence_good", "sentence_bad", "UID", "field", "linguistics_term")
    return json.dumps(dict(zip(names, (good, bad, uid, field, term))) | {"pairID": "0"}) + "\n"


@pytest.fixture
def blimp(tmp_path):
    """Three paradigms of two phenomena and two fields."""
    folder = tmp_path / "blimp"
    folder.mkdir()
    (folder / "island.jsonl").write_text(
        blimp_line("We are at peace.", "We at are peace.")
        + blimp_line("The Union is strong.", "The is Union strong.")
        + blimp_line("It lasts.", "Lasts it.")
    )
    binding = {"uid": "principle_A_case_1", "field": "syntax/semantics", "term": "binding"}
    (folder / "case.jsonl").write_text(
        blimp_line("He spoke.", "Him spoke.", **binding)
        + blimp_line("They spoke.", "THEY spoke.", **binding)
    )
    binding |= {"uid": "principle_A_case_2", "field": "syntax_semantics"}
    (folder / "more.jsonl").write_text(blimp_line("We saw him.", "We saw he.", **binding))
    (folder / "README.md").write_text("not a paradigm")
    return folder


def read(kind, path):
    return read_suite(suite_name(f"{kind}:{path}"))


def test_blimp(blimp, caplog):
    case, island, more = sorted(read("blimp", blimp), key=lambda paradigm: paradigm.name[::-1])[
        ::-1
    ]
    by_name = {paradigm.name: paradigm for paradigm in (case, island, more)}
    assert by_name["principle_A_case_1"].groups == {
        "field": "syntax_semantics",
        "phenomenon": "binding",
    }
    assert by_name["principle_A_case_2"].pairs == [Pair("We saw him.", "We saw he.")]
    assert by_name["adjunct_island"].groups["field"] == "syntax"
    assert by_name["adjunct_island"].pairs[2] == Pair("It lasts.", "Lasts it.")
    assert not caplog.text
    # BLiMP itself has such pairs.
    (blimp / "equal.jsonl").write_text(blimp_line("a", "a", "u") * 2)
    assert len(read("blimp", blimp)) == 4
    assert "2 of the pairs are two equal sentences, which count as ties; the first" in caplog.text
    assert "equal.jsonl, line 1" in caplog.text
    (paradigm,) = read("blimp", blimp / "case.jsonl")
    assert [pair.bad for pair in paradigm.pairs] == ["Him spoke.", "THEY spoke."]


def test_zorro(tmp_path):
    (tmp_path / "filler-gap-wh_question_object.txt").write_text("bad a .\ngood a .\nbad b\ngood b")
    (tmp_path / "irregular-verb.txt").write_text("bad c .\r\ngood c .\r\n")
    gap, verb = read("zorro", tmp_path)
    assert gap.name == "filler-gap-wh_question_object"
    assert gap.groups == {"phenomenon": "filler-gap"}
    assert gap.pairs == [Pair("good a .", "bad a ."), Pair("good b", "bad b")]
    assert (verb.groups, verb.pairs) == ({"phenomenon": "irregular"}, [Pair("good c .", "bad c .")])


def test_tables_of_pairs_and_of_sentences(tmp_path):
    pairs = [Pair("a b", "b a"), Pair("c, d", "d c")]
    (tmp_path / "plain.tsv").write_text("a b\tb a\nc, d\td c\n")
    (tmp_path / "named.tsv").write_text("bad\tid\tgood\nb a\t1\ta b\nd c\t2\tc, d\n")
    (tmp_path / "named.csv").write_text('good,bad\na b,b a\n"c, d",d c\n')
    for name in ("plain.tsv", "named.tsv", "named.csv"):
        assert read("pairs", tmp_path / name) == [Paradigm(name[:5], {}, pairs)]

    (tmp_path / "dev.tsv").write_text('gj04\t1\t\tIt "is.\ngj04\t0\t*\tIs "it\n')
    (tmp_path / "named.jsonl").write_text(
        '{"label": 1, "sentence": "It \\"is."}\n{"label": 0, "sentence": "Is \\"it"}\n'
    )
    for name in ("dev.tsv", "named.jsonl"):
        sentences, labels = read("cola", tmp_path / name)
        assert (sentences, labels.tolist()) == (['It "is.', 'Is "it'], [True, False])


def test_results():
    """By hand: 2.5 of 4, 0 of 1 and 1 of 1."""
    groups = ({"field": "x", "term": "p"}, {"field": "x", "term": "q"}, {"field": "y", "term": "q"})
    sizes = {"one": 4, "two": 1, "three": 1}
    suite = MinimalPairs(
        [
            Paradigm(name, group, [Pair(f"{name}{n}", f"not {name}{n}") for n in range(size)])
            for (name, size), group in zip(sizes.items(), groups)
        ]
    )
    assert suite.texts[:3] == ["one0", "not one0", "one1"]
    totals = np.array([-1, -2, -1, -2, -3, -3.00005, -3, -2, -9, -1, -1, -9], float)
    results = suite.results(totals, np.full(12, 3))
    found = results.to_dict()
    one = found["by_paradigm"]["one"]
    assert one == {
        "field": "x", "term": "p", "accuracy": 0.625, "pairs": 4, "ties": 1, "paradigms": 1,
        "standard_error": math.sqrt(0.625 * 0.375 / 4),
    }  # fmt: skip
    error = one["standard_error"]
    assert found["over_paradigms"]["accuracy"] == pytest.approx((0.625 + 0 + 1) / 3)
    assert found["over_paradigms"]["standard_error"] == pytest.approx(error / 3)
    assert found["over_pairs"]["accuracy"] == pytest.approx(3.5 / 6)
    assert found["over_pairs"]["standard_error"] == pytest.approx(error * 4 / 6)
    assert (found["over_pairs"]["pairs"], found["over_pairs"]["ties"]) == (6, 1)
    assert found["by_field"]["x"]["accuracy"] == pytest.approx(0.3125)
    assert found["by_term"]["q"]["accuracy"] == 0.5
    assert found["chance"] == 0.5
    assert results.metrics() == {
        "accuracy": pytest.approx(1.625 / 3),
        "accuracy/x": 0.3125,
        "accuracy/y": 1.0,

    }  # fmt: skip
    lines = table(found)
    assert max(map(len, lines)) <= 80
    assert "mean over 3 paradigms" in lines[-3]
    assert re.fullmatch(r"chance +50\.0%", lines[-1])


def test_separation_of_acceptable_sentences():
    """AUC and the best of all thresholds, as scikit-learn finds them."""
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    labels = random.random(200) < 0.7
    scores = (2 * random.normal(size=200) + 2 * labels).round() / 2  # with ties
    found = separation(labels, scores)
    assert found.auc == pytest.approx(metrics.roc_auc_score(labels, scores))
    correlations = {t: metrics.matthews_corrcoef(labels, scores >= t) for t in np.unique(scores)}
    assert found.best_matthews == pytest.approx(max(correlations.values()))
    assert correlations[found.threshold] == pytest.approx(found.best_matthews)
    # The spread of AUC over new samples is near its standard error.
    many = [
        separation(draw, random.normal(size=200) + draw).auc
        for draw in random.random((100, 200)) < 0.7
    ]
    assert np.std(many) == pytest.approx(found.auc_standard_error, rel=0.4)


def test_subsample(tmp_path):
    assert subsample(range(10), 4) == [0, 3, 6, 9]
    assert subsample(range(3), 4) == [0, 1, 2]
    rows = "".join(f"s\t{int(n < 6)}\t\tsentence {n}\n" for n in range(9))
    (tmp_path / "dev.tsv").write_text(rows)
    suite = open_suite(suite_name(f"cola:{tmp_path / 'dev.tsv'}"), pairs=2)
    assert suite.texts == ["sentence 0", "sentence 5", "sentence 6", "sentence 8"]


BAD = {
    "blimp:{tmp}": r": no paradigm: a folder without a \.jsonl file",
    "blimp:{tmp}/gone": r"--suite=blimp:.*gone: no such file or folder",
    "blimp:{tmp}/lacks.json": r"lacks\.json, line 2: no column 'UID'; there are \[sentence_good, ",
    "blimp:{tmp}/empty.json": r"empty\.json, line 1: empty sentence_bad",
    "blimp:{tmp}/number.json": r"number\.json, line 1: sentence_good must be a text, not 3",
    "blimp:{tmp}/nothing.json": r"nothing\.json: no paradigm: no pair of sentences in it",
    "blimp:{tmp}/cut.json": r"cut\.json, line 2: not JSON",
    "zorro:{tmp}/odd.txt": r"odd\.txt, line 3: a last sentence without its pair",
    "zorro:{tmp}/blank.txt": r"blank\.txt, line 3: empty sentence",
    "zorro:{tmp}/same.txt": r"same\.txt, line 2: the two sentences of a pair are equal",
    "zorro:{tmp}/nothing.txt": r"nothing\.txt: no paradigm: no pair of sentences in it",
    "pairs:{tmp}/one.tsv": r"one\.tsv, line 2: 1 fields; must be two sentences, good and bad",
    "pairs:{tmp}/three.tsv": r"three\.tsv, line 1: 3 fields; must be two sentences, good and bad",
    "pairs:{tmp}/same.tsv": r"same\.tsv, line 1: the two sentences of a pair are equal",
    "pairs:{tmp}/half.tsv": r"half\.tsv, line 1: empty bad",
    "pairs:{tmp}/nothing.tsv": r"nothing\.tsv: no paradigm",
    "pairs:{tmp}/latin.tsv": r"latin\.tsv, line 1: byte 4 of the line is not UTF-8",
    "cola:{tmp}/label.tsv": r"label\.tsv, line 1: label '2': must be 0 or 1",
    "cola:{tmp}/alike.tsv": r"alike\.tsv: must have acceptable and unacceptable sentences",
    "cola:{tmp}/empty.tsv": r"empty\.tsv, line 2: empty sentence",
    "blimp": r"--suite='blimp': must be one of blimp:PATH, zorro:PATH, pairs:PATH, cola:PATH",
    "blimp:": r"--suite='blimp:': must be one of",
    "glue:x": r"--suite='glue:x': must be one of",
}
FILES = {
    "lacks.json": blimp_line("a", "b") + '{"sentence_good": "a", "sentence_bad": "b"}\n',
    "empty.json": blimp_line("a", " "),
    "number.json": blimp_line(3, "b"),
    "nothing.json": "\n",
    "cut.json": blimp_line("a", "b") + '{"sentence_good": "a',
    "odd.txt": "a\nb\nc\n",
    "blank.txt": "a\nb\n \nc\n",
    "same.txt": "a\na\n",
    "nothing.txt": "",
    "one.tsv": "a\tb\na\n",
    "three.tsv": "a\tb\tc\n",
    "same.tsv": "a\ta\n",
    "half.tsv": "a\t \n",
    "nothing.tsv": "",
    "latin.tsv": "Caf\xe9\tb\n",
    "label.tsv": "s\t2\t\ta\n",
    "alike.tsv": "s\t1\t\ta\n",
    "empty.tsv": "s\t1\t\ta\ns\t0\t\t\n",
}


@pytest.mark.parametrize("suite", BAD)
def test_a_bad_suite_is_found_before_the_model_is_read(tmp_path, monkeypatch, capsys, suite):
    for name, text in FILES.items():
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    if suite == "blimp:{tmp}":
        for file in tmp_path.glob("*.json"):
            file.unlink()
    monkeypatch.setattr("bert_jax.api.evaluate_suite.load", lambda *_, **__: pytest.fail("read"))
    arguments = [f"--workdir={tmp_path}", f"--suite={suite.format(tmp=tmp_path)}"]
    assert main(["evaluate", *arguments]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert re.search(BAD[suite], error)


@pytest.fixture(scope="module")
def model(sotu_store):
    return make_portable(load_wordpiece(sotu_store), ("masked_lm",))


def test_evaluate(model, blimp, tmp_path, capsys):
    """The pairs of every paradigm are compared by the scores of their sentences."""
    write_workdir(tmp_path / "model", model)
    bert = TrainedBert(model)
    command = ["evaluate", f"--workdir={tmp_path / 'model'}"]
    output = tmp_path / "new" / "out"
    for _ in range(2):  # into a new directory, then over what is there
        assert main([*command, f"--suite=blimp:{blimp}", f"--output={output}", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[0])
    assert json.loads((output / "scores.json").read_text()) == printed
    assert (output / "paradigms.png").read_bytes().startswith(b"\x89PNG")
    for paradigm in read("blimp", blimp):
        shares = []
        for pair in paradigm.pairs:
            good, bad = (bert.score([text])[0].total for text in pair)
            shares.append(0.5 if abs(good - bad) <= 1e-4 else float(good > bad))
        found = printed["by_paradigm"][paradigm.name]
        assert found["accuracy"] == pytest.approx(np.mean(shares))
    # The vocabulary is uncased.
    assert (
        printed["by_paradigm"]["principle_A_case_1"]["ties"] == printed["over_pairs"]["ties"] == 1
    )
    assert [printed[name] for name in ("suite", "method", "step")] == ["blimp", "pll", 0]
    lines = [json.loads(line) for line in (output / "sentences.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    (line,) = (line for line in lines if line["sentence_bad"] == "We saw he.")
    score = bert.score([line["sentence_good"]])[0]
    assert line["score_good"] == pytest.approx(score.total, abs=1e-5)
    assert line["num_tokens_good"] == len(score.tokens)

    assert main([*command, f"--suite=blimp:{blimp}", "--method=within-word"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "syntax_semantics, binding" in lines
    (tmp_path / "dev.tsv").write_text("s\t1\t\tWe are at peace.\ns\t0\t\tPeace at.\n")
    assert main([*command, f"--suite=cola:{tmp_path / 'dev.tsv'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "2 sentences, 50.0% of them acceptable"


class Totals:
    """A suite that tells the scores of its sentences."""

    def __init__(self, texts):
        self.texts = texts

    def results(self, totals, counts):
        found = {f"score/{n}": total for n, total in enumerate(totals)}
        return SimpleNamespace(chance=0.5, metrics=lambda: found | {"tokens": counts.sum()})


@pytest.mark.parametrize("method", ["pll", "mntp", "causal"])
def test_scores_on_a_mesh(model, method):
    """In training, sentences have the same scores as afterwards, whatever the layout and dtype."""
    texts = ["", *(f"The Union is strong {'and free ' * n}at last." for n in range(20))]
    texts.append("peace " * 200)  # is cut
    halves = {"first": Totals(texts[:11]), "second": Totals(texts[11:])}
    mesh, numerics = (
        Layout(data=2, fsdp=2, tensor=2).mesh(),
        Numerics(compute_dtype="bfloat16", remat="none"),
    )
    numerics = exact(numerics)
    architecture = model.architecture
    parts = parts_of(model.params)
    structure = build_model(architecture, numerics, parallelism(mesh, numerics), parts=parts)
    sizes = {"longest_row": 128, "batch_tokens": 2048}
    score = SuiteScores(halves, model.tokenizer, structure, numerics, mesh, **sizes, method=method)
    found = score(rules.put_params(model.params, mesh, structure.axes))
    expected = TrainedBert(model).score(texts, method)
    names = [f"first_score/{n}" for n in range(11)] + [f"second_score/{n}" for n in range(11)]
    totals = [score.total for score in expected]
    np.testing.assert_allclose([found[name] for name in names], totals, atol=2e-4)
    counted = found["first_tokens"] + found["second_tokens"]
    assert counted == sum(len(score.tokens) for score in expected)


def test_during_a_run(sotu_store, blimp, tmp_path, capsys):
    """Lines of their own, the same as after the run; how and what to score may change."""
    (tmp_path / "dev.tsv").write_text("s\t1\t\tWe are at peace.\ns\t0\t\tPeace at.\n")
    suites = (f"blimp:{blimp}", f"cola:{tmp_path / 'dev.tsv'}")
    fields = {"steps": 4, "eval_every": 4, "eval_suites_every": 2, "eval_suites": suites}
    fields |= {"model.num_layers": 1, "optimizer.gradient_accumulation": 1}
    assert pretrain(recipe(sotu_store, **fields), tmp_path / "run")
    assert "step 2 suites  blimp " in capsys.readouterr().out
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines if line["split"] == "suites"] == [2, 4]
    (baseline,) = (line for line in lines if line["split"] == "baseline")
    assert baseline["blimp_accuracy"] == baseline["cola_dev_auc"] == 0.5
    last = next(line for line in lines if line["split"] == "suites" and line["step"] == 4)
    found = evaluate_suite(tmp_path / "run", suites[0])
    assert last["blimp_accuracy"] == pytest.approx(found["over_paradigms"]["accuracy"])
    for name, share in found["by_field"].items():
        assert last[f"blimp_accuracy/{name}"] == pytest.approx(share["accuracy"])
    assert last["cola_dev_auc"] in (0, 1)  # of one sentence and another

    fields |= {"steps": 6, "eval_suites": suites[:1], "eval_suite_pairs": 1, "eval_suites_every": 0}
    assert pretrain(recipe(sotu_store, **fields), tmp_path / "run")
    lines = [line for line in read_metrics(tmp_path / "run") if line["split"] == "suites"]
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert "cola_dev_auc" not in lines[-1]
    assert _panels(read_metrics(tmp_path / "run"))["blimp_accuracy"] == "blimp_accuracy (%)"


@pytest.mark.parametrize(
    ("suites", "message"),
    [
        (("blimp",), "config.eval_suites: 'blimp': must be one of blimp:PATH"),
        (("zorro:a", "zorro:b"), "config.eval_suites: two suites are called zorro: leave one out"),
        (("blimp:{tmp}",), "no paradigm: a folder without a .jsonl file"),
    ],
)
def test_bad_suites_of_a_recipe(sotu_store, tmp_path, suites, message):
    suites = tuple(suite.format(tmp=tmp_path) for suite in suites)
    with pytest.raises(UserError, match=re.escape(message)):
        pretrain(recipe(sotu_store, eval_suites=suites), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--suite=blimp:{tmp} --store=x", "--store does not go with --suite"),
        ("--suite=blimp:{tmp} --data=test", "--data does not go with --suite"),
        ("--suite=blimp:{tmp} --config.task.labels=x", "--config.task.labels=x does not go with"),
        ("--output={tmp}", "--output is for a --suite, --perturb or --checklist"),
        ("--method=pll", "--method is for a --suite"),
    ],
)
def test_flags_that_do_not_go_together(tmp_path, capsys, arguments, message):
    command = ["evaluate", f"--workdir={tmp_path}", *arguments.format(tmp=tmp_path).split()]
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
