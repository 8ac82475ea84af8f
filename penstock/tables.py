"""The tables, as SQLAlchemy Core sees them. `penstock/migrations/` makes and changes them."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData()

keys = Table(
    "keys",
    metadata,
    Column("id", String(8), primary_key=True),  # stands in the key itself
    Column("holder", String(8), nullable=False),  # the id of the first of a row of rotations: usage goes on under it
    Column("name", String(128), nullable=False, index=True),  # during a rotation two rows have it
    Column("tenant", String(128), nullable=False),
    Column("digest", LargeBinary(32), nullable=False),  # HMAC-SHA256 with the pepper
    Column("scopes", JSON, nullable=False),
    Column("models", JSON),
    Column("rpm", Integer),
    Column("tpm", Integer),
    Column("concurrent", Integer),
    Column("daily_tokens", BigInteger),
    Column("monthly_tokens", BigInteger),
    Column("priority", Integer, nullable=False),
    Column("created_at", Float, nullable=False),  # all times in seconds since the epoch
    Column("expires_at", Float),
    Column("revoked_at", Float),
    Column("lasts_s", Float),  # as it was said of the key: a rotation makes one that lasts as long
    Column("guards", String(128)),  # a list in the configuration's `guards`
    Column("change", BigInteger, nullable=False, index=True),  # of the subject `keys`, which wrote this row last
)

changes = Table(  # one row per subject: whoever keeps a copy looks whether the number has grown
    "changes",
    metadata,
    Column("subject", String(32), primary_key=True),
    Column("number", BigInteger, nullable=False),
)

marks = Table(  # what was settled once for the whole database
    "marks",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", String(128), nullable=False),
)

usage = Table(
    "usage",
    metadata,
    Column("key_id", String(64), primary_key=True),
    Column("model", String(512), primary_key=True),
    Column("day", String(10), primary_key=True),  # 2026-11-22, UTC
    Column("tenant", String(128), nullable=False, index=True),
    Column("name", String(128), nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("cut", BigInteger, nullable=False),  # streams that broke off
    Column("abandoned", BigInteger, nullable=False),  # clients that left
    Column("estimated", BigInteger, nullable=False),  # requests whose tokens no engine has counted
)

noted = Table(  # what is written and not yet added to `usage`: a row for each batch
    "noted",
    metadata,
    Column("batch", String(32), primary_key=True),
    Column("rows", Text, nullable=False),  # JSON, see penstock/batches.py
    Column("refused", Boolean),  # it could not be added, and stays
)

batches = Table(  # of usage, that have been written: one whose confirmation was lost is not written again
    "batches",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("at", Float, nullable=False, index=True),
)

audit = Table(
    "audit",
    metadata,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("at", String(32), nullable=False),  # ISO 8601, UTC: part of what is hashed, so kept as text
    Column("actor", String(128), nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", String(256), nullable=False),
    Column("details", Text, nullable=False),  # JSON
    Column("previous", String(64), nullable=False),
    Column("digest", String(64), nullable=False),
)

versions = Table(  # of models: written once, never changed
    "versions",
    metadata,
    Column("name", String(96), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("kind", String(16), nullable=False),  # full, adapter, quantized, reward
    Column("parent", String(128)),  # the version it was made from: NAME@NUMBER
    Column("origin", String(256)),  # where it was imported from: a Hugging Face id with its revision
    Column("digest", String(64), nullable=False, index=True),  # of `files`
    Column("files", JSON, nullable=False),  # {path: {sha256, size}}
    Column("template", String(64)),  # digests of the chat template and of the tokenizer
    Column("tokenizer", String(64)),
    Column("recipe", Text),
    Column("data", JSON, nullable=False),  # {name: SHA-256}
    Column("metrics", JSON, nullable=False),  # {name: number}
    Column("card", Text),  # README.md
    Column("created_at", Float, nullable=False),
    Column("by", String(128), nullable=False),
    Column("change", BigInteger, nullable=False, index=True),  # of the subject `versions`
)

aliases = Table(
    "aliases",
    metadata,
    Column("name", String(96), primary_key=True),
    Column("alias", String(96), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("change", BigInteger, nullable=False, index=True),  # of the subject `aliases`, which wrote this row last
    ForeignKeyConstraint(["name", "version"], ["versions.name", "versions.number"]),
)

alias_moves = Table(  # every change of `aliases`
    "alias_moves",
    metadata,
    Column("change", BigInteger, primary_key=True, autoincrement=False),
    Column("name", String(96), nullable=False, index=True),
    Column("alias", String(96), nullable=False),
    Column("from_version", Integer),
    Column("to_version", Integer, nullable=False),
    Column("at", Float, nullable=False),
    Column("by", String(128), nullable=False),
    Column("report", JSON),  # of the gate, where there was one
)

claims = Table(  # kept files that an `add` is about to refer to
    "claims",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("by", String(32), primary_key=True, index=True),  # one `add`
    Column("at", Float, nullable=False),
)

doomed = Table(  # kept files that a collection is about to delete
    "doomed",
    metadata,
    Column("sha256", String(64), primary_key=True),
)

canaries = Table(  # versions that get a share of an alias's requests, and got it
    "canaries",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),  # the change that started it
    Column("name", String(96), nullable=False),
    Column("alias", String(96), nullable=False),
    Column("from_version", Integer, nullable=False),  # where the alias pointed, and points while it runs
    Column("version", Integer, nullable=False),
    Column("percent", Float, nullable=False),
    Column("rules", JSON, nullable=False),
    Column("report", JSON),  # of the gate, where there was one
    Column("started_at", Float, nullable=False),
    Column("by", String(128), nullable=False),
    Column("ended_at", Float),  # none while it runs
    Column("outcome", String(16)),  # on, back, stopped, overtaken
    Column("ended_by", String(128)),
    Column("verdict", JSON),  # what was judged of it in the end
    Column("change", BigInteger, nullable=False, index=True),  # of the subject `aliases`, which wrote this row last
    ForeignKeyConstraint(["name", "version"], ["versions.name", "versions.number"]),
    Index("ix_canaries_name_alias", "name", "alias"),
)

canary_figures = Table(  # what each gateway process has counted of each arm, since it began
    "canary_figures",
    metadata,
    Column("canary", BigInteger, ForeignKey("canaries.id"), primary_key=True, autoincrement=False),
    Column("gateway", String(64), primary_key=True),
    Column("arm", String(8), primary_key=True),  # stable, canary
    Column("requests", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    Column("refused", BigInteger, nullable=False),
    Column("gone", BigInteger, nullable=False),
    *(
        Column(f"{measure}_{figure}", kind, nullable=False)  # sums and squares are of natural logarithms
        for measure in ("first", "whole", "length")
        for figure, kind in (("count", BigInteger), ("sum", Float), ("squares", Float))
    ),
    Column("updated_at", Float, nullable=False),
)
