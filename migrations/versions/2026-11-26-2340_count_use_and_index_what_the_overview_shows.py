"""count projects' use and index what the overview shows."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "b70d4c3f96a1"
down_revision = "5b1d6c0f83ea"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "project_use",
        sa.Column("project_id", sa.String(), nullable=False),
        sa.Column("counted_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("jobs_running", sa.Integer(), nullable=False),
        sa.Column("jobs_queued", sa.Integer(), nullable=False),
        sa.Column("bytes_stored", sa.BigInteger(), nullable=False),
        sa.Column("training_tokens_month", sa.BigInteger(), nullable=False),
        sa.Column("gpu_seconds_month", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_project_use_project_id_projects")
        ),
        sa.PrimaryKeyConstraint("project_id", name=op.f("pk_project_use")),
    )
    op.create_index(
        "ix_jobs_in_review",
        "jobs",
        ["held_at", "id"],
        postgresql_where=sa.text("status = 'running' and stage in ('data_review', 'review')"),
    )
    op.create_index(
        "ix_jobs_finished_at_status_error_code", "jobs", ["finished_at", "status", "error_code"]
    )
    op.create_index(
        "ix_jobs_error_code_finished_at",
        "jobs",
        ["error_code", "finished_at"],
        postgresql_where=sa.text("error_code is not null"),
    )
    op.create_index(
        "ix_evaluations_created_at_scores",
        "evaluations",
        ["created_at", "gate", "harmful_score_percent"],
    )
    op.create_index(
        "ix_model_versions_canary_fell",
        "model_versions",
        ["created_at"],
        postgresql_where=sa.text(
            "(model_versions.recipe #>> '{protection,stopped_at_step}') is not null"
        ),
    )
    op.create_index(
        "ix_appeals_open", "appeals", ["created_at"], postgresql_where=sa.text("outcome is null")
    )


def downgrade() -> None:
    op.drop_index("ix_appeals_open", "appeals")
    op.drop_index("ix_model_versions_canary_fell", "model_versions")
    op.drop_index("ix_evaluations_created_at_scores", "evaluations")
    op.drop_index("ix_jobs_error_code_finished_at", "jobs")
    op.drop_index("ix_jobs_finished_at_status_error_code", "jobs")
    op.drop_index("ix_jobs_in_review", "jobs")
    op.drop_table("project_use")
