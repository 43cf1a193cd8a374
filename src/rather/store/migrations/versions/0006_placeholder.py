"""Nothing: it holds the place of the revision that another branch brings, which replaces this file."""

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Change nothing."""
