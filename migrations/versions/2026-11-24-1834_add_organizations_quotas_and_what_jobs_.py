"""add organizations, quotas and what jobs use."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "6065e48cb116"
down_revision = "b1c0e3a7d952"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "organizations",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_organizations")),
    )
    op.add_column("api_keys", sa.Column("user_name", sa.String(), nullable=True))
    op.add_column("api_keys", sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("api_keys", sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("jobs", sa.Column("claimed_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("jobs", sa.Column("gpu_seconds", sa.Double(), nullable=False, server_default="0"))
    op.alter_column("jobs", "gpu_seconds", server_default=None)
    op.create_index(
        "ix_jobs_project_id_claimed_at", "jobs", ["project_id", "claimed_at"], unique=False
    )
    op.create_index(
        "ix_jobs_project_id_finished_at", "jobs", ["project_id", "finished_at"], unique=False
    )
    op.create_index(
        "ix_jobs_unfinished",
        "jobs",
        ["project_id", "status", "created_at", "id"],
        unique=False,
        postgresql_where=sa.text("finished_at is null"),
    )
    op.add_column("projects", sa.Column("organization_id", sa.String(), nullable=True))
    # The id that clients have been shown as `organization_id` all along.
    op.execute(
        "insert into organizations (id, name, created_at) "
        "select 'org-' || substr(id, 6), name, created_at from projects"
    )
    op.execute("update projects set organization_id = 'org-' || substr(id, 6)")
    op.alter_column("projects", "organization_id", nullable=False)
    op.add_column("projects", sa.Column("archived_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column(
        "projects", sa.Column("priority", sa.String(), nullable=False, server_default="normal")
    )
    op.alter_column("projects", "priority", server_default=None)
    op.create_check_constraint(
        op.f("ck_projects_priority"), "projects", "priority in ('high', 'normal', 'low')"
    )
    op.add_column("projects", sa.Column("quota_jobs_running", sa.Integer(), nullable=True))
    op.add_column("projects", sa.Column("quota_jobs_queued", sa.Integer(), nullable=True))
    op.add_column("projects", sa.Column("quota_bytes_stored", sa.BigInteger(), nullable=True))
    op.add_column(
        "projects", sa.Column("quota_training_tokens_month", sa.BigInteger(), nullable=True)
    )
    op.add_column("projects", sa.Column("quota_gpu_seconds_month", sa.BigInteger(), nullable=True))
    op.create_index(
        op.f("ix_projects_organization_id"), "projects", ["organization_id"], unique=False
    )
    op.create_foreign_key(
        op.f("fk_projects_organization_id_organizations"),
        "projects",
        "organizations",
        ["organization_id"],
        ["id"],
    )


def downgrade() -> None:
    op.drop_constraint(
        op.f("fk_projects_organization_id_organizations"), "projects", type_="foreignkey"
    )
    op.drop_index(op.f("ix_projects_organization_id"), table_name="projects")
    op.drop_column("projects", "quota_gpu_seconds_month")
    op.drop_column("projects", "quota_training_tokens_month")
    op.drop_column("projects", "quota_bytes_stored")
    op.drop_column("projects", "quota_jobs_queued")
    op.drop_column("projects", "quota_jobs_running")
    op.drop_constraint(op.f("ck_projects_priority"), "projects", type_="check")
    op.drop_column("projects", "priority")
    op.drop_column("projects", "archived_at")
    op.drop_column("projects", "organization_id")
    op.drop_index(
        "ix_jobs_unfinished", table_name="jobs", postgresql_where=sa.text("finished_at is null")
    )
    op.drop_index("ix_jobs_project_id_finished_at", table_name="jobs")
    op.drop_index("ix_jobs_project_id_claimed_at", table_name="jobs")
    op.drop_column("jobs", "gpu_seconds")
    op.drop_column("jobs", "claimed_at")
    op.drop_column("api_keys", "last_used_at")
    op.drop_column("api_keys", "expires_at")
    op.drop_column("api_keys", "user_name")
    op.drop_table("organizations")
