"""README and docs: every Python block runs, every command line parses, every link leads somewhere."""

import importlib
import itertools
import json
import re
import shlex
from pathlib import Path

import pytest

from sd_tf import commandline

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"^<!-- not run by the tests -->\n```python\n.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)", re.MULTILINE)
COMMAND = re.compile(r"(?:^|&& )(?:\.venv/bin/)?python -m (sd_tf(?:\.\w+)+)(.*)")


def name_of(page):
    return page.relative_to(ROOT).as_posix()


def blocks(page):
    """[(language, text)] of a page, without what needs a network, a GPU or files of your own."""
    return FENCE.findall(NOT_RUN.sub("", page.read_text(encoding="utf-8")))


def commands(page):
    """[(module, arguments)] of all command lines of this package on a page, in blocks and within lines."""
    text = page.read_text(encoding="utf-8")
    lines = [line for _, block in FENCE.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    lines += [code.replace("\n", " ") for code in re.findall(r"`([^`]+)`", FENCE.sub("", text))]
    found = [match.groups() for line in lines for match in COMMAND.finditer(line)]
    return [(module, words_of(arguments)) for module, arguments in found if "..." not in arguments]


def anchors(page):
    """What a link to a heading of the page may name, as GitHub and mkdocs derive it from the heading."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def words_of(line):
    """The arguments of a command, up to a comment or another command."""
    words = shlex.shlex(line, posix=True, punctuation_chars="&|;")
    words.whitespace_split = True
    return list(itertools.takewhile(lambda word: not set(word) <= set("&|;"), words))


PAGES_WITH_PYTHON = [page for page in PAGES if any(kind == "python" for kind, _ in blocks(page))]
PAGES_WITH_COMMANDS = [page for page in PAGES if commands(page)]


@pytest.mark.parametrize("page", PAGES_WITH_PYTHON, ids=name_of)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for kind, text in blocks(page):
        if kind == "python":
            exec(compile(text, f"{page.name}:\n{text}", "exec"), names)  # of this repository


class Parsed(Exception):
    pass


@pytest.mark.parametrize("page", PAGES_WITH_COMMANDS, ids=name_of)
def test_the_commands_of_a_page_parse(page, monkeypatch):
    whole = commandline.Parser.parse_args

    def parse(self, arguments):
        whole(self, arguments)
        raise Parsed

    monkeypatch.setattr(commandline.Parser, "parse_args", parse)
    for module, arguments in commands(page):
        package = importlib.util.find_spec(module).submodule_search_locations
        main = importlib.import_module(f"{module}.__main__" if package else module).main
        with pytest.raises(Parsed):
            main(arguments)


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=name_of)
def test_the_links_of_a_page_lead_to_files_and_headings_that_are_there(page):
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    for links in LINK.findall(FENCE.sub("", text)):
        link = next(filter(None, links))
        if link.startswith("https://colab.research.google.com/github/sd-tf/sd_tf/blob/main/"):
            assert (ROOT / link.split("/blob/main/")[1]).is_file(), link
        elif not re.match(r"https?://|mailto:", link):
            file, _, anchor = link.partition("#")
            target = page.parent / file if file else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
