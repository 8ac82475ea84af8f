"""Log-probabilities from any server with `/v1/completions` that echoes a prompt of tokens, and `/tokenize`, as vLLM."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson

from engine.connection import Client
from engine.failures import from_answer
from penstock.errors import EngineError, EngineRefused, ModelNotFound, NotFound, PenstockError

TIMEOUT_S = 600
LIST_TIMEOUT_S = 10


class Served:
    """`base_url` with or without the `/v1` that OpenAI's clients want."""

    def __init__(self, base_url: str, model: str, api_key: str | None = None) -> None:
        self.model = model
        self._client = Client(rooted(base_url), api_key)

    async def tokens(self, text: str) -> list[int]:
        try:
            found = await self._post("/tokenize", {"prompt": text})
        except ModelNotFound:
            raise
        except NotFound as error:
            raise NotFound(
                f"/tokenize: {error.message}. The perplexity of a served model needs a server that has it (vLLM, "
                "Penstock), or the folder of the weights as --model"
            ) from error
        return list(found["tokens"])

    async def text(self, tokens: Sequence[int]) -> str:
        return str((await self._post("/detokenize", {"tokens": list(tokens)}))["prompt"])

    async def logprobs(self, tokens: Sequence[int]) -> list[float]:
        """Nothing is generated: `echo` with `max_tokens` 0 scores the prompt alone."""
        asked = {"prompt": list(tokens), "max_tokens": 0, "echo": True, "logprobs": 1, "temperature": 0}
        answer = await self._post("/v1/completions", asked)
        try:
            first, *found = answer["choices"][0]["logprobs"]["token_logprobs"]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise EngineError("the server tells no log-probabilities of the prompt (`echo` with `logprobs`)") from error
        found = found[: len(tokens) - 1]  # some servers generate a token all the same
        if first is not None or len(found) != len(tokens) - 1 or not all(isinstance(one, float | int) for one in found):
            raise EngineError(
                f"the server told {len(found) + 1} log-probabilities for a prompt of {len(tokens)} tokens; it must "
                "take prompts of tokens and echo them"
            )
        return [float(one) for one in found]

    def close(self) -> None:
        self._client.close()

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        said = orjson.dumps({"model": self.model, **body})
        answer = await self._client.ask("POST", path, said, timeout_s=TIMEOUT_S)
        if answer.status != 200:
            raise from_answer(answer.status, answer.body)
        try:
            found = orjson.loads(answer.body)
        except orjson.JSONDecodeError:
            found = None
        if not isinstance(found, dict):
            raise EngineError(f"the server's answer on {path} is no JSON object")
        return found


class Behind(NamedTuple):
    """What a server says is behind a name: which model, and, where it is Penstock, of what its answers are composed."""

    served: str | None = None
    composition: str | None = None


async def what_is_served(base_url: str, model: str, api_key: str | None = None) -> Behind:
    """What the server says in its list of models: `version` as Penstock has it, or `root` as vLLM, and Penstock's
    `composition`; None where it does not say, or does not answer. Raises EngineRefused for a wrong key."""
    client = Client(rooted(base_url), api_key)
    try:
        answer = await client.ask("GET", "/v1/models", timeout_s=LIST_TIMEOUT_S)
        if answer.status in (401, 403):
            raise from_answer(answer.status, answer.body)
        found: dict[str, Any] = next((one for one in orjson.loads(answer.body)["data"] if one["id"] == model), {})
        said = found.get("version") or found.get("root"), found.get("composition")
        return Behind(*(str(word) if word else None for word in said))
    except EngineRefused:
        raise
    except (PenstockError, LookupError, TypeError, ValueError, AttributeError):
        return Behind()
    finally:
        client.close()


def rooted(base_url: str) -> str:
    """`http://127.0.0.1:8000/v1/` -> `http://127.0.0.1:8000`."""
    return base_url.rstrip("/").removesuffix("/v1")
