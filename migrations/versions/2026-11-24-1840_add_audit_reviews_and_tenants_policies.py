"""add the audit log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "c7d41e09ab36"
down_revision = "6065e48cb116"
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


def downgrade() -> None:
    op.drop_table("audit_entries")
    op.execute("drop function refuse_audit_change()")
