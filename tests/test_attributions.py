"""Attributions: beside formulas, beside captum, and as lines, page and picture."""

import html
import json
import re
import shutil
import subprocess

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import image
from others import write_model

import bert_jax
from bert_jax.__main__ import main
from bert_jax.data.wordpiece import load_wordpiece
from bert_jax.errors import UserError
from bert_jax.inference import programs
from bert_jax.inference.attributions import Explained, Layout, Target
from bert_jax.model.architecture import Architecture
from bert_jax.model.heads import SEQUENCE_CLASSIFIER, TOKEN_CLASSIFIER

pytestmark = pytest.mark.core

TEXTS = ["the cat sat on the mat.", "a bad film, and the president of new york ran"]
PAIR = ("good dog", "the dog ran")
QUESTION = ("the cat sat on", 5 * "the president of the united states sat on a mat of new york. ")
LABELS = {
    "sequence": ("negative", "neutral", "positive"),
    "token": ("O", "B-PER", "I-PER", "B-LOC", "I-LOC"),
    "answer": (),
}


@pytest.fixture(scope="module", params=LABELS)
def head(request):
    return request.param


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explained")
    return {
        head: write_model(folder / head, head, labels=labels, max_position_embeddings=128)
        for head, labels in LABELS.items()
    }


@pytest.fixture(scope="module")
def models(paths):
    return {head: bert_jax.load(path) for head, path in paths.items()}


def texts_of(head):
    return [QUESTION] if head == "answer" else TEXTS


def options_of(head):
    """Contexts and their windows are longer than other texts, so each head has one program."""
    return {"max_seq_length": 72} if head == "answer" else {}


@pytest.fixture(scope="module")
def found(head, models):
    """Attributions of each text."""
    return models[head].attributions(texts_of(head), **options_of(head))


# A model whose logits are known functions of its embeddings: every token adds `w e + e e`.
WIDTH = 4


def quadratic(table, weights):
    def encoder(params, ids, types, positions, segments, causal=None, embeddings=None):
        embeddings = table[ids] if embeddings is None else embeddings
        return jnp.stack([embeddings, embeddings])

    def classifier(params, hidden):
        return hidden @ weights + jnp.sum(hidden**2, axis=-1, keepdims=True)

    def attention(params, states, segments):
        both = jnp.tile(MAPS[:, None], (1, states.shape[1], 1, 1, 1))
        size = states.shape[2] - both.shape[-1]
        return jnp.pad(both, ((0, 0),) * 3 + ((0, size), (0, size)))

    return {"encoder": encoder, "token_classifier": classifier, "attention": attention}


MAPS = np.random.default_rng(1).dirichlet(np.ones(5), size=(3, 2, 5)).astype(np.float32)


@pytest.mark.parametrize("baseline", ["pad", "mask", "zero"])
def test_of_a_quadratic_model(baseline, tmp_path):
    """The integral has a closed form, and three points of Gauss and Legendre give it exactly."""
    write_model(tmp_path / "model")
    tokenizer = load_wordpiece(tmp_path / "model")
    random = np.random.default_rng(0)
    table = random.normal(size=(len(tokenizer.vocab), WIDTH)).astype(np.float32)
    weights = random.normal(size=(WIDTH, 3)).astype(np.float32)
    architecture = Architecture(
        vocab_size=len(tokenizer.vocab), hidden_size=WIDTH, num_heads=1, max_position_embeddings=64
    )
    options = {"steps": 3, "baseline": baseline, "num_rows": 2, "tokens_at_once": 64}
    layout = Layout(TOKEN_CLASSIFIER, 3, architecture, tokenizer, **options)
    ids = np.array([tokenizer.cls_id, 60, 61, 62, tokenizer.sep_id], np.int32)
    item = Explained(ids, 5, Target("PER", ((2, 1), (3, 1)), "cat sat", 0, 7))
    (batch,) = layout.pack([item])
    places, shares = layout.points(32)
    assert places.shape == (3, 2)
    assert shares.sum(axis=(0, 1)) == pytest.approx([1, 1])
    result = programs.attributions(
        quadratic(table, weights),
        {},
        {name: jnp.asarray(array) for name, array in batch.rows.items()},
        places,
        shares,
        head=TOKEN_CLASSIFIER,
        architecture=architecture,
        from_zero=baseline == "zero",
    )
    stop = table[ids].astype(np.float64)
    start = np.zeros_like(stop)
    if baseline != "zero":
        start = stop.copy()
        start[1:4] = table[tokenizer.mask_id if baseline == "mask" else tokenizer.pad_id]
    explained = np.array([0, 0, 1, 1, 0])

    def logits(vectors):
        return explained * (vectors @ weights[:, 1] + (vectors**2).sum(axis=1))

    expected = logits(stop) - logits(start)
    assert_close(result["integrated_gradients"][0, :5], expected)
    gradient = explained[:, None] * (weights[:, 1] + 2 * stop)
    assert_close(result["input_x_gradient"][0, :5], (gradient * stop).sum(axis=1))
    assert_close(result["score"][0], logits(stop).sum())
    assert_close(result["baseline_score"][0], logits(start).sum())
    flow = np.eye(5)
    for layer in MAPS.mean(axis=1):
        flow = (layer + np.eye(5)) / 2 @ flow
    assert_close(result["rollout"][0, :5], (flow[2] + flow[3]) / 2)


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_mean_pooling_reads_all_tokens():
    """The rollout of a head that reads the mean is the mean over its tokens."""
    architecture = Architecture(
        vocab_size=9, pooling="mean", hidden_size=4, num_heads=1, max_position_embeddings=64
    )
    tokenizer = type("Tokenizer", (), {"pad_id": 0, "mask_id": 1, "cls_id": 2, "sep_id": 3})
    options = {"steps": 1, "baseline": "pad", "num_rows": 1, "tokens_at_once": 64}
    layout = Layout(SEQUENCE_CLASSIFIER, 2, architecture, tokenizer, **options)
    item = Explained(np.array([2, 5, 6, 3], np.int32), 4, Target("good", ((0, 1),)))
    (batch,) = layout.pack([item])
    np.testing.assert_array_equal(batch.rows["read"][0], np.r_[np.full(4, 0.25), np.zeros(28)])
    assert batch.rows["target"].shape == (1, 4, 2)
    assert batch.rows["target"].sum() == batch.rows["target"][0, 0, 1] == 1
    np.testing.assert_array_equal(batch.rows["baseline_ids"][0, :5], [2, 0, 0, 3, 0])


def test_complete(head, found):
    for each in (each for of_text in found for each in of_text):
        assert each.completeness_error < 1e-3
        difference = each.score - each.baseline_score
        assert each.integrated_gradients.sum() == pytest.approx(difference, rel=1e-3)
        assert each.rollout.sum() == pytest.approx(1, abs=1e-5)
        special = [n for n, token in enumerate(each.tokens) if token in ("[CLS]", "[SEP]")]
        np.testing.assert_allclose(each.integrated_gradients[special], 0, atol=1e-6)


def test_what_is_explained(head, models, found):
    """The predicted class, entities and answer, and their logits."""
    bert, texts = models[head], texts_of(head)
    if head == "sequence":
        (likeliest,) = {next(iter(v)) for v in bert.classify(texts[:1])}
        assert [each.target.name for each in found[0]] == [likeliest]
        assert found[0][0].tokens == bert.tokens(texts[0])
        (named,) = bert.attributions([PAIR], "neutral")
        assert named[0].target.name == "neutral"
        assert named[0].b_start == named[0].tokens.index("[SEP]") + 1
        logit = {n: bert.attributions(texts[:1], n)[0][0].score for n in LABELS[head]}
        odds = np.exp(list(logit.values()))
        chances = dict(zip(logit, odds / odds.sum()))
        assert bert.classify(texts[:1])[0] == pytest.approx(chances, abs=1e-5)
    elif head == "token":
        tagged = bert.tag(texts)
        assert any(tagged)
        for entities, of_text, text in zip(tagged, found, texts):
            assert [e[:4] for e in entities] == [
                (t.name, t.text, t.start, t.end) for t in (each.target for each in of_text)
            ]
            for each in of_text:
                first = each.target.logits[0][0]
                assert text[each.target.start :].startswith(each.tokens[first])
        types = [each.target.name for each in bert.attributions(texts, "PER")[0]]
        assert types == [e.type for e in tagged[0] if e.type == "PER"]
    else:
        (answer,) = bert.answer(texts, **options_of(head))
        ((each,),) = found
        assert each.target[2:] == answer.answer[:3]
        assert each.score == pytest.approx(answer.answer.score, abs=1e-4)
        assert len(each.tokens) <= 72 < each.target.start  # in a later window
        (first, _), (last, _) = each.target.logits
        assert "".join(each.tokens[first : last + 1]) == answer.answer.text.replace(" ", "")


def test_windows_of_tags(models):
    """An entity is explained in the window in which it was found."""
    text, bert = " ".join(TEXTS * 3), models["token"]
    entities = bert.tag([text], 16)[0]
    for each, entity in zip(bert.attributions([text], max_seq_length=16)[0], entities, strict=True):
        assert len(each.tokens) <= 16
        assert each.target[2:] == entity[1:4]
        assert each.tokens[each.target.logits[0][0]] == re.match(r"\w+|\W", entity.text)[0]


def reference(head, path, each, torch):
    """Captum's attributions of one sequence, for the same baseline."""
    import captum.attr
    import transformers

    kinds = {"sequence": "SequenceClassification", "token": "TokenClassification"}
    kind = getattr(transformers, f"BertFor{kinds.get(head, 'QuestionAnswering')}")
    model = kind.from_pretrained(path, attn_implementation="eager").eval()
    tokenizer = transformers.BertTokenizerFast.from_pretrained(path)
    ids = torch.tensor([tokenizer.convert_tokens_to_ids(each.tokens)])
    types = (torch.arange(ids.shape[1]) >= each.b_start).long()[None]
    special = (ids == tokenizer.cls_token_id) | (ids == tokenizer.sep_token_id)
    baseline = torch.where(special, ids, tokenizer.pad_token_id)

    def score(ids, types):
        mask = torch.ones_like(ids)  # otherwise [PAD] would be left out of the attention
        out = model(ids, token_type_ids=types, attention_mask=mask)
        if head == "answer":
            outputs = torch.stack([out.start_logits, out.end_logits], dim=-1)
        else:
            outputs = out.logits if head == "token" else out.logits[:, None]
        return sum(outputs[:, token, output] for token, output in each.target.logits)

    layer, arguments = model.bert.embeddings, {"additional_forward_args": types}
    integral = captum.attr.LayerIntegratedGradients(score, layer)
    product = captum.attr.LayerGradientXActivation(score, layer)
    found, delta = integral.attribute(
        ids, baseline, n_steps=50, return_convergence_delta=True, **arguments
    )
    times = product.attribute(ids, **arguments)
    with torch.no_grad():
        scores = score(ids, types).item(), score(baseline, types).item()
    sums = [x.sum(dim=-1)[0].detach().numpy() for x in (found, times)]
    return *sums, *scores, abs(delta.item() / (scores[0] - scores[1]))


def test_beside_captum(head, paths, found, torch):
    pytest.importorskip("captum")
    for each in (each for of_text in found for each in of_text):
        integral, times, score, of_baseline, error = reference(head, paths[head], each, torch)
        for ours, theirs in (
            (each.integrated_gradients, integral),
            (each.input_x_gradient, times),
        ):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())
        assert each.score == pytest.approx(score, abs=1e-4)
        assert each.baseline_score == pytest.approx(of_baseline, abs=1e-4)
        assert each.completeness_error == pytest.approx(error, abs=1e-4)


def test_an_error_of_the_integral_is_told(models, caplog, monkeypatch):
    monkeypatch.setattr("bert_jax.inference.uses.attribute.FAR", -1.0)
    models["sequence"].attributions(TEXTS)
    assert "2 attributions have a completeness error above" in caplog.text
    assert "take more steps than 50" in caplog.text


@pytest.mark.parametrize(
    ("head", "options", "message"),
    [
        ("sequence", {"target": "best"}, "target='best': use one of negative, neutral, positive"),
        ("sequence", {"steps": 0}, "steps=0: must be at least 1"),
        ("sequence", {"baseline": "sep"}, "baseline='sep': use one of pad, mask, zero"),
        ("token", {"target": "ORG"}, "target='ORG': use one of LOC, PER"),
        ("answer", {"target": "x"}, "target='x': the model has no classes, leave it out"),
    ],
)
def test_wrong_arguments(head, options, message, models):
    with pytest.raises(UserError, match=re.escape(message)):
        models[head].attributions(texts_of(head), **options)


def test_a_model_in_int8_has_no_gradients(paths, tmp_path):
    bert_jax.convert(paths["sequence"], tmp_path / "int8", to="bert_jax", quantize="int8")
    with pytest.raises(UserError, match="a model in int8 has no gradients"):
        bert_jax.load(tmp_path / "int8").attributions(TEXTS)


EVIL = "the </script><b>cat</b> $x$ & film"


def test_command(paths, models, tmp_path, capsys):
    page = tmp_path / "why.html"
    arguments = ["predict", "attributions", f"--model={paths['sequence']}", f"--page={page}"]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"id": n, "text": EVIL}) + "\n" for n in range(2)))
    assert main([*arguments, str(rows), "--target=positive"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["id"] for line in lines] == [0, 1]
    (each,) = models["sequence"].attributions([EVIL], "positive")[0]
    assert lines[0]["attributions"] == [each.to_plain()]
    assert each.to_plain()["tokens"] == each.tokens
    text = page.read_text()
    assert text.count("<script") == 2
    (data,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', text, re.S)
    assert json.loads(data)["attributions"] == [each.to_plain()] * 2
    assert image.imread(page.with_suffix(".png")).shape[1] == 1200

    assert main([*arguments[:-1], "--page=why.txt", "x"]) == 2
    assert "--page=why.txt: the name must end in .html" in capsys.readouterr().err
    assert main(["predict", "attributions", f"--model={paths['answer']}", "a cat"]) == 2
    assert "1 texts on the command line: question and context" in capsys.readouterr().err


CLICKS = """
<script>
const colors = () => [...document.querySelectorAll("p.tokens span")].map(x => x.style.background);
const found = { tokens: [...document.querySelectorAll("p.tokens span")].map(x => x.textContent) };
found.integral = colors();
document.querySelectorAll(".bar button")[2].click();
found.rollout = colors();
document.body.textContent = "FOUND" + JSON.stringify(found) + "END";
</script>
"""


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs a browser")
def test_in_a_browser(models, tmp_path):
    from bert_jax.report.attributions import write_page

    (each,) = models["sequence"].attributions([EVIL], "positive")[0]
    page = tmp_path / "page.html"
    write_page(page, [each.to_plain()], title=EVIL)
    page.write_text(page.read_text().replace("</body>", f"{CLICKS}</body>"))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"file://{page}"]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=1800).stdout
    seen = json.loads(html.unescape(dom.partition("FOUND")[2].partition("END")[0]))
    assert seen["tokens"] == each.tokens
    for value, color in zip(each.integrated_gradients, seen["integral"]):
        if abs(value) > 0.1 * np.abs(each.integrated_gradients).max():
            assert color.startswith("rgba(33" if value > 0 else "rgba(178")
    assert all(color.startswith("rgba(33") for color in seen["rollout"])
