"""Canaries of aliases, and what each gateway has counted of them."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "canaries",
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("name", sa.String(96), nullable=False),
        sa.Column("alias", sa.String(96), nullable=False),
        sa.Column("from_version", sa.Integer, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("percent", sa.Float, nullable=False),
        sa.Column("rules", sa.JSON, nullable=False),
        sa.Column("report", sa.JSON),
        sa.Column("started_at", sa.Float, nullable=False),
        sa.Column("by", sa.String(128), nullable=False),
        sa.Column("ended_at", sa.Float),
        sa.Column("outcome", sa.String(16)),
        sa.Column("ended_by", sa.String(128)),
        sa.Column("verdict", sa.JSON),
        sa.Column("change", sa.BigInteger, nullable=False, index=True),
        sa.ForeignKeyConstraint(["name", "version"], ["versions.name", "versions.number"]),
    )
    op.create_index("ix_canaries_name_alias", "canaries", ["name", "alias"])
    op.create_table(
        "canary_figures",
        sa.Column("canary", sa.BigInteger, sa.ForeignKey("canaries.id"), primary_key=True, autoincrement=False),
        sa.Column("gateway", sa.String(64), primary_key=True),
        sa.Column("arm", sa.String(8), primary_key=True),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("errors", sa.BigInteger, nullable=False),
        sa.Column("refused", sa.BigInteger, nullable=False),
        sa.Column("gone", sa.BigInteger, nullable=False),
        *(
            sa.Column(f"{measure}_{figure}", kind, nullable=False)
            for measure in ("first", "whole", "length")
            for figure, kind in (("count", sa.BigInteger), ("sum", sa.Float), ("squares", sa.Float))
        ),
        sa.Column("updated_at", sa.Float, nullable=False),
    )


def downgrade() -> None:
    for table in ("canary_figures", "canaries"):
        op.drop_table(table)
