"""index versions and projects for their pages."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "c5a9d2e81f47"
down_revision = "b8e05d3f7a16"
branch_labels = None
depends_on = None

VERSIONS = "model_versions"


def upgrade() -> None:
    op.create_index(
        "ix_model_versions_parent_id_created_at_id", VERSIONS, ["parent_id", "created_at", "id"]
    )
    op.create_index(
        "ix_model_versions_project_id_created_at_id", VERSIONS, ["project_id", "created_at", "id"]
    )
    op.create_index(
        "ix_model_versions_not_tuned",
        VERSIONS,
        ["created_at", "id"],
        postgresql_where=sa.text("model_versions.kind <> 'tuned'"),
    )
    op.drop_index("ix_model_versions_parent_id", VERSIONS)
    op.drop_index("ix_model_versions_project_id", VERSIONS)
    op.create_index("ix_projects_created_at_id", "projects", ["created_at", "id"])


def downgrade() -> None:
    op.drop_index("ix_projects_created_at_id", "projects")
    op.create_index("ix_model_versions_project_id", VERSIONS, ["project_id"])
    op.create_index("ix_model_versions_parent_id", VERSIONS, ["parent_id"])
    op.drop_index("ix_model_versions_not_tuned", VERSIONS)
    op.drop_index("ix_model_versions_project_id_created_at_id", VERSIONS)
    op.drop_index("ix_model_versions_parent_id_created_at_id", VERSIONS)
