"""add the audit log, projects' policies, appeals and approvals."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "c7d41e09ab36"
down_revision = "81dc70ae11ed"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "audit_entries",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("actor_key_id", sa.String(), nullable=True),
        sa.Column("actor_name", sa.String(), nullable=False),
        sa.Column("actor_project_id", sa.String(), nullable=True),
        sa.Column("subject_kind", sa.String(), nullable=False),
        sa.Column("subject_id", sa.String(), nullable=False),
        sa.Column("project_id", sa.String(), nullable=True),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.Column("previous_sha256", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_entries")),
        sa.UniqueConstraint("position", name=op.f("uq_audit_entries_position")),
    )
    for column in ("action", "subject_id", "project_id", "actor_key_id"):
        op.create_index(
            f"ix_audit_entries_{column}_position", "audit_entries", [column, "position"]
        )
    op.execute(
        """
        create function refuse_audit_change() returns trigger language plpgsql as $$
        begin
            raise exception 'the audit log is append-only' using errcode = 'restrict_violation';
        end $$
        """
    )
    op.execute(
        "create trigger audit_entries_append_only before update or delete or truncate on audit_entries "
        "for each statement execute function refuse_audit_change()"
    )
    op.add_column("safety_policies", sa.Column("project_id", sa.String(), nullable=True))
    op.add_column(
        "safety_policies", sa.Column("note", sa.String(), nullable=False, server_default="")
    )
    op.alter_column("safety_policies", "note", server_default=None)
    op.add_column("safety_policies", sa.Column("created_by", sa.String(), nullable=True))
    op.add_column(
        "safety_policies", sa.Column("activated_at", sa.DateTime(timezone=True), nullable=True)
    )
    # Until now the newest version was the one in force.
    op.execute("update safety_policies set activated_at = created_at")
    op.create_foreign_key(
        op.f("fk_safety_policies_project_id_projects"),
        "safety_policies",
        "projects",
        ["project_id"],
        ["id"],
    )
    op.create_index(
        op.f("ix_safety_policies_project_id"), "safety_policies", ["project_id"], unique=False
    )
    op.add_column("evaluations", sa.Column("tenant_risk", sa.Float(), nullable=True))
    op.add_column("evaluations", sa.Column("score_gate", sa.String(), nullable=True))
    op.add_column("jobs", sa.Column("held_at", sa.DateTime(timezone=True), nullable=True))
    op.create_table(
        "review_approvals",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_review_approvals_job_id_jobs")
        ),
        sa.ForeignKeyConstraint(
            ["key_id"], ["api_keys.id"], name=op.f("fk_review_approvals_key_id_api_keys")
        ),
        sa.PrimaryKeyConstraint("job_id", "key_id", name=op.f("pk_review_approvals")),
    )
    op.create_table(
        "appeals",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("outcome", sa.String(), nullable=True),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "outcome in ('released', 'rejected', 'expired', 'withdrawn')",
            name=op.f("ck_appeals_outcome"),
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_appeals_job_id_jobs")),
        sa.ForeignKeyConstraint(
            ["key_id"], ["api_keys.id"], name=op.f("fk_appeals_key_id_api_keys")
        ),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_appeals")),
    )


def downgrade() -> None:
    op.drop_table("appeals")
    op.drop_table("review_approvals")
    op.drop_column("jobs", "held_at")
    op.drop_column("evaluations", "score_gate")
    op.drop_column("evaluations", "tenant_risk")
    # Before, the newest version was in force for all: one that was a project's, or was not in force, must not be.
    op.execute("delete from safety_policies where project_id is not null or activated_at is null")
    op.drop_index(op.f("ix_safety_policies_project_id"), table_name="safety_policies")
    op.drop_constraint(
        op.f("fk_safety_policies_project_id_projects"), "safety_policies", type_="foreignkey"
    )
    for column in ("activated_at", "created_by", "note", "project_id"):
        op.drop_column("safety_policies", column)
    op.drop_table("audit_entries")
    op.execute("drop function refuse_audit_change()")
