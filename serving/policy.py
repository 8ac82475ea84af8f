"""What a request may ask for, decided before any engine sees it: fields, counts, sizes, media, whose cache it shares.

`Policy(config.policy, secret).applied(path, body, caller)` takes a body whose shape has been checked. For a plain chat
it is a few look-ups; nothing in it waits, and nothing in it runs what a caller has written.
"""

import base64
import hmac
from typing import Any

from engine.affinity import CHARS_PER_TOKEN, MEDIUM_CHARS
from penstock import config
from penstock.callers import LOCAL, Caller
from penstock.config import nearest
from penstock.errors import BadRequest, Forbidden
from serving import fields
from serving.caps import BY_LIMIT, CHECKS, SHOWN_CHARS, check_batches
from serving.fetching import Fetch
from serving.media import Medium, Schema, address_of, characters, found_in, refused
from serving.schemas import check_schema

Body = dict[str, Any]

SALT_BYTES = 24
MAX_SALTS = 100_000
USUAL_COMPLETION_TOKENS = 16  # OpenAI's, and vLLM's, where /v1/completions says nothing


class Unfetched(Body):
    """A body with media that are given by address: `Policy.fetched` puts the media themselves in."""

    media: list[Medium]
    tenant: str

    @property
    def tokens(self) -> int:
        """What those that are to come are taken for, beside the prompt as it stands: as a large one that is there."""
        return sum(medium.is_remote for medium in self.media) * (MEDIUM_CHARS // CHARS_PER_TOKEN)


class Policy:
    """`secret`: from which salts are made, the same for all processes that serve the same engines."""

    def __init__(self, limits: config.Policy, secret: bytes = b"", fetch: Fetch | None = None) -> None:
        self.limits = limits
        self._fetch = fetch or Fetch(limits.max_media_bytes)
        self._secret = hmac.digest(secret, b"whose prefix cache", "sha256")
        self._salts: dict[str, str] = {}
        self._salted = fields.SALTED if limits.cache_salt else frozenset()
        self._hosts = frozenset(host.lower() for host in limits.media_hosts)
        unbounded = {name for limit, names in BY_LIMIT.items() if getattr(limits, limit) is None for name in names}
        looked_at = (CHECKS.keys() | fields.WITH_MEDIA) - unbounded
        self._free = {path: fields.plain(path) - looked_at for path in fields.PATHS}
        self._prompts = {path: sorted(fields.known(path) & fields.PROMPTS) for path in fields.PATHS}

    def applied(self, path: str, body: Body, caller: Caller) -> Body:
        """The body that may go on: the same object, unless something had to be added. Raises BadRequest, or Forbidden
        for what another scope would allow; both name the parameter."""
        if path in fields.BATCHES:
            check_batches(path, body, self.limits)
        free = self._free[path]
        media: list[Medium] = []
        for name, value in body.items():
            if name in free or value is None:
                continue
            if name in fields.WITH_MEDIA:
                if name != "messages" or not is_text(value):
                    media += self._media(name, value, caller)
            elif check := CHECKS.get(name):
                check(value, name, self.limits, caller)
            if value and name not in fields.plain(path):
                self._refuse_unusual(path, name, caller)
        if self.limits.max_prompt_chars is not None:
            self._check_size(path, body, self.limits.max_prompt_chars)
        if media:
            self._check_media(media)
        if self.limits.max_tokens is not None and path in fields.TOKEN_LIMITS:
            body = limited(path, body, self.limits.max_tokens)
        if caller is not LOCAL and path in self._salted:
            body = {**body, "cache_salt": self._salt(caller.tenant, body.get("cache_salt"))}
        return self._with_media(body, media, caller) if media else body

    async def fetched(self, body: Unfetched) -> Body:
        """The body with its media in the place of their addresses. Raises BadRequest for those that cannot be had,
        Overloaded where too many are being fetched."""
        await self._fetch([medium for medium in body.media if medium.is_remote], body.tenant)
        self._check_media(body.media)
        return dict(body)

    def _media(self, name: str, value: Any, caller: Caller) -> list[Medium]:
        """Raises Forbidden for parts that reach into the engine, BadRequest for tools whose grammars are too large."""
        if type(value) not in (dict, list):
            return []
        media: list[Medium] = []
        for found in found_in(value, name):
            if isinstance(found, Medium):
                media.append(found)
            elif isinstance(found, Schema):
                check_schema(found.value, found.where, self.limits)
            elif "raw-fields" not in caller.scopes:
                raise Forbidden(
                    f"{found.where}: {found.name} reaches into the engine and is for keys with the scope raw-fields",
                    param=found.where,
                )
        return media

    def _check_media(self, media: list[Medium]) -> None:
        parts, size = sum(medium.parts for medium in media), sum(medium.size_bytes for medium in media)
        where = media[0].where
        if parts > self.limits.max_parts:
            raise BadRequest(
                f"{parts} pieces of media, {self.limits.max_parts} at most (policy.max_parts)", param=where
            )
        if size > self.limits.max_media_bytes:
            most = self.limits.max_media_bytes
            raise BadRequest(f"{size} bytes of media, {most} at most (policy.max_media_bytes)", param=where)
        pixels = 0
        for medium in media:
            more = 0 if medium.is_remote else medium.pixels
            if more is None:
                raise refused(medium, "it is no PNG, JPEG, GIF, WebP or BMP in base64")
            pixels += more
        if pixels > self.limits.max_pixels:
            most = self.limits.max_pixels
            raise BadRequest(f"{pixels} pixels of images, {most} at most (policy.max_pixels)", param=where)

    def _with_media(self, body: Body, media: list[Medium], caller: Caller) -> Body:
        """Raises BadRequest for addresses that are not to be fetched."""
        remote = [medium for medium in media if medium.is_remote]
        if not remote:
            return body
        for medium in remote:
            host = address_of(medium).host
            if host not in self._hosts and "any-media" not in caller.scopes:
                raise refused(medium, "only data: URLs are taken here (policy.media_hosts, or the scope any-media)")
        unfetched = Unfetched(body)
        unfetched.media, unfetched.tenant = media, caller.tenant
        return unfetched

    def _refuse_unusual(self, path: str, name: str, caller: Caller) -> None:
        """A field that is not every caller's, or no field at all."""
        if name == fields.STEPS:
            return self._refuse_steps(path, caller)
        if name in fields.INSTEAD:
            raise BadRequest(f"{name} is not served: {fields.INSTEAD[name]}", param=name)
        if name in fields.RAW:
            if "raw-fields" not in caller.scopes:
                raise Forbidden(f"{name} is for keys with the scope raw-fields: {fields.RAW[name]}", param=name)
        elif self.limits.unknown_fields == "refuse":
            shown = name[:SHOWN_CHARS]
            near = nearest(shown, sorted(fields.plain(path)))
            raise BadRequest(f"{path} knows no field {shown!r}{near} (policy.unknown_fields)", param=shown)

    def _refuse_steps(self, path: str, caller: Caller) -> None:
        if path not in fields.STEPPED:
            raise BadRequest(f"{fields.STEPS}: {path} generates nothing that could pass steps", param=fields.STEPS)
        if "steps" not in caller.scopes:
            raise Forbidden(
                f"{fields.STEPS} is for keys with the scope steps: it chooses what the request passes",
                param=fields.STEPS,
            )

    def _check_size(self, path: str, body: Body, most: int) -> None:
        for name in self._prompts[path]:
            value = body.get(name)
            if value is not None and (size := characters(value)) > most:
                raise BadRequest(
                    f"{name}: the prompt has {size} characters, {most} at most (policy.max_prompt_chars)", param=name
                )

    def _salt(self, tenant: str, given: Any) -> str:
        """Of this tenant, and of whatever it has divided itself into: never another's, whatever that has given."""
        if type(given) is str:
            return self._made(f"{len(tenant)} {tenant} {given}")
        salt = self._salts.get(tenant)
        if salt is None:
            if len(self._salts) >= MAX_SALTS:
                self._salts.clear()
            salt = self._salts[tenant] = self._made(f"{len(tenant)} {tenant}")
        return salt

    def _made(self, said: str) -> str:
        return base64.urlsafe_b64encode(hmac.digest(self._secret, said.encode(), "sha256")[:SALT_BYTES]).decode()


def limited(path: str, body: Body, most: int) -> Body:
    """The body with a limit for its answer, where it has none."""
    names = fields.TOKEN_LIMITS[path]
    for name in names:
        if body.get(name) is not None:
            return body
    return {**body, names[0]: min(most, USUAL_COMPLETION_TOKENS) if path == fields.TEXT else most}


def is_text(turns: Any) -> bool:
    """Whether these are turns of which none has parts, in which media could be."""
    try:
        for turn in turns:
            if type(turn["content"]) is not str:
                return False
    except (TypeError, KeyError):  # in a field that no shape has checked
        return False
    return True
