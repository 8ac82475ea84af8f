"""What `state.database` and `state.redis` may say. What is wrong is told without the URL, which may hold a password."""

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from penstock.errors import StartError
from penstock.home import home

DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg"}
SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
FILES = ("sslrootcert", "sslcert", "sslkey")
LIBPQS = ("sslmode", *FILES, "application_name")
"""libpq's parameters that asyncpg knows in a URL of its own."""
SQLALCHEMYS = ("host", "port", "prepared_statement_cache_size")
ACCEPTED = (*LIBPQS, "connect_timeout", *SQLALCHEMYS)
WITHOUT_VALUE = re.compile(rf"[?&]({'|'.join(ACCEPTED)})=?(?=&|$)")
CANNOT_BE_USED = "state.database must be sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME"
OF_REDIS = ("db", "username", "password", "client_name", "socket_timeout", "socket_connect_timeout", "socket_read_size")
OF_REDIS_TCP = ("socket_keepalive",)
OF_REDIS_TLS = (
    "ssl_keyfile",
    "ssl_certfile",
    "ssl_password",
    "ssl_cert_reqs",
    "ssl_ca_certs",
    "ssl_ca_data",
    "ssl_ca_path",
    "ssl_check_hostname",
    "ssl_min_version",
    "ssl_ciphers",
    "ssl_include_verify_flags",
    "ssl_exclude_verify_flags",
)
"""redis-py's parameters but for those of what limits go by: how answers are read, retries, the pool."""
REDIS_SHAPE = "redis://HOST:PORT/0, rediss://:PASSWORD@HOST:PORT/0 or unix:///PATH"
QUOTING = "in a password, write / as %2F, # as %23, @ as %40"


@dataclass(frozen=True)
class Database:
    """`url` is SQLAlchemy's, `arguments` the driver's beside it."""

    url: sa.URL
    arguments: dict[str, Any] = field(default_factory=dict)

    def check_files(self) -> None:
        """Raises StartError, naming one that is not there: the driver would not."""
        for name in FILES:
            file = self.url.query.get(name)
            if file is not None and not os.access(str(file), os.R_OK):
                raise StartError(f"state.database: {name} names {str(file)!r}, which cannot be read")

    @property
    def for_engine(self) -> sa.URL:
        """Without what `arguments` says."""
        return self.url.difference_update_query([*LIBPQS, "connect_timeout"])


def database_of(text: str | None) -> Database:
    """`postgresql://...` -> the same with the driver that is used; None: penstock.db in the home. Raises StartError."""
    try:
        url: sa.URL | None = make_url(text or f"sqlite:///{home() / 'penstock.db'}")
        assert url is not None
        url = url.set(drivername=DRIVERS[url.drivername.partition("+")[0]])
    except (ArgumentError, KeyError, ValueError):  # the last for a port that is no number
        url = None
    if url is None or (url.get_backend_name() == "sqlite" and not url.database):
        raise StartError(CANNOT_BE_USED)
    if found := WITHOUT_VALUE.search(text or ""):
        raise StartError(f"state.database: the parameter {found[1]} has no value")
    accepted = ACCEPTED if url.get_backend_name() == "postgresql" else ()
    for name in url.query:
        if name not in accepted:
            raise unknown("state.database", name, accepted)
    return Database(url, driver_arguments(url.query))


def unknown(setting: str, name: str, accepted: tuple[str, ...]) -> StartError:
    near = difflib.get_close_matches(name, accepted, n=1)
    meant = f", did you mean {near[0]!r}?" if near else ""
    known = f"accepted are {', '.join(accepted)}" if accepted else "a URL of SQLite has none"
    return StartError(f"{setting}: unknown parameter {name[:64]!r}{meant}{'' if near else ':'} {known}")


def driver_arguments(query: Mapping[str, Any]) -> dict[str, Any]:
    """libpq's words for asyncpg, which has most of them in a URL alone. Raises StartError."""
    for name in (*LIBPQS, "connect_timeout", "prepared_statement_cache_size"):
        if isinstance(query.get(name), tuple):
            raise StartError(f"state.database: the parameter {name} stands there more than once")
    mode = query.get("sslmode", "prefer")
    if mode not in SSL_MODES:
        raise StartError(f"state.database: sslmode must be one of {', '.join(SSL_MODES)}")
    for name, least in (("connect_timeout", 1), ("prepared_statement_cache_size", 0)):
        if not re.fullmatch(r"[0-9]{1,6}", query.get(name, "1")) or int(query.get(name, least)) < least:
            raise StartError(f"state.database: {name} must be a whole number, {least} or more")
    arguments: dict[str, Any] = {}
    if said := {name: query[name] for name in LIBPQS if name in query}:
        arguments["dsn"] = f"postgresql:///?{urlencode(said)}"
    if "connect_timeout" in query:
        arguments["timeout"] = int(query["connect_timeout"])
    return arguments


def check_redis(url: str) -> None:
    """Raises StartError for what redis-py would refuse later, or take for something else in silence."""
    if not is_redis(url):
        raise StartError(f"state.redis must be {REDIS_SHAPE}; {QUOTING}")
    accepted = redis_parameters(urlsplit(url).scheme)
    for name, values in parse_qs(urlsplit(url).query, keep_blank_values=True).items():
        if name not in accepted:
            raise unknown("state.redis", name, accepted)
        if len(values) > 1:
            raise StartError(f"state.redis: the parameter {name} stands there more than once")
        if not values[0]:
            raise StartError(f"state.redis: the parameter {name} has no value")
    from redis.asyncio import Redis
    from redis.exceptions import RedisError

    try:  # none of it connects
        Redis.from_url(url).connection_pool.make_connection()  # type: ignore[no-untyped-call]
    except (TypeError, ValueError, RedisError):
        raise StartError("state.redis: the value of a parameter cannot be used; see redis-py's from_url") from None


def redis_parameters(scheme: str) -> tuple[str, ...]:
    if scheme == "unix":
        return OF_REDIS
    return (*OF_REDIS, *OF_REDIS_TCP, *(OF_REDIS_TLS if scheme == "rediss" else ()))


def is_redis(url: str) -> bool:
    try:
        parts = urlsplit(url)
        if parts.fragment or parts.port == 0:
            return False
    except ValueError:
        return False
    if parts.scheme == "unix":
        return bool(parts.path)
    return parts.scheme in ("redis", "rediss") and bool(parts.hostname and re.fullmatch(r"(/[0-9]*)?", parts.path))
