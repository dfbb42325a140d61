"""Checklists: what is a failure, files that are refused, and the command."""

import json

import pytest
from others import write_model

import bert_jax
from bert_jax.__main__ import main
from bert_jax.errors import UserError
from bert_jax.evaluation.checklists import Case, Said, failures, read_cases, results
from bert_jax.report.robustness import checklist_table

pytestmark = pytest.mark.core

LABELS = ("bad", "good")


def said(good):
    return Said("good" if good >= 0.5 else "bad", {"good": good, "bad": 1 - good})


def fails(case, *good):
    return [text for text, _ in failures(case, [said(each) for each in good])]


def test_failures():
    mft = Case("negation", "MFT", text="not bad", label="good")
    assert fails(mft, 0.6) == []
    assert fails(mft, 0.4) == ["not bad"]
    inv = Case("typos", "INV", texts=("a", "b", "c"))
    assert fails(inv, 0.9, 0.6, 0.5) == []
    assert fails(inv, 0.9, 0.4, 0.6) == ["b"]
    up = Case("praise", "DIR", texts=("a", "b", "c"), label="good", direction="up")
    assert fails(up, 0.5, 0.5, 0.4) == ["c"]
    assert fails(up, 0.5, 0.7, 0.9) == []
    down = Case("praise", "DIR", texts=("a", "b"), label="bad", direction="down", tolerance=0.2)
    assert fails(down, 0.5, 0.31) == []
    assert fails(down, 0.5, 0.29) == ["b"]


def test_results():
    cases = [
        Case("b", "MFT", text="x", label="good"),
        Case("a", "INV", texts=("x", "y", "z")),
        Case("b", "MFT", text="y", label="good"),
    ]
    found = results(cases, [[said(0.1)], [said(0.1), said(0.9), said(0.9)], [said(0.9)]])
    assert list(found["tests"]) == ["b", "a"]
    b, a = found["tests"].values()
    assert b == {
        "type": "MFT",
        "cases": 2,
        "failed": 1,
        "failures": [{"text": "x", "why": "bad instead of good"}],
    }
    assert (a["cases"], a["failed"], len(a["failures"])) == (1, 1, 2)
    assert a["failures"][0]["why"] == "good instead of bad as for 'x'"
    lines = list(checklist_table(found))
    assert lines[1].split() == ["b", "MFT", "2", "1", "50.0%"]
    assert lines[2].split() == ["a", "INV", "1", "1", "100.0%"]
    assert lines[4:7] == ["b:", "  x", "    bad instead of good"]


MFT = {"test": "t", "type": "MFT", "text": "x", "label": "good"}
DIR = {"test": "t", "type": "DIR", "texts": ["x", "y"], "label": "good", "direction": "up"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (MFT | {"type": "mft"}, "line 2: field type: Invalid enum value 'mft'"),
        (MFT | {"label": "fine"}, "line 2: label 'fine' is none of bad, good"),
        (MFT | {"direction": "up"}, "line 2: a case of type MFT has no field direction"),
        (MFT | {"lable": "good"}, "line 2: a case of type MFT has no field lable"),
        (MFT | {"text": 3}, "line 2: field text: expected str"),
        ({"test": "t", "type": "MFT", "text": "x"}, "line 2: .* type MFT needs the field label"),
        (DIR | {"texts": ["x"]}, "line 2: texts needs two or more"),
        (DIR | {"direction": "left"}, "line 2: field direction: Invalid enum value 'left'"),
        (DIR | {"tolerance": 2}, r"line 2: tolerance 2.* must be from 0 to below 1"),
        ({"test": "t", "type": "INV", "texts": ["x", "y"]}, "line 2: 't' is a test of type MFT"),
        ([], "line 2: "),
    ],
)
def test_a_wrong_line(tmp_path, value, message):
    path = tmp_path / "cases.jsonl"
    path.write_text(f"{json.dumps(MFT)}\n{json.dumps(value)}\n")
    with pytest.raises(UserError, match=message):
        read_cases(path, LABELS)


def test_wrong_files(tmp_path):
    path = tmp_path / "cases.jsonl"
    with pytest.raises(UserError, match=r"cases\.jsonl: no such file"):
        read_cases(path, LABELS)
    for content, message in (("\n", "no cases"), ("{", "line 1: not JSON")):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            read_cases(path, LABELS)


def test_command(tmp_path, capsys):
    model = write_model(tmp_path / "model", "sequence", labels=LABELS)
    bert = bert_jax.load(model)
    texts = ["good film", "bad film", "the cat sat"]
    chance = {text: found["good"] for text, found in zip(texts, bert.classify(texts))}
    cases = [MFT | {"test": "words", "text": text} for text in texts]
    cases += [{"test": "case", "type": "INV", "texts": [text, text.upper()]} for text in texts]
    cases += [DIR | {"test": "better", "texts": texts}]
    path, output = tmp_path / "cases.jsonl", tmp_path / "out"
    path.write_text("\n".join(map(json.dumps, cases)) + "\n\n")
    arguments = ["evaluate", f"--workdir={model}", f"--checklist={path}"]
    assert main([*arguments, "--json", f"--output={output}"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((output / "checklist.json").read_text())
    failed = {name: test["failed"] for name, test in result["tests"].items()}
    assert failed == {
        "words": sum(found < 0.5 for found in chance.values()),
        "case": 0,
        "better": any(chance[text] < chance[texts[0]] for text in texts),
    }
    assert main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["type", "cases", "failed", "rate"]
    tagger = write_model(tmp_path / "tagger", "token", labels=("O", "B-X"))
    assert main(["evaluate", f"--workdir={tagger}", f"--checklist={path}"]) == 2
    assert "no pooler and no sequence_classifier" in capsys.readouterr().err
