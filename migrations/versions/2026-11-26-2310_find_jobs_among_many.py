"""find jobs among many: indexes for the filters of the dashboard's list."""

from __future__ import annotations

from alembic import op

revision = "9d25c3b8a71f"
down_revision = "e41b7f90c2d5"
branch_labels = None
depends_on = None

BY = ("status", "kind", "model_id")
BEGINNINGS = ("result_model_id", "suffix")


def upgrade() -> None:
    for column in BY:
        op.create_index(f"ix_jobs_{column}_created_at_id", "jobs", [column, "created_at", "id"])
    for column in BEGINNINGS:
        op.create_index(
            f"ix_jobs_{column}_beginning",
            "jobs",
            [column],
            postgresql_ops={column: "text_pattern_ops"},
        )
    op.create_index("ix_model_versions_gate_created_at", "model_versions", ["gate", "created_at"])


def downgrade() -> None:
    op.drop_index("ix_model_versions_gate_created_at", "model_versions")
    for column in BEGINNINGS:
        op.drop_index(f"ix_jobs_{column}_beginning", "jobs")
    for column in BY:
        op.drop_index(f"ix_jobs_{column}_created_at_id", "jobs")
