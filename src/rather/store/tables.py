"""The tables of the store. Times are seconds since 1970 (UTC); JSON columns hold what is never searched for."""

from sqlalchemy import (
    JSON,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData()

judge = Table(
    "judge",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(200), nullable=False, unique=True),
    Column("kind", String(40), nullable=False),
    Column("details", JSON, nullable=False),
)

# A link that lets a judge in. A new one ends the one before, and with it all that was begun under it.
invitation = Table(
    "invitation",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("judge", ForeignKey("judge.id"), nullable=False),
    Column("run", String(200)),  # none: for every run of the store
    Column("role", String(40), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
    Column("created", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Index("invitation_by_judge", "judge"),
    sqlite_autoincrement=True,
)

trajectory = Table(
    "trajectory",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("source", String(400), nullable=False),
    Column("task", String(400), nullable=False),
    Column("prompt", JSON),
    Column("answer", Text),
    Column("policy", String(400), nullable=False),
    Column("text", Text),
    Column("terminated", Boolean, nullable=False),
    Column("steps", LargeBinary),  # npz of the arrays, never a pickle
)

comparison = Table(
    "comparison",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("run", String(200), nullable=False),
    Column("key", String(200), nullable=False),
    Column("purpose", String(40), nullable=False),
    Column("why", String(40), nullable=False),
    Column("score", Float),
    Column("created", Float, nullable=False),
    # What follows is kept by `counting`. Only questions that anybody may be asked have a place in the two orders.
    Column("rank", Float),  # minus the score: the least comes first
    Column("draw", Integer),  # a number drawn for the order at random
    Column("answers", Integer, nullable=False, server_default="0"),  # of how many judges one counts
    UniqueConstraint("run", "key"),
    Index("comparison_by_purpose", "run", "purpose", "id"),
    Index("comparison_by_rank", "run", "answers", "rank", "id"),
    Index("comparison_by_draw", "run", "answers", "draw", "id"),
)

side = Table(
    "side",
    metadata,
    Column("comparison", ForeignKey("comparison.id"), primary_key=True),
    Column("side", String(1), primary_key=True),
    Column("place", Integer, primary_key=True),
    Column("trajectory", ForeignKey("trajectory.id"), nullable=False),
    CheckConstraint("side >= 'a' and side <= 'h'", name="side_letter"),
    Index("side_by_trajectory", "trajectory"),
)

label = Table(
    "label",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("comparison", ForeignKey("comparison.id"), nullable=False),
    Column("judge", ForeignKey("judge.id"), nullable=False),
    Column(
        "kind", String(10), nullable=False
    ),  # answer, abstention or undo; or decision, an owner's, which is withdrawn by one without preference
    Column("preference", Float),
    Column("best", Integer),  # of more than two sides, the number of the one that was picked
    Column("reason", Text, nullable=False),
    Column("seconds", Float),
    Column("shown", String(8), nullable=False),  # the letters of the sides in the order in which they stood on the screen
    Column("flags", JSON, nullable=False),
    Column("token", String(100), unique=True),  # an answer that is sent twice counts once
    Column("created", Float, nullable=False),
    Column("counts", Boolean),  # whether it is the last word of the judge, or of owners, on the question, and no undo: see `counting`
    CheckConstraint("kind in ('answer', 'abstention', 'undo', 'decision')", name="label_kind"),
    CheckConstraint("kind = 'decision' or (kind = 'answer') = (preference is not null)", name="label_preference"),
    CheckConstraint("preference is null or (preference >= 0 and preference <= 1)"),
    # It holds all that is counted, so that what a run comes to is counted along it and no label is read.
    Index("label_by_comparison", "comparison", "judge", "id", "counts", "kind", "preference", "best", "seconds", "shown"),
    Index("label_by_judge", "judge", "id"),
    Index("label_decision", "comparison", sqlite_where=text("kind = 'decision'"), postgresql_where=text("kind = 'decision'")),
    sqlite_autoincrement=True,
)

# What a label says on one criterion beside the whole, as a preference for a.
criterion = Table(
    "criterion",
    metadata,
    Column("label", ForeignKey("label.id"), primary_key=True),
    Column("name", String(40), primary_key=True),
    Column("preference", Float, nullable=False),
    CheckConstraint("preference >= 0 and preference <= 1"),
)

# A question whose side a is an answer that `judge` wrote, because no side of the question `original` was good enough.
written = Table(
    "written",
    metadata,
    Column("comparison", ForeignKey("comparison.id"), primary_key=True),
    Column("original", ForeignKey("comparison.id"), nullable=False),
    Column("judge", ForeignKey("judge.id"), nullable=False),
    Index("written_by_original", "original"),
    Index("written_by_judge", "judge"),
)

# What was given to whom, and how it was shown. It stays when its time is over or the answer has come.
lease = Table(
    "lease",
    metadata,
    Column("comparison", ForeignKey("comparison.id"), primary_key=True),
    Column("judge", ForeignKey("judge.id"), primary_key=True),
    Column("token", String(40), nullable=False),
    Column("invitation", Integer),  # under which it was given; none at a terminal
    Column("shown", String(8), nullable=False),
    Column("given", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Index("lease_by_expiry", "expires", "judge", "comparison"),
)

# A trajectory of a control task as a picture sheet that browsers play; `problem` says why there is none.
clip = Table(
    "clip",
    metadata,
    Column("trajectory", ForeignKey("trajectory.id"), primary_key=True),
    Column("webp", LargeBinary),
    Column("facts", JSON, nullable=False),
    Column("problem", Text, nullable=False),
    Index("clip_failed", "trajectory", sqlite_where=text("problem != ''"), postgresql_where=text("problem != ''")),
)

# A question whose answer is known: a gold question, or one that `judge` has answered before, as `original`.
probe = Table(
    "probe",
    metadata,
    Column("comparison", ForeignKey("comparison.id"), primary_key=True),
    Column("preference", Float, nullable=False),
    Column("judge", ForeignKey("judge.id")),
    Column("original", ForeignKey("comparison.id")),
    Index("probe_by_judge", "judge"),
    Index("probe_by_original", "original"),
)

# An answer that a server gave, by the name that it was given with; `steps` are the tokens of prompt and answer and their log-probabilities.
recorded = Table(
    "recorded",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("run", String(200), nullable=False),
    Column("name", String(100), nullable=False),
    Column("policy", String(400), nullable=False),
    Column("prompt", JSON, nullable=False),
    Column("tools", JSON, nullable=False),
    Column("text", Text, nullable=False),
    Column("terminated", Boolean, nullable=False),
    Column("steps", LargeBinary, nullable=False),
    Column("created", Float, nullable=False),
    UniqueConstraint("run", "name"),
)

# How many questions a run has that anybody may be asked, and to how many of those and of all a judge has said something: see `counting`.
asked = Table("asked", metadata, Column("run", String(200), primary_key=True), Column("questions", Integer, nullable=False))

standing = Table(
    "standing",
    metadata,
    Column("run", String(200), primary_key=True),
    Column("judge", ForeignKey("judge.id"), primary_key=True),
    Column("answered", Integer, nullable=False),
    Column("turns", Integer, nullable=False),
)

asking = Table("asking", metadata, Column("run", String(200), primary_key=True), Column("values", JSON, nullable=False))

# One row: what all servers of the store share. The key signs sessions; whoever has the key alone gets in nowhere.
shared = Table(
    "shared",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("key", String(80), nullable=False),
    Column("erasures", Integer, nullable=False),  # how often somebody has been erased: what was counted before is shown to nobody
)

audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("who", String(200), nullable=False),
    Column("what", Text, nullable=False),
    Column("judge", Integer),  # about whom: the name is the judge's, and goes when they are erased
    Column("created", Float, nullable=False),
    sqlite_autoincrement=True,
)
