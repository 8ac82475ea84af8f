"""The configuration: one tree, from one YAML file, the environment above it.

`PENSTOCK_GATEWAY__PORT=9000` overrides `gateway: {port: ...}`: double underscores lead down the tree, in lower case.
A mapping whose keys matter in their case is given whole, as JSON: `PENSTOCK_ENGINES__BASE__ENV='{"HF_TOKEN": "..."}'`.
A key that does not exist is an error which names the file, the line and the nearest key that does.
"""

import difflib
import math
import re
from collections.abc import Mapping
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from penstock.addresses import is_discovered, why_not
from penstock.errors import StartError
from penstock.gates import Gate
from penstock.references import FORM, Reference, is_reference

ENV_PREFIX = "PENSTOCK_"
DEMO = {"engines": {"base": {"model": "demo"}}, "models": {"demo": {"engine": "base"}}}
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class WrongAt(ValueError):
    """What is wrong between sections, and where that is to be mended."""

    def __init__(self, loc: tuple[str, ...], message: str) -> None:
        super().__init__(message)
        self.loc = loc


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Gateway(Section):
    """The HTTP side."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    workers: int = Field(1, ge=1, description="processes that answer on the port")
    keys: list[SecretStr] = Field(default=[], description="API keys that may call; none: loopback only")
    max_body_bytes: int = Field(32 * 2**20, ge=1024)
    max_answers_bytes: int = Field(
        2**30, ge=2**16, description="of a process's large answers that are not whole yet, or not read; above it, 503"
    )
    receive_timeout_s: float = Field(
        30, gt=0, description="how long a request's head may take to come, and its body beyond a second a kilobyte"
    )
    engine_wait_s: float = Field(300, ge=0, description="how long a request waits for an engine that is starting")
    first_byte_timeout_s: float = Field(
        30, gt=0, description="a stream whose head takes longer is asked for at another replica"
    )
    first_token_timeout_s: float = Field(
        600, gt=0, description="an engine that says nothing for longer is given up on: no token, no whole answer"
    )
    stall_timeout_s: float = Field(120, gt=0, description="the longest silence inside a stream")
    ready_delay_s: float = Field(
        0, ge=0, description="how long SIGTERM only turns /ready to 503, for a load balancer that polls it to notice"
    )
    shutdown_s: float = Field(30, ge=0, description="how long running requests may go on after that")
    guards: str | None = Field(None, description="the list in `guards` that every request to any model passes first")

    @field_validator("keys")
    @classmethod
    def keys_are_long(cls, keys: list[SecretStr]) -> list[SecretStr]:
        if any(len(key.get_secret_value()) < 16 for key in keys):
            raise ValueError("a key needs at least 16 characters; `openssl rand -hex 24` makes one")
        return keys


class State(Section):
    """Where what outlasts a process is kept: a database, and for limits across processes Redis."""

    database: SecretStr | None = Field(
        None,
        description="sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME [default: penstock.db in the home]",
    )
    redis: SecretStr | None = Field(None, description="redis://HOST:PORT/0: limits hold across processes and gateways")
    redis_lost: Literal["open", "closed"] = Field(
        "open", description="while Redis does not answer, requests go on without shared limits, or are refused (503)"
    )
    pepper: SecretStr | None = Field(
        None, description="the secret under which keys are hashed [default: a file in the home, made when needed]"
    )

    @field_validator("database", "redis")
    @classmethod
    def urls_can_be_used(cls, url: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if url is not None:
            from penstock.state_urls import check_redis, database_of

            try:
                (check_redis if info.field_name == "redis" else database_of)(url.get_secret_value())
            except StartError as error:
                raise ValueError(re.sub(r"^state\.\w+:? ", "", error.message)) from None
        return url

    @field_validator("pepper")
    @classmethod
    def pepper_is_long(cls, pepper: SecretStr | None) -> SecretStr | None:
        if pepper is not None and len(pepper.get_secret_value()) < 32:
            raise ValueError("a pepper needs at least 32 characters; `openssl rand -hex 32` makes one")
        return pepper


class Registry(Section):
    """Where the files of registered models are kept; what is said of them is in the database."""

    artifacts: str | None = Field(
        None, description="a directory, or an fsspec URL such as s3://BUCKET/PREFIX [default: artifacts in the home]"
    )

    adapters: str | None = Field(
        None, description="a directory that the engines in `urls` read adapters from, each in NAME@VERSION"
    )

    @field_validator("artifacts", "adapters")
    @classmethod
    def places_are_somewhere(cls, place: str | None) -> str | None:
        if place is not None and not place.strip():
            raise ValueError("name a directory or a URL, or leave it out")
        return place


class Admin(Section):
    """The admin API, on a port of its own."""

    host: str = "127.0.0.1"
    port: int | None = Field(None, ge=0, le=65535, description="without one there is no admin API")
    key: SecretStr | None = Field(None, description="its own key, beside API keys with the scope `admin`")

    @field_validator("key")
    @classmethod
    def key_is_long(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and len(key.get_secret_value()) < 16:
            raise ValueError("a key needs at least 16 characters; `openssl rand -hex 24` makes one")
        return key


class Policy(Section):
    """What a request may ask for, checked before any engine sees it. None: no limit of ours."""

    max_n: int | None = Field(8, ge=1)
    max_tokens: int | None = Field(None, ge=1, description="the largest max_tokens, and its value where none is given")
    max_prompt_chars: int | None = Field(None, ge=1, description="a quick bound on prompts: 4 characters are a token")
    max_prompts: int | None = Field(1024, ge=1, description="of one request for completions; vLLM's own bound")
    max_inputs: int | None = Field(2048, ge=1, description="texts that one request embeds, or ranks or scores")
    max_stops: int = Field(4, ge=0)
    max_stop_chars: int = Field(256, ge=1)
    max_schema_depth: int = Field(32, ge=1)
    max_schema_bytes: int = Field(64 * 2**10, ge=1)
    max_pattern_chars: int = Field(512, ge=1)
    max_parts: int = Field(64, ge=1, description="pieces of media in a request")
    max_media_bytes: int = Field(16 * 2**20, ge=0)
    max_pixels: int = Field(64 * 2**20, ge=1, description="of all images of a request, as they will be unpacked")
    unknown_fields: Literal["pass", "refuse"] = Field("refuse", description="fields that no table here names")
    media_hosts: list[str] = Field([], description="where media may be fetched from, beside `data:` URLs")
    cache_salt: bool = Field(True, description="no tenant can tell from an answer's speed what another has asked")


class ResponseCache(Section):
    """Answers kept for equal, deterministic requests of the same tenant."""

    enabled: bool = False
    ttl_s: float = Field(600, gt=0)
    max_bytes: int = Field(64 * 2**20, ge=1)


class Probe(Section):
    """How an engine is found to be alive: it makes progress, or answers a one-token generation in time."""

    interval_s: float = Field(5, gt=0)
    timeout_s: float = Field(20, gt=0)
    busy_s: float = Field(300, ge=0, description="how long it may compute, as in a long prefill, without a token")
    failures: int = Field(2, ge=1, description="probes in a row that must fail before a restart")
    start_timeout_s: float = Field(1800, gt=0, description="from the process's start to its first token")


class Routing(Section):
    """Which replica takes a request, and what happens when it fails."""

    affinity: Literal["prefix", "off"] = Field("prefix", description="to the replica that has seen how a prompt begins")
    affinity_factor: float = Field(2, ge=1, description="how far above the least loaded replica that one may be loaded")
    kv_events: bool = Field(False, description="ask for tokens and follow the engines' KV events: exact, at a price")
    retry_share: float = Field(0.2, ge=0, le=1, description="the share of the running requests that may be retries")
    hedge_after_s: float | None = Field(None, gt=0, description="a second replica is asked when the first is so slow")
    breaker_failures: int = Field(5, ge=1, description="failures in a row after which a replica is left alone")
    breaker_open_s: float = Field(1, gt=0, description="for how long at first; doubling, to half a minute")


class Script(Section):
    """The `options` of a scripted engine."""

    answers: list[str] = Field(["This is the scripted engine. You wrote: {prompt}"], min_length=1)
    pace_s: float = Field(0, ge=0, description="between two words")


class Engine(Section):
    """A pool of identical replicas: started and supervised here (`model`), or running elsewhere (`urls`)."""

    kind: Literal["scripted"] | None = Field(None, description="`scripted`: set answers, without any model")
    model: str | None = Field(
        None, description="`demo`, a directory, registry:NAME@ALIAS, or a Hugging Face id; with urls: its name there"
    )
    urls: dict[str, float] = Field({}, description="where it runs: a list, or a mapping of addresses to weights")
    api_key: SecretStr | None = Field(None, description="sent to the servers in `urls`")
    replicas: int = Field(1, ge=1)
    device: Literal["auto", "cpu", "gpu"] = "auto"
    options: dict[str, Any] = Field(default={}, description="vLLM's own flags by name, such as max-model-len: 4096")
    env: dict[str, SecretStr] = Field(default={}, description="the environment of the engine's process")
    probe: Probe = Probe()
    routing: Routing = Routing()
    stop_s: float = Field(20, ge=0, description="how long the engine may drain after SIGTERM before SIGKILL")

    @field_validator("urls", mode="before")
    @classmethod
    def urls_have_weights(cls, urls: Any) -> Any:
        """A plain list is one of equal weights."""
        return dict.fromkeys(urls, 1.0) if isinstance(urls, list) else urls

    @field_validator("urls")
    @classmethod
    def urls_are_reachable_in_principle(cls, urls: dict[str, float]) -> dict[str, float]:
        for url, weight in urls.items():
            if is_discovered(url):
                if why := why_not(url):
                    raise ValueError(why)
            elif not is_address(url):
                raise ValueError(
                    f"{url!r} is no address: write http://HOST:PORT, unix:/PATH, dns://HOST:PORT "
                    "or kubernetes://NAMESPACE/SERVICE:PORT"
                )
            if not 0 < weight < math.inf:
                raise ValueError(f"{url!r}: a weight is a number above 0")
        return {plain(url): weight for url, weight in urls.items()}

    @field_validator("api_key")
    @classmethod
    def api_key_fits_into_a_header(cls, key: SecretStr | None) -> SecretStr | None:
        if key and not (key.get_secret_value().isascii() and key.get_secret_value().isprintable()):
            raise ValueError("a key is of printable ASCII characters")
        return key

    @model_validator(mode="after")
    def is_one_kind(self) -> Self:
        if self.kind == "scripted":
            if self.model or self.urls:
                raise ValueError("a scripted engine has neither `model` nor `urls`")
            Script(**self.options)
            return self
        if not self.urls and not self.model:
            raise ValueError("an engine needs `model` (started here) or `urls` (running elsewhere)")
        if self.urls and (self.options or self.env or self.replicas != 1 or self.device != "auto"):
            raise ValueError("`options`, `env`, `device` and `replicas` are for engines started here, not for `urls`")
        if self.model and not self.urls and is_reference(self.model):
            Reference.of(self.model)
        if self.api_key and not self.urls:
            raise ValueError("`api_key` is for `urls`; an engine started here is reached by its socket alone")
        return self


MOST_NAME_CHARS = 512
"""As many as the ledger has room for."""


class Model(Section):
    """A served model: the name clients ask for."""

    engine: str
    adapter: str | None = Field(None, description="registry:NAME@ALIAS of a LoRA adapter made for the engine's model")
    fallback: str | None = Field(None, description="the served model that answers what this one's engine cannot")
    steps: list[dict[str, dict[str, Any]]] = Field(
        [], description="what a request passes before the engine, in this order: `penstock steps` lists them"
    )
    guards: str | None = Field(None, description="the list in `guards` that every request to it passes first")
    budget_tokens: int | None = Field(None, ge=1, description="generated for one answer, by all calls of its steps")
    rpm: int | None = Field(None, ge=1, description="requests a minute, of all callers together")
    tpm: int | None = Field(None, ge=1, description="tokens a minute, prompts and answers, of all callers together")
    concurrent: int | None = Field(None, ge=1, description="how many requests run at once; more wait in a queue")
    queue: int = Field(256, ge=0, description="how many may wait; more are refused (503)")
    queue_s: float = Field(30, gt=0, description="how long one may wait")

    @field_validator("steps", mode="before")
    @classmethod
    def steps_are_listed(cls, steps: Any) -> Any:
        return listed(steps)

    @field_validator("adapter")
    @classmethod
    def adapter_is_registered(cls, adapter: str | None) -> str | None:
        if adapter is not None:
            if not is_reference(adapter):
                raise ValueError(f"{adapter[:240]!r} is no registered adapter: {FORM}")
            Reference.of(adapter)
        return adapter


def listed(steps: Any) -> Any:
    """[pii, {self_refine: {rounds: 1}}, {instruct: null}] -> each as {NAME: OPTIONS}. Raises ValueError."""
    if not isinstance(steps, list):
        raise ValueError("a list, such as [{self_refine: {rounds: 1}}]")
    return [step_of(step) for step in steps]


def step_of(step: Any) -> dict[str, Any]:
    if isinstance(step, str):
        return {step: {}}
    if not isinstance(step, dict) or len(step) != 1:
        raise ValueError(f"a step is NAME or {{NAME: {{OPTION: VALUE}}}}, not {str(step)[:80]}")
    ((name, options),) = step.items()
    if name == "guard" and isinstance(options, str):
        options = {"name": options}
    if options is not None and not isinstance(options, dict):
        raise ValueError(f"the options of {name} are {{OPTION: VALUE}}, not {str(options)[:80]}")
    return {str(name): {} if options is None else options}


class Log(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    style: Literal["auto", "json", "text"] = "auto"


class Config(BaseSettings):
    """The whole tree."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix=ENV_PREFIX, env_nested_delimiter="__", env_ignore_empty=True
    )

    gateway: Gateway = Gateway()
    state: State = State()
    registry: Registry = Registry()
    admin: Admin = Admin()
    policy: Policy = Policy()
    response_cache: ResponseCache = ResponseCache()
    engines: dict[str, Engine] = {}
    models: dict[str, Model] = {}
    guards: dict[str, list[dict[str, dict[str, Any]]]] = Field(
        {}, description="policies by name: what models and keys that name one have their requests and answers pass"
    )
    files: str | None = Field(
        None, description="the directory of the files that steps name [default: the configuration's own]"
    )
    gates: dict[str, Gate] = Field(
        {}, description="by MODEL@ALIAS, MODEL or `default`: what a version must show before the alias moves there"
    )
    log: Log = Log()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)  # `load` lays the environment between the file and the command line

    def revealed(self) -> dict[str, Any]:
        """The tree as plain data with its secrets in the clear, from which another process makes the same one."""
        tree: dict[str, Any] = uncovered(self.model_dump())
        return tree

    @field_validator("guards", mode="before")
    @classmethod
    def guards_are_listed(cls, guards: Any) -> Any:
        return {name: listed(steps) for name, steps in guards.items()} if isinstance(guards, dict) else guards

    @model_validator(mode="after")
    def models_name_engines(self) -> Self:
        if not self.models:
            raise ValueError("no model is served: add `models: {NAME: {engine: ENGINE}}`")
        if long := [name for name in self.models if len(name) > MOST_NAME_CHARS]:
            raise ValueError(f"models.{long[0][:40]}...: a name has {MOST_NAME_CHARS} characters at most")
        self._guards_are_known(self.gateway.guards, ("gateway", "guards"))
        for name, model in self.models.items():
            if model.engine not in self.engines:
                unknown = f"unknown engine {model.engine!r}{nearest(model.engine, self.engines)}"
                raise WrongAt(("models", name, "engine"), unknown)
            if model.fallback is not None:
                self._fallbacks_end(name)
            if model.adapter is not None:
                self._can_have_adapters(name, self.engines[model.engine])
            self._guards_are_known(model.guards, ("models", name, "guards"))
        return self

    def _guards_are_known(self, name: str | None, where: tuple[str, ...]) -> None:
        if name is not None and name not in self.guards:
            raise WrongAt(where, f"unknown guards {name!r}{nearest(name, self.guards)}")

    def _can_have_adapters(self, name: str, engine: Engine) -> None:
        here = ("models", name, "adapter")
        if engine.kind == "scripted":
            raise WrongAt(here, "a scripted engine has no adapters")
        if engine.urls and not self.registry.adapters:
            raise WrongAt(
                here,
                "an engine that runs elsewhere reads adapters from a directory that it shares with this gateway: "
                "set registry.adapters to it, and start the engine with VLLM_LORA_RESOLVER_CACHE_DIR there",
            )

    def _fallbacks_end(self, name: str) -> None:
        seen = [name]
        while (fallback := self.models[seen[-1]].fallback) is not None:
            here = ("models", seen[-1], "fallback")
            if fallback not in self.models:
                raise WrongAt(here, f"unknown fallback {fallback!r}{nearest(fallback, self.models)}")
            if fallback in seen:
                raise WrongAt(here, f"fallbacks go round in a circle: {' -> '.join([*seen, fallback])}")
            seen.append(fallback)


def uncovered(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: uncovered(part) for name, part in value.items()}
    if isinstance(value, list):
        return [uncovered(part) for part in value]
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def plain(url: str) -> str:
    """As a base for paths: http://host:8000/v1/ -> http://host:8000."""
    return url.rstrip("/").removesuffix("/v1") if url.startswith("http") else url


def is_address(url: str) -> bool:
    """http://HOST, http://HOST:PORT, the same with https, or unix:/PATH."""
    if url.startswith("unix:/"):
        return True
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def nearest(word: str, known: Mapping[str, Any] | list[str]) -> str:
    """`pi`, [`pii`, `json`] -> `, did you mean 'pii'?`; empty if nothing is near."""
    found = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean {found[0]!r}?" if found else ""
