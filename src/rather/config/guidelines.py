"""The owner's guidelines: a Markdown file that people read before they answer."""

from pathlib import Path

from rather.errors import ConfigError

LONGEST = 20_000
"""Characters that a file may have: longer texts are not shown as Markdown, and nobody reads them before a question."""


def read(file: str) -> str:
    """The text of the file that `judge.guidelines` names; "" where it names none.

    Raises:
        ConfigError: the file is missing, empty, too long or no UTF-8.
    """
    if not file:
        return ""
    try:
        with Path(file).open("rb") as opened:
            read = opened.read(4 * LONGEST + 4)
        text = read.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"there is no file {file}, which judge.guidelines names; write it, or leave the setting empty") from None
    except OSError as e:
        raise ConfigError(f"the guidelines {file} cannot be read: {e.strerror}") from None
    except UnicodeDecodeError as e:
        if len(read) - e.start < 4 and len(read) == 4 * LONGEST + 4:
            raise _too_long(file) from None
        raise ConfigError(f"the guidelines {file} are no UTF-8: byte {e.start + 1} belongs to no character; save them as UTF-8") from None
    if len(text) > LONGEST or len(read) == 4 * LONGEST + 4:
        raise _too_long(file)
    if not any(c.isprintable() and not c.isspace() for c in text):
        raise ConfigError(f"the guidelines {file} are empty; write something, or leave judge.guidelines empty")
    return text


def _too_long(file: str) -> ConfigError:
    return ConfigError(f"the guidelines {file} have more than {LONGEST:,} characters; shorten them")
