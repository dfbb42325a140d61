"""Serving over HTTP: requests share batches, a wrong input is the problem of its request alone."""

import asyncio
import importlib.util
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from bert_jax.errors import UserError

pytest.importorskip("starlette")
httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")

SCRIPT = Path(__file__).parents[1] / "launch" / "serve.py"


class Entity(NamedTuple):
    text: str
    score: np.float32


class Bert:
    """Stands for a model; keeps the batches that it is given."""

    def __init__(self):
        self.batches = []

    def classify(self, texts):
        self.batches.append(list(texts))
        if "bad" in texts:
            raise UserError("a text is bad")
        return [{"long": len(text) / 10} for text in texts]

    def encode(self, texts):
        return np.array([[len(text), 0.5] for text in texts], np.float32)

    def tag(self, texts):
        return [[Entity(text[0], np.float32(0.5))] for text in texts]

    def next_sentence(self, pairs):
        assert all(isinstance(pair, tuple) for pair in pairs)
        return np.array([0.25] * len(pairs), np.float32)

    fill_mask = answer = classify


@pytest.fixture
def serve():
    spec = importlib.util.spec_from_file_location("serve", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def post(serve, bert, *requests):
    """The statuses and contents of requests that are sent together."""

    async def send():
        app = serve.application(bert, wait=0.05)
        transport = httpx.ASGITransport(app=app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://x") as client,
        ):
            found = await asyncio.gather(*(client.post(f"/{p}", json=j) for p, j in requests))
        return [(each.status_code, each.json()) for each in found]

    return asyncio.run(send())


def test_requests_share_a_batch(serve):
    bert = Bert()
    found = post(
        serve,
        bert,
        ("classify", {"inputs": ["one", "three"]}),
        ("classify", {"inputs": ["seventeen"]}),
        ("encode", {"inputs": ["four"]}),
        ("tag", {"inputs": ["Ada"]}),
        ("next_sentence", {"inputs": [["A.", "B."]]}),
    )
    assert found == [
        (200, {"outputs": [{"long": 0.3}, {"long": 0.5}]}),
        (200, {"outputs": [{"long": 0.9}]}),
        (200, {"outputs": [[4.0, 0.5]]}),
        (200, {"outputs": [[{"text": "A", "score": 0.5}]]}),
        (200, {"outputs": [0.25]}),
    ]
    assert bert.batches == [["one", "three", "seventeen"]]


def test_a_wrong_input_is_that_of_its_request(serve):
    requests = [("classify", {"inputs": [text]}) for text in ("good", "bad")]
    good, bad = post(serve, Bert(), *requests)
    assert good == (200, {"outputs": [{"long": 0.4}]})
    assert bad == (400, {"error": "a text is bad"})


@pytest.mark.parametrize("text", ["good", "bad"])
def test_one_who_has_gone_does_not_stop_the_others(serve, text):
    async def ask():
        batcher = serve.Batcher(Bert().classify, wait=0.01)
        running = asyncio.create_task(batcher.run())
        gone = asyncio.create_task(batcher([text]))
        await asyncio.sleep(0)
        gone.cancel()
        first = await batcher(["one"])
        second = await batcher(["three"])
        running.cancel()
        return [*first, *second]

    assert asyncio.run(asyncio.wait_for(ask(), 30)) == [{"long": 0.3}, {"long": 0.5}]


@pytest.mark.parametrize(
    "content", [{}, [], {"inputs": []}, {"inputs": "x"}, {"inputs": [1]}, {"inputs": [["a"]]}]
)
def test_other_forms_are_refused(serve, content):
    ((status, found),) = post(serve, Bert(), ("classify", content))
    assert status == 400
    assert found["error"].startswith(("send {", "an input is a text"))
