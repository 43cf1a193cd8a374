"""Descriptions of models, and which of their keys were read: none is ignored in silence."""

import math
from collections.abc import Callable, Collection
from typing import Any

from rather.errors import ModelError


class UnsupportedError(ModelError):
    """A model that rather's own transformer does not compute, though `transformers` may; the message is the reason alone."""


class Fields:
    """The keys of a description that stands at `place`, for example a config.json. A key that is null counts as absent."""

    def __init__(self, values: dict[str, Any], place: str) -> None:
        self.values, self.place = values, place
        self.unread = set(values)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of `key`, which now counts as read."""
        self.unread.discard(key)
        value = self.values.get(key)
        return default if value is None else value

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number above 0; without `default` the key has to be there.

        Raises:
            ModelError: it is something else.
        """
        return self._checked(key, default, "a whole number from 1 to 2147483647", lambda x: type(x) is int and 0 < x < 2**31)

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number above 0; without `default` the key has to be there.

        Raises:
            ModelError: it is something else.
        """
        return self._checked(
            key, default, "a finite number above 0", lambda x: type(x) in (int, float) and 0 < x < math.inf
        )  # fmt: skip

    def flag(self, key: str, default: bool) -> bool:
        """A truth value.

        Raises:
            ModelError: it is something else.
        """
        return self._checked(key, default, "true or false", lambda x: isinstance(x, bool))

    def part(self, key: str) -> "Fields":
        """An object within this one, empty where it is absent.

        Raises:
            ModelError: it is something else.
        """
        return Fields(self._checked(key, {}, "an object with keys", lambda x: isinstance(x, dict)), f"{key} in {self.place}")

    def _checked(self, key: str, default: Any, wanted: str, fits: Callable[[Any], bool]) -> Any:
        value = self.get(key, default)
        if value is None:
            raise ModelError(f"{self.place} does not say {key!r}; it must be {wanted}")
        if not fits(value):
            raise ModelError(f"{key} in {self.place} is {value!r}; it must be {wanted}")
        return value

    def refuse_unread(self, harmless: Collection[str] = (), off: Collection[Any] = (False, "")) -> None:
        """Refuse a key that nobody has read, unless it is one of the `harmless`, private (_...), empty or one of the values `off`.

        Raises:
            ModelError: there is one.
        """
        for key in sorted(self.unread):
            value = self.values[key]
            empty = value in (None, [], {}) or any(value is x or (value == x and type(value) is type(x)) for x in off)
            if not empty and key not in harmless and not key.startswith("_"):
                raise ModelError(
                    f"{self.place} says {key} = {value!r}, which rather does not know and which may change what the model computes; "
                    "remove the key if it does not"
                )
