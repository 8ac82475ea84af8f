"""What adds are about to refer to, and what collections are about to delete."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "claims",
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("by", sa.String(32), primary_key=True, index=True),
        sa.Column("at", sa.Float, nullable=False),
    )
    op.create_table("doomed", sa.Column("sha256", sa.String(64), primary_key=True))


def downgrade() -> None:
    for table in ("doomed", "claims"):
        op.drop_table(table)
