"""Docstrings are read on their own, in a rendered page; ruff's rules D hold their form, and these tests the rest."""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"zoo": ROOT, "zoo_kernels": ROOT / "kernels"}
SECTION = re.compile(r"(\w+):$")
ENTRY = re.compile(r"    (\S[^:]*):(?: |$)")
LATER = re.compile(r"[.;] (\w+): ")
NEEDS_ANOTHER = re.compile(  # openings of a sentence that says nothing without the one that the reader does not see
    r"(Of|See|Those|As|These|They|It|Both|The same|The others?|What (is|it|they)|Not|None|Always|Unless|Here|Nothing)\b"
)


class Documented(NamedTuple):
    """A module, class or function of the source, by its file and its qualified name in it."""

    file: Path
    name: str
    node: ast.Module | ast.ClassDef | ast.FunctionDef
    owner: ast.ClassDef | None

    @property
    def text(self) -> str:
        return ast.get_docstring(self.node) or ""

    @property
    def public(self) -> bool:
        return not any(part.startswith("_") for part in self.name.split("."))

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}: {self.name or 'the module'}"


def walk(file: Path, node: ast.AST, name: str = "", owner: ast.ClassDef | None = None) -> Iterator[Documented]:
    """A node and what is defined in it; functions inside of functions are nobody's to read."""
    yield Documented(file, name, node, owner)
    if isinstance(node, ast.FunctionDef):
        return
    inside = [node]
    while inside:
        for child in ast.iter_child_nodes(inside.pop()):
            if isinstance(child, ast.ClassDef | ast.FunctionDef):
                own = f"{name}.{child.name}".lstrip(".")
                yield from walk(file, child, own, node if isinstance(node, ast.ClassDef) else None)
            elif isinstance(child, ast.If | ast.Try):
                inside.append(child)


ALL = [
    item
    for package, folder in PACKAGES.items()
    for file in sorted((folder / package).rglob("*.py"))
    for item in walk(file, ast.parse(file.read_text(encoding="utf-8")))
]


def entries(text: str, wanted: str) -> list[str]:
    """Lines of a section that begin an entry."""
    section, found = None, []
    for line in text.splitlines():
        if head := SECTION.match(line):
            section = head[1]
        elif line and not line.startswith(" "):
            section = None
        elif section == wanted and line.strip() and not line.startswith("     "):
            found.append(line)
    return found


def names_of(text: str, section: str) -> list[str]:
    return [match[1] if (match := ENTRY.match(line)) else line.strip() for line in entries(text, section)]


def parameters(node: ast.AST) -> set[str]:
    """Parameters of a function, or of the constructor of a class; those of a dataclass or a model are its fields."""
    if isinstance(node, ast.ClassDef):
        made = [child for child in node.body if isinstance(child, ast.FunctionDef) and child.name == "__init__"]
        return parameters(made[0]) if made else attributes(node)
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    return {argument.arg for argument in every if argument} - {"self", "cls"}


def attributes(node: ast.ClassDef) -> set[str]:
    """Names that a class defines, or that its methods assign to self."""
    found = set()
    for child in ast.walk(node):
        if isinstance(child, ast.FunctionDef):
            found.add(child.name)
        elif isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            found.add(child.id)
        elif isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Store):
            found.add(child.attr)
    return found


def inherited(item: Documented) -> str | None:
    """What a method that says nothing inherits, found by importing its class."""
    package = next(folder for name, folder in PACKAGES.items() if (folder / name) in item.file.parents)
    module = ".".join(item.file.relative_to(package).with_suffix("").parts).removesuffix(".__init__")
    thing = importlib.import_module(module)
    for part in item.name.split("."):
        thing = getattr(thing, part)
    return inspect.getdoc(thing)


def test_every_public_method_has_a_docstring_or_inherits_one():
    silent = [item for item in ALL if item.public and item.owner and not item.text and item.node.name[0] != "_"]
    assert silent, "methods that add nothing to the contract inherit its docstring"
    assert [str(item) for item in silent if not is_setter(item) and not inherited(item)] == []


def is_setter(item: Documented) -> bool:
    """Whether a method is the second half of a property, whose first half has the docstring."""
    return any(isinstance(mark, ast.Attribute) and mark.attr == "setter" for mark in item.node.decorator_list)


def test_the_first_sentence_stands_alone():
    leaning = [
        f"{item} | {item.text.splitlines()[0]}" for item in ALL if item.public and NEEDS_ANOTHER.match(item.text)
    ]
    assert leaning == []


@pytest.mark.parametrize(("section", "known"), [("Args", parameters), ("Attributes", attributes)])
def test_sections_name_what_exists_one_a_line(section, known):
    wrong = []
    for item in ALL:
        lines = entries(item.text, section)
        if not lines or isinstance(item.node, ast.Module):
            continue
        exist = known(item.node)
        wrong += [f"{item}: {name}" for name in names_of(item.text, section) if name.lstrip("*") not in exist]
        wrong += [f"{item}: {line.strip()}" for line in lines if (later := LATER.search(line)) and later[1] in exist]
    assert wrong == []


def test_a_second_argument_on_a_line_is_found():
    text = "Joins.\n\nArgs:\n    a, b: both.\n    c: one. d: another.\n\nReturns:\n    e: none."
    assert names_of(text, "Args") == ["a, b", "c"]
    assert LATER.search(entries(text, "Args")[1])[1] == "d"
