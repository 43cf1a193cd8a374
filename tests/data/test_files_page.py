"""Every example of docs/reference/files.md is read as the page says."""

import json
import re
from pathlib import Path

import pytest

from rather.data.forms import read_comparisons

PAGE = (Path(__file__).parents[2] / "docs/reference/files.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```jsonl\n(.*?)```\n```json\n(.*?)```", PAGE, re.S)


def test_the_page_has_an_example_of_each_form() -> None:
    assert len(EXAMPLES) == PAGE.count("```jsonl") == 7


@pytest.mark.parametrize(("rows", "meant"), EXAMPLES)
def test_an_example_is_read_as_the_page_says(tmp_path: Path, rows: str, meant: str) -> None:
    (tmp_path / "x.jsonl").write_text(rows, encoding="utf-8")
    (found,) = read_comparisons(tmp_path / "x.jsonl")
    assert found.preference is not None
    better = found if found.preference > 0.5 else found.swapped()
    assert better.preference is not None
    read = {
        "prompt": better.a[0].task.prompt,
        "better": better.a[0].text,
        "worse": better.b[0].text,
        "preference": round(better.preference, 4),
    }
    assert read == json.loads(meant)
