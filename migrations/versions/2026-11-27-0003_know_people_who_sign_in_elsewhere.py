"""know people who sign in elsewhere."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "b8e05d3f7a16"
down_revision = "202b455bc84d"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("identity", sa.String(), nullable=True))
    op.create_unique_constraint(op.f("uq_api_keys_identity"), "api_keys", ["identity"])


def downgrade() -> None:
    # Nobody could tell any more whose they were; what is written of them stays in the audit log.
    op.execute(
        "update api_keys set revoked_at = now() where identity is not null and revoked_at is null"
    )
    op.drop_constraint(op.f("uq_api_keys_identity"), "api_keys", type_="unique")
    op.drop_column("api_keys", "identity")
