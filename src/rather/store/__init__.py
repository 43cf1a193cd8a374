"""The preference store: questions, who is looking at them, and every answer that was ever given, in SQL."""

from rather.store.store import Question, Store

__all__ = ["Question", "Store"]
