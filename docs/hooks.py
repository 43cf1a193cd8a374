"""What MkDocs does beside rendering docs/: pages from elsewhere in the repository, and tables that are made from the code.

A page links to files outside docs/ as it would on a code host (`../../bench/results/demo.md`). Those files become part of the site, and the
links are turned to them. A comment `<!-- generated: NAME -->` in a page is replaced by what the function `NAME` in `GENERATED` returns.
"""

import os.path
import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))
from generated import GENERATED

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
LINK = re.compile(r"(\]\()([^)#:\s]+)((?:#[^)]*)?\))")
"""A link to a file, in Markdown: what stands before, the file, what stands behind."""
CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.DOTALL | re.MULTILINE)


def site_uri(path: Path) -> str:
    """Where a file of the repository stands in the site."""
    if path == ROOT / "README.md":  # what the site begins with says the same
        return "index.md"
    path = path / "index.md" if path.is_dir() else path
    return path.relative_to(DOCS if path.is_relative_to(DOCS) else ROOT).as_posix()


def source(uri: str) -> Path:
    """The file in the repository that a page is made from."""
    return DOCS / uri if (DOCS / uri).exists() else ROOT / uri


def links(page: Path, text: str) -> set[Path]:
    """The files and folders outside docs/ that a page links to."""
    found = {(page.parent / target).resolve() for _, target, _ in LINK.findall(CODE.sub("", text))}
    return {path for path in found if path.exists() and path.is_relative_to(ROOT) and not path.is_relative_to(DOCS)}


def listing(folder: Path) -> str:
    """A page that links to all Markdown files of a folder, each by its title."""
    pages = sorted(folder.glob("*.md"))
    rows = [f"- [{page.read_text(encoding='utf-8').splitlines()[0].lstrip('# ')}]({page.name})" for page in pages]
    return "\n".join([f"# {folder.relative_to(ROOT)}", "", *rows, ""])


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside docs/ that pages link to, and those that these link to."""
    left = [ROOT / "CONTRIBUTING.md", ROOT / "AGENTS.md", ROOT / "CHANGELOG.md", ROOT / "bench/results"]
    left += [path for page in DOCS.rglob("*.md") for path in links(page, page.read_text(encoding="utf-8"))]
    added = {ROOT / "README.md"}
    while left:
        path = left.pop()
        if path in added:
            continue
        added.add(path)
        if path.is_dir():
            files.append(File.generated(config, site_uri(path), content=listing(path)))
            left += sorted(path.glob("*.md"))
        else:
            files.append(File.generated(config, site_uri(path), abs_src_path=str(path)))
            if path.suffix == ".md":
                left += links(path, path.read_text(encoding="utf-8"))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to where their files stand in the site, and fill in what is made from the code."""
    place = source(page.file.src_uri)

    def turned(link: re.Match[str]) -> str:
        target = (place.parent / link[2]).resolve()
        if not target.exists() or not target.is_relative_to(ROOT):
            return link[0]  # a generated page, or a mistake, which MkDocs reports
        return f"{link[1]}{os.path.relpath(site_uri(target), Path(page.file.src_uri).parent)}{link[3]}"

    markdown = re.sub(r"<!-- generated: (\w+) -->", lambda found: GENERATED[found[1]](), markdown)
    parts = CODE.split(markdown)
    return "".join(part if i % 2 else LINK.sub(turned, part) for i, part in enumerate(parts))
