"""Pages say which tests hold them: these are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_a_page_names_are_there(page):
    named = NAMED.findall(page.read_text(encoding="utf-8"))
    assert named or page.name != "coming-from.md"
    for file, test in named:
        assert f"def {test}" in (ROOT / file).read_text(encoding="utf-8"), f"{page.name} names {file}::{test}"


def test_each_row_of_habits_names_a_test():
    lines = (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8").splitlines()
    header = None
    for line in lines:
        if not line.startswith("|"):
            header = None
        elif header is None:
            header = line
        elif header.endswith("| Held by |") and not line.startswith("| ---"):
            assert NAMED.search(line), line
