"""Answers over HTTP from a model: an example of serving, in which requests share batches.

    pip install -e '.[serve]'
    python launch/serve.py exported --port=8000
    curl --json '{"inputs": ["What a waste."]}' localhost:8000/classify

The model is anything that `bert_jax.load` reads, such as an export. Paths are methods of it:
/encode, /classify, /tag, /fill_mask, /next_sentence and /answer. The inputs are texts, or pairs as
lists of two. Inputs of requests that arrive within a few milliseconds are computed together.
"""

import argparse
import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from bert_jax import load
from bert_jax.errors import UserError

METHODS = ("encode", "classify", "tag", "fill_mask", "next_sentence", "answer")
LARGEST = 1024  # inputs of a request


class Batcher:
    """Gathers the inputs of requests and computes them in one thread."""

    def __init__(self, method: Any, wait: float):
        """Args:
        method: a list of inputs -> a result for each.
        wait: seconds to wait for further requests.
        """
        self._method, self._wait = method, wait
        self._queue: asyncio.Queue[tuple[list[Any], asyncio.Future[list[Any]]]] = asyncio.Queue()

    async def __call__(self, inputs: list[Any]) -> list[Any]:
        """The results of a request."""
        answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        await self._queue.put((inputs, answer))
        return await answer

    async def run(self) -> None:
        """Serves until it is cancelled."""
        while True:
            requests = [await self._queue.get()]
            await asyncio.sleep(self._wait)
            while not self._queue.empty():
                requests.append(self._queue.get_nowait())
            try:
                together = [one for inputs, _ in requests for one in inputs]
                found = iter(await self._computed(together))
            except Exception:  # an input of one is wrong: find out whose, one by one
                for inputs, answer in requests:
                    await self._alone(inputs, answer)
                continue
            for inputs, answer in requests:
                results = [next(found) for _ in inputs]
                if not answer.done():  # it is, if who asked has gone
                    answer.set_result(results)

    async def _computed(self, inputs: list[Any]) -> list[Any]:
        return [plain(each) for each in await asyncio.to_thread(self._method, inputs)]

    async def _alone(self, inputs: list[Any], answer: asyncio.Future[list[Any]]) -> None:
        try:
            results = await self._computed(inputs)
        except Exception as error:
            if not answer.done():
                answer.set_exception(error)
        else:
            if not answer.done():
                answer.set_result(results)


def plain(result: Any) -> Any:
    """A result as plain values for JSON; tuples with names become objects."""
    if isinstance(result, np.ndarray | np.generic):
        return result.tolist()
    if hasattr(result, "_asdict"):
        return plain(result._asdict())
    if isinstance(result, dict):
        return {name: plain(value) for name, value in result.items()}
    return [plain(each) for each in result] if isinstance(result, list | tuple) else result


def checked(request: Any) -> list[Any]:
    """The inputs of a request: texts, or pairs of texts.

    Raises:
      UserError: it has another form.
    """
    inputs = request.get("inputs") if isinstance(request, dict) else None
    if not isinstance(inputs, list) or not 0 < len(inputs) <= LARGEST:
        raise UserError(f'send {{"inputs": [...]}} with 1 to {LARGEST:,} texts or pairs')
    for one in inputs:
        texts = one if isinstance(one, list) and len(one) == 2 else [one]
        if not all(isinstance(text, str) for text in texts):
            raise UserError("an input is a text, or a list of two texts")
    return [tuple(one) if isinstance(one, list) else one for one in inputs]


def application(bert: Any, wait: float = 0.005) -> Starlette:
    """The application that answers from a model; see the top of this file."""
    batchers = {name: Batcher(getattr(bert, name), wait) for name in METHODS}

    def route(name: str) -> Route:
        async def answer(request: Request) -> JSONResponse:
            try:
                return JSONResponse(
                    {"outputs": await batchers[name](checked(await request.json()))}
                )
            except (UserError, ValueError) as error:
                return JSONResponse({"error": str(error)}, status_code=400)

        return Route(f"/{name}", answer, methods=["POST"])

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(batcher.run()) for batcher in batchers.values()]
        yield
        for task in tasks:
            task.cancel()

    return Starlette(routes=[route(name) for name in METHODS], lifespan=lifespan)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Answers over HTTP from a model.")
    parser.add_argument("model", help="what `bert_jax.load` reads")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args(argv)
    try:
        bert = load(arguments.model)
    except UserError as error:
        parser.error(str(error))
    uvicorn.run(application(bert), host=arguments.host, port=arguments.port)


if __name__ == "__main__":
    main()
