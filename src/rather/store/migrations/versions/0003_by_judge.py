"""One person's answers are found without reading everybody's."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the index."""
    op.create_index("label_by_judge", "label", ["judge", "id"])
