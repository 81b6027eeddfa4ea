"""A model server behind an OpenAI-compatible API, in the terms of `workers.protocols`.

A prompt goes to `/v1/completions` as the token ids of our own template, so the server needs none; as text where it
takes no ids, or means others by them. Answers come back as token ids where the server tells them (vLLM, llama.cpp),
else their text is tokenized again.
"""

import asyncio
import json
import logging
import re
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import httpx

from workers.engine.text import token_logprob
from workers.models.template import TURN_MARKS
from workers.models.tokenizer import PROBE, Tokenizer
from workers.protocols import GenerateRequest, Refused, TokenLogprob

logger = logging.getLogger(__name__)

CONNECT_S = 5.0
REFUSALS = {400, 413, 422}  # of one request, told within a stream
BUSY = 429
MENDABLE = {401, 403, 404, 408, BUSY}  # as are all from 500 on: by time, or by those who run the server
TOP_P_OF_THE_LIKELIEST = 1e-6  # servers refuse the 0 that means this
ADAPTER = re.compile(r".+@(?P<digest>\w+)")
MARKUP = re.compile(r"<[^<>\s]+>")

Token = tuple[int, TokenLogprob | None]


class Unavailable(Exception):
    """The server gives no answer, or not all of it, and may do better later."""

    def __init__(self, message: str, *, busy: bool = False, retry_after: float = 0.0) -> None:
        super().__init__(f"the model server {message}")
        self.busy = busy  # alive, with too much to do
        self.retry_after = retry_after  # seconds


class Chunk(NamedTuple):
    """A part of an answer. The server tells `cached_tokens`, of the prompt, with the last one, if at all."""

    tokens: list[Token] = []
    finish_reason: str | None = None
    cached_tokens: int = 0


class Told(NamedTuple):
    """What a server tells of one token: the natural logarithm of its probability, and that of the likeliest."""

    id: int
    logprob: float | None
    top: dict[int, float]


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found out about a server.

    dialect: vllm answers with token ids; llama.cpp tells them beside log-probabilities; openai is whatever tells none.
    """

    model: str
    context_tokens: int
    takes_ids: bool
    dialect: Literal["vllm", "llama.cpp", "openai"]


class ModelServer:
    """Speaks to one server; see `RemoteEngine` for the parameters.

    Its methods raise `Unavailable` for what may pass or can be mended there, and `Refused` for what the server does not
    accept. Neither tells its address, for learners read them.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str,
        model: str,
        tokenizer: Tokenizer,
        stop_ids: frozenset[int],
        context_tokens: int,
        adapters_folder: Path,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise Refused("invalid_url", f"the model server's URL {url!r} begins with neither http:// nor https://")
        self.url = str(httpx.URL(url).copy_with(userinfo=b""))  # for people: without a password
        self.model = model  # its name there; empty while it is not known
        self.context_tokens = context_tokens  # the server's own, once it is known
        self.facts: Facts | None = None
        self.client = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(None, connect=CONNECT_S),
            limits=httpx.Limits(),  # the engine bounds its requests
        )
        self._configured_model = model
        self._discovering = asyncio.Lock()
        self._tokenizer = tokenizer
        self._stop_ids = stop_ids
        self._most_tokens = context_tokens
        self._adapters_folder = adapters_folder
        self._names = dict(self._control_tokens("<bos>", "<eos>", *chain(*TURN_MARKS)))

    async def answer(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        """The answer to `request`, after what is delivered of it, as it comes. Closed early, it stops the server."""
        try:
            facts = await self._discover()
            body = self._body(request, facts)
            if request.adapter is not None:
                await self._load_adapter(request.adapter)
                body["model"] = request.adapter
            async with self.client.stream("POST", "completions", json=body) as response:
                await self._check(response)
                async for event in events(response):
                    usage = event.get("usage") or {}
                    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
                    for choice in event.get("choices") or [{}]:
                        tokens = self._tokens(facts, choice, request.sampling.logprobs)
                        yield Chunk(tokens, choice.get("finish_reason"), cached)
        except httpx.LocalProtocolError:  # its text may hold the key
            raise Unavailable("cannot be asked: LYO_REMOTE_API_KEY or the URL makes no valid header") from None
        except httpx.TransportError as error:
            raise Unavailable(f"does not answer: {type(error).__name__}") from error

    # --- what the server is and has ---

    async def _discover(self) -> Facts:
        async with self._discovering:
            if self.facts is None:
                self.facts = await self._find_out()
                self.model, self.context_tokens = self.facts.model, self.facts.context_tokens
                logger.info("the model server %s: %s", self.url, self.facts)
            return self.facts

    async def _find_out(self) -> Facts:
        """Learn how to speak to the server.

        It means the same by token ids if one text has as many tokens there as here; a server may put a <bos> before it.
        """
        cards = await self._models()
        name = self._configured_model or next(iter(cards), "")
        ids = self._tokenizer.encode(PROBE)
        as_text, choice = await self._probe(name, PROBE)
        takes_ids = False
        with suppress(Refused):
            as_ids, choice = await self._probe(name, ids)
            takes_ids = as_ids == len(ids) and as_text in (len(ids), len(ids) + 1)
        card = cards.get(name, {})
        limit = card.get("max_model_len") or (card.get("meta") or {}).get("n_ctx") or self._most_tokens
        return Facts(
            model=name,
            context_tokens=min(limit, self._most_tokens),
            takes_ids=takes_ids,
            dialect="vllm" if choice.get("token_ids") else "llama.cpp" if read_llama_cpp(choice) else "openai",
        )

    async def _probe(self, model: str, prompt: str | list[int]) -> tuple[int, dict[str, Any]]:
        """How many tokens the server counts in `prompt`, and an answer of one token."""
        body = {"model": model, "prompt": prompt, "max_tokens": 1, "logprobs": 1, "return_token_ids": True}
        response = await self.client.post("completions", json=body)
        choice = (await self._field(response, "choices"))[0]
        return (response.json().get("usage") or {}).get("prompt_tokens", 0), choice

    async def _models(self) -> dict[str, dict[str, Any]]:
        """The models and adapters that the server lists, by name."""
        return {card["id"]: card for card in await self._field(await self.client.get("models"), "data")}

    async def _load_adapter(self, adapter: str) -> None:
        """Have the server load `adapter`, as vLLM can while it runs. Asked each time, for it may have restarted."""
        if adapter in await self._models():
            return
        named = ADAPTER.fullmatch(adapter)
        if not named:
            raise Refused("adapter_not_found", f"{adapter!r} is no adapter's name@digest")
        body = {"lora_name": adapter, "lora_path": str(self._adapters_folder / named["digest"])}
        response = await self.client.post("load_lora_adapter", json=body)
        if response.is_error and adapter not in await self._models():  # another request may have come first
            if response.status_code == BUSY or response.is_server_error:
                await self._check(response)
            raise Refused("adapter_not_found", f"the model server cannot load {adapter}: {message(response)}")

    async def _field(self, response: httpx.Response, name: str) -> Any:
        await self._check(response)
        try:
            return response.json()[name]
        except (ValueError, LookupError, TypeError):
            raise Unavailable(f"answers otherwise than OpenAI's API: without {name}") from None

    async def _check(self, response: httpx.Response) -> None:
        if response.is_success:
            return
        await response.aread()
        told = f"answered {response.status_code}: {message(response)}"
        if response.status_code in MENDABLE or response.is_server_error:
            raise Unavailable(told, busy=response.status_code == BUSY, retry_after=retry_after(response))
        raise Refused("remote_refused", f"the model server {told}")

    # --- requests in its terms ---

    def _body(self, request: GenerateRequest, facts: Facts) -> dict[str, Any]:
        """All that is sampled by is said, for servers have defaults of their own."""
        sampling = request.sampling
        check_length(request, facts.context_tokens)
        tokens = [*request.prompt, *request.delivered]
        schema = json.loads(sampling.json_schema) if sampling.json_schema is not None else None
        form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
        body: dict[str, Any] = {
            "model": facts.model,
            "prompt": tokens if facts.takes_ids else self._as_text(tokens),
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": sampling.max_tokens - len(request.delivered),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p or TOP_P_OF_THE_LIKELIEST,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "seed": (sampling.seed + len(request.delivered)) % 2**31,  # resumed, the same draws would come again
        }
        if facts.dialect == "vllm":
            body |= {
                "top_k": sampling.top_k,
                "min_p": sampling.min_p,
                "repetition_penalty": sampling.repetition_penalty,
                "stop_token_ids": sorted(self._stop_ids),
                "return_token_ids": True,
                "return_tokens_as_token_ids": True,
                "logprobs": sampling.logprobs,
                "response_format": form if schema is not None else None,
            }
        elif facts.dialect == "llama.cpp":
            body |= {
                "top_k": sampling.top_k,
                "min_p": sampling.min_p,
                "repeat_penalty": sampling.repetition_penalty,
                "repeat_last_n": facts.context_tokens,
                "logprobs": max(1, sampling.logprobs or 0),
                "json_schema": schema,
            }
        elif sampling.logprobs is not None:
            raise Refused("unsupported", "the model server tells no tokens, so no log-probabilities of them")
        else:
            body |= {
                "top_k": sampling.top_k or None,  # what the standard does not have is said where it matters
                "min_p": sampling.min_p or None,
                "repetition_penalty": sampling.repetition_penalty if sampling.repetition_penalty != 1 else None,
                "stop": [self._names[token] for token in sorted(self._stop_ids)],
                "response_format": form if schema is not None else None,
            }
        return {name: value for name, value in body.items() if value is not None}

    def _as_text(self, tokens: list[int]) -> str:
        """`tokens` with their control tokens by name, but without the <bos> that servers put before a text.

        A server reads such a name as the token even where a person typed it, say to end their own turn.
        """
        for name in MARKUP.findall(self._tokenizer.decode(tokens)):
            if self._control_tokens(name):
                raise Refused("unsupported", f"the model server takes prompts as text, in which {name} has a meaning")
        parts = (self._names[t].encode() if t in self._names else self._tokenizer.token_bytes(t) for t in tokens)
        return b"".join(parts).decode(errors="replace").removeprefix("<bos>")

    def _control_tokens(self, *names: str) -> list[tuple[int, str]]:
        """The ids of those `names` that are control tokens in the vocabulary."""
        found = []
        for name in names:
            with suppress(KeyError):
                found.append((self._tokenizer.control(name), name))
        return found

    # --- answers in ours ---

    def _tokens(self, facts: Facts, choice: dict[str, Any], wanted: int | None) -> list[Token]:
        """The tokens of a chunk, with log-probabilities and so many alternatives where they are `wanted` and told."""
        if facts.dialect == "vllm":
            return [self._token(told, wanted) for told in read_vllm(choice)]
        text, tolds = choice.get("text", ""), read_llama_cpp(choice)
        if b"".join(self._tokenizer.token_bytes(told.id) for told in tolds) == text.encode():
            return [self._token(told, wanted) for told in tolds]
        return [(token, None) for token in self._tokenizer.encode(text)]

    def _token(self, told: Told, wanted: int | None) -> Token:
        if told.logprob is None or wanted is None:
            return told.id, None

        token_bytes = self._tokenizer.token_bytes
        likeliest = sorted(told.top.items(), key=lambda item: -item[1])[:wanted]
        top = tuple(token_logprob(other, token_bytes(other), value) for other, value in likeliest)
        return told.id, token_logprob(told.id, token_bytes(told.id), told.logprob, top)


def check_length(request: GenerateRequest, context_tokens: int) -> None:
    prompt, more = len(request.prompt), request.sampling.max_tokens
    if prompt + more > context_tokens:
        raise Refused(
            "context_length_exceeded",
            f"the context holds {context_tokens} tokens; {prompt} of prompt and {more} to generate are {prompt + more}",
        )


async def events(response: httpx.Response) -> AsyncGenerator[dict[str, Any], None]:
    """The server-sent events of a completion, until `[DONE]`.

    Only a line feed ends a line: httpx's own lines end at U+2028 and the like too, which JSON holds as they are.
    """
    rest = b""
    async for data in response.aiter_bytes():
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            if line[5:].strip() == b"[DONE]":
                return
            try:
                event = json.loads(line[5:])
                error = event.get("error")
            except (ValueError, AttributeError):
                raise Unavailable(f"sends what is no event of OpenAI's API: {line[:200]!r}") from None
            if isinstance(error, dict) and error.get("code") in REFUSALS:
                raise Refused("remote_refused", f"the model server refuses the request: {error}")
            if error:
                raise Unavailable(f"broke off: {error}")
            yield event


def read_vllm(choice: dict[str, Any]) -> list[Told]:
    ids = choice.get("token_ids") or []
    logprobs = choice.get("logprobs")
    if not logprobs:
        return [Told(token, None, {}) for token in ids]
    tops = ({int(name.removeprefix("token_id:")): value for name, value in t.items()} for t in logprobs["top_logprobs"])
    return [Told(*told) for told in zip(ids, logprobs["token_logprobs"], tops, strict=True)]


def read_llama_cpp(choice: dict[str, Any]) -> list[Told]:
    """Of a character that takes several tokens only the last one is told."""
    content = (choice.get("logprobs") or {}).get("content") or ()
    return [
        Told(told["id"], told["logprob"], {top["id"]: top["logprob"] for top in told["top_logprobs"]})
        for told in content
        if "id" in told
    ]


def message(response: httpx.Response) -> str:
    """What a server says of its error."""
    try:
        error = response.json()["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, LookupError, TypeError):
        return response.text[:200] or response.reason_phrase


def retry_after(response: httpx.Response) -> float:
    """The seconds that a server asks to wait: it may name them, or a date."""
    value = response.headers.get("Retry-After", "")
    if value.isdigit():
        return float(value)
    with suppress(ValueError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0
