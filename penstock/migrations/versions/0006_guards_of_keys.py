"""Keys whose requests pass guards of their own."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("keys", sa.Column("guards", sa.String(128)))


def downgrade() -> None:
    op.drop_column("keys", "guards")
