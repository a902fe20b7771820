"""index a project's versions by what they were tuned from: the page of models counts them."""

from __future__ import annotations

from alembic import op

revision = "e8b1d05c7f24"
down_revision = "d3e7a4096b1c"
branch_labels = None
depends_on = None

INDEX = "ix_model_versions_project_id_parent_id_created_at_id"


def upgrade() -> None:
    op.create_index(INDEX, "model_versions", ["project_id", "parent_id", "created_at", "id"])


def downgrade() -> None:
    op.drop_index(INDEX, table_name="model_versions")
