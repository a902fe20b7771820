"""search the audit log: by its words, by time, by kind of subject."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TSVECTOR

revision = "b7d2f5a90c13"
down_revision = "b70d4c3f96a1"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for column in ("subject_kind", "created_at"):
        op.create_index(
            f"ix_audit_entries_{column}_position", "audit_entries", [column, "position"]
        )
    op.add_column(
        "audit_entries",
        sa.Column(
            "words",
            TSVECTOR,
            sa.Computed(
                "to_tsvector('simple'::regconfig, translate((action || ' ' || actor_name || ' ' || subject_kind "
                "|| ' ' || subject_id || ' ' || coalesce(project_id, '') || ' ' || coalesce(reason, '') || ' ' "
                "|| details::text), '.:/_-@+,\"', '         '))",
                persisted=True,
            ),
        ),
    )
    op.create_index("ix_audit_entries_words", "audit_entries", ["words"], postgresql_using="gin")


def downgrade() -> None:
    op.drop_column("audit_entries", "words")
    for column in ("created_at", "subject_kind"):
        op.drop_index(f"ix_audit_entries_{column}_position", table_name="audit_entries")
