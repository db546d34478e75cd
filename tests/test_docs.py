"""The Python examples of README.md and docs/*.md run, in order, each page in one namespace and one empty directory.

A fragment that only illustrates is left out by an HTML comment on the line before its fence: `<!-- not run: why -->`.
"""

from __future__ import annotations

import doctest
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lepton_jit.codegen.target import get_target
from lepton_jit.common import naming
from lepton_jit.compiler.pipeline import AFTER_SPLIT, pipeline

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(path for path in [ROOT / "README.md", *(ROOT / "docs").glob("**/*.md")] if path.is_file())
FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<language>[\w+-]*).*$")
NOT_RUN = re.compile(r"^\s*<!-- not run: \S.* -->\s*$")


@dataclass(frozen=True)
class Block:
    """A fenced block: its text, and the line of the page that its text starts on, from 1."""

    source: str
    line: int
    run: bool


def python_blocks(text: str) -> list[Block]:
    """The blocks fenced as ```python, those that are not to be run included; ValueError for a fence left open."""
    blocks = []
    lines = text.splitlines()
    position = 0
    while position < len(lines):
        opened = FENCE.match(lines[position])
        if opened is None:
            position += 1
            continue
        closing = f"{opened['indent']}{opened['ticks']}"
        end = next((i for i in range(position + 1, len(lines)) if lines[i].rstrip() == closing), None)
        if end is None:
            raise ValueError(f"line {position + 1}: this block is never closed")
        if opened["language"] == "python":
            body = "\n".join(line.removeprefix(opened["indent"]) for line in lines[position + 1 : end])
            skipped = any(NOT_RUN.match(line) for line in lines[max(position - 1, 0) : position])
            blocks.append(Block(body + "\n", position + 2, not skipped))
        position = end + 1
    return blocks


def run_page(text: str, name: str) -> int:
    """Run a page's blocks and return how many; a failure shows the page's own line."""
    namespace: dict[str, Any] = {"__name__": "__docs__"}
    count = 0
    for block in python_blocks(text):
        if not block.run:
            continue
        count += 1
        if block.source.lstrip().startswith(">>>"):
            run_session(block, name, namespace)
        else:
            exec(compile("\n" * (block.line - 1) + block.source, name, "exec", dont_inherit=True), namespace)
    return count


def run_session(block: Block, name: str, namespace: dict[str, Any]) -> None:
    session = doctest.DocTestParser().get_doctest(block.source, namespace, name, name, block.line - 1)
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    runner.run(session, out=report.append, clear_globs=False)
    assert not runner.failures, "".join(report)
    namespace.update(session.globs)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    naming.reset_names()  # a page names its layers as in a fresh process

    run_page(page.read_text(encoding="utf-8"), str(page))


def test_the_table_of_passes_has_those_of_the_pipeline_in_its_order():
    table = re.findall(r"^\| \(?`([\w-]+)`\)? \|", (ROOT / "docs/passes.md").read_text(encoding="utf-8"), re.MULTILINE)
    before = dict.fromkeys(p.name for p in pipeline(get_target("x86-64-v3")))

    assert table[: table.index("split_prepare") + 1 + len(AFTER_SPLIT)] == [
        *before,
        "split_prepare",
        *(p.name for p in AFTER_SPLIT),
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))

    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_glossary_names_what_the_code_has():
    rows = re.findall(
        r"^\|(?:.*?)\|(?:.*?)\|(.*?)\|.*\|$", (ROOT / "docs/glossary.md").read_text(encoding="utf-8"), re.M
    )
    paths = [path for path in (ROOT / "lepton_jit").rglob("*") if path.suffix != ".pyc"]
    words = {word for path in paths if path.suffix == ".py" for word in re.findall(r"\w+", path.read_text("utf-8"))}

    def known(name: str) -> bool:
        if "/" in name or name.endswith(".py"):
            return any(path.match(name) for path in paths)
        return set(re.findall(r"\w+", name)) <= words

    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert [name for name in named if not known(name)] == []
    assert len(named) >= 80


def test_comments_name_sections_of_the_measurements_that_exist():
    page = (ROOT / "docs/measurements.md").read_text(encoding="utf-8")
    sections = {title.lower() for title in re.findall(r"^## (.*)$", page, re.MULTILINE)}
    code = [re.sub(r"\n\s*#? ?", " ", path.read_text("utf-8")) for path in (ROOT / "lepton_jit").rglob("*.py")]
    named = [name.lower() for text in code for name in re.findall(r"docs/measurements\.md, ([\w -]+)", text)]

    assert [name for name in named if name not in sections] == []
    assert len(named) >= 10


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_prose_stays_within_120_columns(page):
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    prose = [line for line in text.splitlines() if not line.startswith(("|", "<!--"))]

    assert [line for line in prose if len(line) > 120] == []


def test_the_architecture_names_files_and_functions_that_exist():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    package = ROOT / "lepton_jit"
    files = re.findall(r"`([\w/]+\.(?:py|ll)|[\w/]+/)`(?:: ((?:`\w+`(?:, )?)+))?", text)
    names = [(file, name) for file, listed in files for name in re.findall(r"\w+", listed)]

    assert [file for file, _ in files if not (package / file).exists() and not (ROOT / file).exists()] == []
    assert [(f, n) for f, n in names if not re.search(rf"\b{n}\b", (package / f).read_text(encoding="utf-8"))] == []
    assert len(names) >= 10


PAGE = """\
# A page

```python
a = 1
```

<!-- not run: needs a network -->
```python
raise SystemExit
```

```sh
make test
```

1. In a list:

   ```python
   b = a + 1
   assert b == 2
   ```

```python
>>> b
2
>>> c = b + 1
```

```python
assert c == 3
```
"""


def test_blocks_of_a_page_share_a_namespace():
    assert run_page(PAGE, "page.md") == 4


def test_blocks_know_their_line_and_whether_they_run():
    found = [(block.line, block.run, block.source.splitlines()[0]) for block in python_blocks(PAGE)]

    assert found == [
        (4, True, "a = 1"),
        (9, False, "raise SystemExit"),
        (19, True, "b = a + 1"),
        (24, True, ">>> b"),
        (30, True, "assert c == 3"),
    ]


def test_a_failing_example_fails_at_its_own_line():
    with pytest.raises(ZeroDivisionError) as caught:
        run_page("text\n\n```python\nx = 1\nx / 0\n```\n", "page.md")
    assert caught.traceback[-1].lineno + 1 == 5


def test_a_wrong_answer_in_a_session_fails():
    with pytest.raises(AssertionError, match=r"Got:\s+2\s"):
        run_page("```python\n>>> 1 + 1\n3\n```\n", "page.md")


def test_an_open_fence_is_an_error():
    with pytest.raises(ValueError, match="line 2: this block is never closed"):
        python_blocks("text\n```python\nx = 1\n")
