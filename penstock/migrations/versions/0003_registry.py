"""Versions of models, aliases that point to them, and how those have moved."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "versions",
        sa.Column("name", sa.String(96), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("parent", sa.String(128)),
        sa.Column("origin", sa.String(256)),
        sa.Column("digest", sa.String(64), nullable=False, index=True),
        sa.Column("files", sa.JSON, nullable=False),
        sa.Column("template", sa.String(64)),
        sa.Column("tokenizer", sa.String(64)),
        sa.Column("recipe", sa.Text),
        sa.Column("data", sa.JSON, nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("card", sa.Text),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("by", sa.String(128), nullable=False),
        sa.Column("change", sa.BigInteger, nullable=False, index=True),
    )
    op.create_table(
        "aliases",
        sa.Column("name", sa.String(96), primary_key=True),
        sa.Column("alias", sa.String(96), primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("change", sa.BigInteger, nullable=False, index=True),
        sa.ForeignKeyConstraint(["name", "version"], ["versions.name", "versions.number"]),
    )
    op.create_table(
        "alias_moves",
        sa.Column("change", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("name", sa.String(96), nullable=False, index=True),
        sa.Column("alias", sa.String(96), nullable=False),
        sa.Column("from_version", sa.Integer),
        sa.Column("to_version", sa.Integer, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("by", sa.String(128), nullable=False),
        sa.Column("report", sa.JSON),
    )


def downgrade() -> None:
    for table in ("alias_moves", "aliases", "versions"):
        op.drop_table(table)
