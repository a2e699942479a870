"""Makes the pack `pydocs`: Python's documentation (Debian python3.11-doc) and the standard library's docstrings."""

import ast
import inspect
import platform
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent

import pyarrow as pa
from _lib import deb, fixed_splits, write_pack

VERSION = "3.11.2-6+deb12u9"
SKIPPED_PAGES = {"contents", "license", "copyright", "bugs", "about", "index"}
SKIPPED_MODULES = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "turtledemo", "__pycache__"}
OBJECTS = {
    "function", "class", "method", "attribute", "data", "exception", "decorator", "classmethod", "staticmethod",
    "coroutinefunction", "coroutinemethod", "abstractmethod", "property", "describe", "option", "opcode", "pdbcommand",
    "envvar", "audit-event", "cmdoption", "macro", "type", "member", "var", "struct", "enum", "enumerator",
}  # fmt: skip
ASIDES = {
    "note", "warning", "tip", "versionadded", "versionchanged", "deprecated", "deprecated-removed", "impl-detail",
    "seealso", "glossary", "important", "rst-class", "topic", "container", "hlist", "availability",
}  # fmt: skip
CODE = {"code-block", "code", "doctest", "testcode", "sourcecode"}
LONGEST = 2000  # letters in one unit: longer ones are tables of numbers and listings


@dataclass
class Section:
    """A section: its title, and its paragraphs in order (prose first among them is what `pair` quotes)."""

    title: str
    prose: list[tuple[str, bool]] = field(default_factory=list)  # (text, whether it is prose)


def plain(text: str) -> str:
    """Text without reStructuredText's inline markup."""
    text = re.sub(r":pep:`(\d+)[^`]*`", r"PEP \1", text)
    text = re.sub(r":rfc:`(\d+)[^`]*`", r"RFC \1", text)
    text = re.sub(r":issue:`(\d+)`", r"bpo-\1", text)
    text = re.sub(r":[\w:+-]+:`!?~(?:[^`<]*\.)?([^`.]+)`", r"\1", text)
    text = re.sub(r":[\w:+-]+:`!?([^`<]+?)\s*<[^`>]*>`", r"\1", text)
    text = re.sub(r":[\w:+-]+:`!?([^`]*)`", r"\1", text)
    text = re.sub(r"``([^`]+)``", r"\1", text)
    text = re.sub(r"`([^`<]+?)\s*<[^`>]*>`__?", r"\1", text)
    text = re.sub(r"`([^`]+)`_?_?", r"\1", text)
    text = re.sub(r"\*\*([^*]+)\*\*", r"\1", text)
    text = re.sub(r"(?<![\w*\\(])\*(\w(?:[^*\n]*\S)?)\*(?![\w*])", r"\1", text)
    text = re.sub(r"\|(?:version|release)\|", "3.11", text)
    text = re.sub(r"\s?\[[#\w]+\]_", "", text)
    return re.sub(r"\\(.)", r"\1", text).replace(" --- ", " - ")


def _rule(line: str) -> bool:
    return len(line) >= 3 and bool(re.fullmatch(r"([=\-~^\"'*#+`:.])\1+", line))


def _indented(lines: list[str], start: int) -> int:
    """Where the block of indented and blank lines from `start` ends."""
    end = start
    while end < len(lines) and (not lines[end].strip() or lines[end][0] in " \t"):
        end += 1
    return end


def parse(lines: list[str], sections: list[Section]) -> None:
    """Read reStructuredText into `sections`, prose and code as separate paragraphs, without tables and figures."""
    at, literal = 0, False
    while at < len(lines):
        line = lines[at].rstrip()
        if not line:
            at += 1
        elif line.startswith("..") and (line == ".." or line[2] == " "):
            end = _indented(lines, at + 1)
            _directive(line, lines[at + 1 : end], sections)
            at = end
        elif _rule(line) and at + 2 < len(lines) and _rule(lines[at + 2].rstrip()):
            sections.append(Section(plain(lines[at + 1].strip())))
            at += 3
        elif at + 1 < len(lines) and _rule(lines[at + 1].rstrip()) and not line[0].isspace():
            sections.append(Section(plain(line)))
            at += 2
        elif line.startswith("+-") or re.match(r"=+ +=", line):
            while at < len(lines) and lines[at].strip():
                at += 1
        elif line[0].isspace():
            end = _indented(lines, at)
            body = dedent("\n".join(lines[at:end]).rstrip())
            if literal or body.lstrip().startswith(">>>"):
                sections[-1].prose.append((body, False))
            else:
                parse(body.split("\n"), sections)
            at, literal = end, False
        else:
            end = at
            while end < len(lines) and lines[end].strip():
                end += 1
            literal = _paragraph([item.rstrip() for item in lines[at:end]], sections[-1])
            at = end


def _directive(head: str, body: list[str], sections: list[Section]) -> None:
    found = re.match(r"\.\. (?:[\w-]+:)?([\w-]+):: ?(.*)", head)
    if not found:
        return  # a comment, a footnote or the target of a link
    name, argument = found.groups()
    text = dedent("\n".join(body))
    options = re.match(r"(?:\s*:[\w-]+:.*\n?)*", text)
    rest = text[options.end() :] if options else text
    if name in CODE:
        sections[-1].prose.append((dedent(rest).strip("\n").rstrip(), False))
    elif name in OBJECTS:
        more = [
            line.strip() for line in body[: next((i for i, line in enumerate(body) if not line.strip()), len(body))]
        ]
        signatures = [argument, *(line for line in more if line and not line.startswith(":"))]
        rest = "\n".join(body[len(more) :]) if len(signatures) > 1 else rest
        sections[-1].prose.append((plain("; ".join(signatures)), False))
        parse(dedent(rest).split("\n"), sections)
    elif name in ASIDES:
        parse(dedent(f"{argument}\n" if argument and name != "versionadded" else "").split("\n"), sections)
        parse(dedent(rest).split("\n"), sections)


def _paragraph(lines: list[str], section: Section) -> bool:
    """Add a paragraph, or the items of a list; whether what follows is a literal block."""
    if lines[0].startswith(">>>"):
        section.prose.append(("\n".join(lines), False))
        return False
    bullet = re.compile(r"(?:[*\-•]|#\.|\d+\.)\s+")
    items: list[list[str]] = []
    if bullet.match(lines[0]):
        for line in lines:
            if bullet.match(line):
                items.append([bullet.sub("", line, count=1)])
            else:
                items[-1].append(line.strip())
    elif len(lines) > 1 and lines[1][0].isspace() and not lines[0].endswith("::"):
        items = [[f"{lines[0]}:", *(line.strip() for line in lines[1:])]]  # a term and its definition
    else:
        items = [[line.strip() for line in lines]]
    literal = False
    for item in items:
        text = plain(" ".join(item)).strip()
        literal = text.endswith("::")
        text = re.sub(r"\s*::$", ":" if not text.endswith(" ::") else "", text)
        if text and text != ":":
            section.prose.append((text, True))
    return literal


def pages() -> Iterator[tuple[str, str, list[Section]]]:
    """Documentation: (document, title of the page, sections)."""
    root = deb("python3.11-doc", VERSION) / "usr" / "share" / "doc" / "python3.11" / "html" / "_sources"
    for path in sorted(root.rglob("*.rst.txt")):
        name = path.relative_to(root).as_posix().removesuffix(".txt")
        if Path(name).stem in SKIPPED_PAGES or name == "whatsnew/changelog.rst":
            continue
        sections = [Section("")]
        parse(path.read_text(encoding="utf-8").expandtabs(8).split("\n"), sections)
        titled = [section for section in sections if section.title]
        if titled:
            yield f"Doc/{name}", titled[0].title, sections


def docstrings() -> Iterator[tuple[str, str, list[Section]]]:
    """The standard library: (document, module, one section for each object with a docstring)."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if SKIPPED_MODULES & set(relative.parts) or relative.parts[0].startswith(
            ("config-", "_sysconfigdata", "lib-dynload")
        ):
            continue
        if path.is_symlink() or relative.name.startswith("_sysconfigdata"):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
        sections = list(_documented(tree, module))
        if sections:
            yield f"Lib/{relative.as_posix()}", module, sections


def _documented(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str
) -> Iterator[Section]:
    said = ast.get_docstring(node, clean=False)
    if said:
        section = Section(name)
        for part in re.split(r"\n[ \t]*\n", inspect.cleandoc(said)):
            lines = part.strip("\n").split("\n")
            laid_out = any(line[:1].isspace() or line.startswith((">>>", "- ", "* ")) for line in lines)
            text = "\n".join(lines) if laid_out else " ".join(line.strip() for line in lines)
            section.prose.append((text.rstrip(), not laid_out))
        yield section
    for child in node.body:
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _documented(child, f"{name}.{child.name}")


def first_sentences(section: Section) -> str:
    """The first two sentences of a section's prose, at most 400 letters."""
    prose = next((text for text, is_prose in section.prose if is_prose and len(text) >= 40), "")
    sentences = re.split(r"(?<=[.!?])\s+(?=[A-Z])", prose)
    said = sentences[0]
    if len(sentences) > 1 and len(said) + len(sentences[1]) < 400:
        said = f"{said} {sentences[1]}"
    return said if len(said) <= 400 else ""


def main() -> None:
    texts: list[tuple[str, str, str]] = []
    pairs: list[tuple[str, str, str]] = []
    seen: set[str] = set()
    queries: set[str] = set()
    answers: set[str] = set()
    for source in (pages, docstrings):
        for document, page, sections in source():
            for section in sections:
                title = section.title or page
                for text, _ in section.prose:
                    # What stands in several places (deprecation notices, inherited docstrings) is kept once only.
                    if 20 <= len(text) <= LONGEST and text not in seen:
                        seen.add(text)
                        texts.append((text, document, title))
                said = first_sentences(section)
                query = title if title == page or source is docstrings else f"{title} ({page})"
                if said and query not in queries and said not in answers:
                    queries.add(query)
                    answers.add(said)
                    pairs.append((query, said, document))
    splits = fixed_splits([row[1] for row in texts] + [row[2] for row in pairs])
    text_columns, pair_columns = ("text", "document", "section"), ("query", "document", "file")
    tables: dict[tuple[str, ...], dict[str, pa.Table]] = {("text",): {}, ("pair",): {}}
    for split in ("train", "validation", "test"):
        chosen = [row for row in texts if splits[row[1]] == split]
        tables[("text",)][split] = pa.table(
            {c: pa.array([r[i] for r in chosen], pa.string()) for i, c in enumerate(text_columns)}
        )
        chosen = [row for row in pairs if splits[row[2]] == split]
        tables[("pair",)][split] = pa.table(
            {c: pa.array([r[i] for r in chosen], pa.string()) for i, c in enumerate(pair_columns)}
        )
    copyright_file = deb("python3.11-doc", VERSION) / "usr" / "share" / "doc" / "python3.11-doc" / "copyright"
    write_pack(
        "pydocs",
        views=("text", "pair"),
        tables=tables,
        hub_licence="other",
        tasks=("text-generation", "text-retrieval"),
        languages=("en",),
        texts={"LICENSE.txt": copyright_file.read_text(encoding="utf-8")},
        title="Python's documentation and docstrings",
        description="The documentation of Python 3.11 without its markup, and the docstrings of its standard library, a"
        " paragraph, list item, signature or code example a row, with the file as document and the section's title"
        " (or the"
        " object's full name). As `pair`: query 'section (page)' or the object's name, document the first sentences."
        " Splits"
        " keep files whole.",
        source="https://docs.python.org/3.11/",
        package=f"Debian python3.11-doc {VERSION}; the standard library of Python {platform.python_version()}",
        licence="PSF-2.0",
        licence_url="https://docs.python.org/3.11/license.html",
        attribution="Copyright (c) 2001-2023 Python Software Foundation; All Rights Reserved",
        notes=(
            "paragraphs of fewer than 20 and more than 2,000 letters, tables and figures are left out; paragraphs"
            " that occur"
            " in several files are kept once",
            "a documentation page and the docstrings of its module are different files and may stand in different"
            " splits",
        ),
    )


if __name__ == "__main__":
    main()
