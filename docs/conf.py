"""The documentation site: `python -m sphinx -W docs build/docs`. Its pages are docs/*.md.

Written at the start of a build, ignored by git: `api/`, a page for each public module, `project/`, copies of the pages
at the root of the repository, and `notebooks/`, copies of the notebooks, which the build runs.
"""

import os
import re
from pathlib import Path
from shutil import rmtree
from typing import Any

from docutils import nodes
from sphinx.addnodes import download_reference, pending_xref
from torch.autograd import Function

from torch_caption import __version__

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
ROOT_PAGES = ("CONTRIBUTING", "CHANGELOG")
NOTEBOOKS = ROOT / "notebooks"

project = "torch_caption"
release = __version__
copyright = "the authors of torch_caption"
extensions = [
    "myst_nb",
    "sphinx-mathjax-offline",  # MathJax on the site itself: formulas need no network
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["images"]

html_theme = "pydata_sphinx_theme"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = project
html_show_sourcelink = False
html_theme_options = {
    "header_links_before_dropdown": 4,
    "secondary_sidebar_items": ["page-toc"],
    "show_prev_next": False,
}
html_sidebars = {"*": [], "notebooks/*": [], "notes/*": [], "project/*": []}  # only api/ has many nested pages

myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 4
# The Python blocks of the pages are not cells: tests/test_docs.py runs them. Notebooks are run here, in processes of
# their own, which import the package of this checkout.
nb_execution_raise_on_error = True
nb_execution_timeout = 300  # seconds, of a cell
nb_merge_streams = True  # of a cell, or a table that is printed in two parts is shown in two parts
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

highlight_language = "text"  # of formulas; Python blocks are marked
default_role = "py:obj"  # `name` in a docstring: a link to a documented name, else code
add_module_names = False
autodoc_member_order = "bysource"
autodoc_default_options = {"ignore-module-all": True}  # a name is documented only in its own module
autodoc_inherit_docstrings = False
# Several names may share a line ("hand, auto: functions ..."): lists, not fields, which have one name each.
napoleon_use_param = False
napoleon_custom_sections = [("Attributes", "params_style")]
python_maximum_signature_line_length = 100
viewcode_follow_imported_members = False  # or the list of sources has pages that do not exist


def dotted(path: Path) -> str:
    """The module of a file, such as torch_caption.data.dataset."""
    return ".".join(path.with_suffix("").parts[len(ROOT.parts) :]).removesuffix(".__init__")


PUBLIC = {name for path in (ROOT / project).rglob("*.py") if "._" not in (name := dotted(path))}


def write_pages() -> None:
    """Write `api/`, `project/` and `notebooks/`."""
    for folder in ("api", "project"):
        rmtree(DOCS / folder, ignore_errors=True)
        (DOCS / folder).mkdir()
    for name in ROOT_PAGES:
        text = (ROOT / f"{name}.md").read_text(encoding="utf-8")
        moved = re.sub(r"\]\((?![a-z]+:|#)", "](../../", text)
        (DOCS / "project" / f"{name}.md").write_text(moved, encoding="utf-8")
    (DOCS / "notebooks").mkdir(exist_ok=True)
    written = {path.name: path for path in (DOCS / "notebooks").iterdir()}
    for path in NOTEBOOKS.glob("*.ipynb"):
        text = path.read_text(encoding="utf-8").replace("](../docs/", "](../")
        copy = written.pop(path.name, None)
        if copy is None or copy.read_text(encoding="utf-8") != text:  # an unchanged one is not run again
            (DOCS / "notebooks" / path.name).write_text(text, encoding="utf-8")
    for path in written.values():
        path.unlink()

    for name in PUBLIC:
        below = sorted(other for other in PUBLIC if other.rpartition(".")[0] == name)
        title = name.partition(".")[2] or "API reference"
        lines = [title, "=" * len(title), "", f".. automodule:: {name}", "" if below else "   :members:", ""]
        lines += [".. toctree::", "", *(f"   {other}" for other in below), ""] if below else []
        (DOCS / "api" / f"{name}.rst").write_text("\n".join(lines), encoding="utf-8")


def adapt_docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Preformat an indented block after an empty line: a formula. The text after `Returns:` is not a type."""
    for at in range(len(lines) - 1, 0, -1):
        if lines[at - 1].strip() in ("Returns:", "Yields:"):
            lines[at] = re.sub(r"(?=\S)", ": ", lines[at], count=1)  # an empty type: the signature has it
        above = next((line for line in reversed(lines[:at]) if line), " ")
        if lines[at].startswith("    ") and not lines[at - 1] and not above.startswith(" "):
            lines[at:at] = ["::", ""]


def hide_signature(app: Any, what: str, name: str, obj: Any, *_: Any) -> tuple[str, None] | None:
    """A Function is applied, not called: its constructor is not documented."""
    return ("", None) if what == "class" and issubclass(obj, Function) else None


def link_files(app: Any, doctree: nodes.document) -> None:
    """Redirect a link outside docs/ to the page of the module or room, or to the copy of a page of the root or of a
    notebook."""
    folder = (DOCS / app.env.docname).parent
    for node in [*doctree.findall(lambda node: isinstance(node, download_reference | pending_xref))]:
        path = (folder / node["reftarget"]).resolve()
        if dotted(path) in PUBLIC:
            target = f"api/{dotted(path)}"
        elif path.parent == ROOT and path.stem in ROOT_PAGES:
            target = f"project/{path.stem}"
        elif path.parent == NOTEBOOKS:
            target = f"notebooks/{path.stem}"
        else:
            continue
        names = {name: node.get(name) for name in ("refdoc", "refexplicit", "reftargetid", "reftype")}
        node.replace_self(pending_xref("", *node.children, refdomain="doc", reftarget=target, **names))


def setup(app: Any) -> None:
    """Connect the functions above."""
    write_pages()
    app.connect("autodoc-process-docstring", adapt_docstring, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", hide_signature)
    app.connect("doctree-read", link_files, priority=400)  # before files to download are copied
