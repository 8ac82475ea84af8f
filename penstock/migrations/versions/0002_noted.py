"""Usage is noted in batches of one row each, and added up later."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "noted",
        sa.Column("batch", sa.String(32), primary_key=True),
        sa.Column("rows", sa.Text, nullable=False),
        sa.Column("refused", sa.Boolean),
    )


def downgrade() -> None:
    op.drop_table("noted")
