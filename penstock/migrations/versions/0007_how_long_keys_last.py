"""How long a key was to last when that was said, which its dates no longer tell once it has been changed."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("keys", sa.Column("lasts_s", sa.Float()))


def downgrade() -> None:
    op.drop_column("keys", "lasts_s")
