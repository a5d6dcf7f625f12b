"""Sphinx's settings for the docs site; `make docs` stages the pages and runs it."""

import re
import sys
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

project = "pairstack"
author = "The pairstack developers"
project_copyright = "MIT licence"
version = release = version_of("pairstack")

extensions = ["myst_nb", "sphinx.ext.autodoc", "numpydoc", "sphinx_copybutton"]
myst_enable_extensions = ["attrs_inline"]
myst_heading_anchors = 4
# Committed outputs are shown; `make notebooks` is what runs them.
nb_execution_mode = "off"
exclude_patterns = ["_build"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # numpydoc's sections name shapes and units, which types cannot
autodoc_default_options = {"members": True, "show-inheritance": False}
numpydoc_show_class_members = False
default_role = "literal"
highlight_language = "text"
smartquotes = False  # "auto" is a value, not speech

html_theme = "furo"
html_title = "pairstack"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
# Summaries are fetched page by page, which a browser refuses for a site that is opened as files.
html_show_search_summary = False
# System fonts: nothing is fetched, at building or at reading.
_FONTS = {
    "font-stack": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif",
    "font-stack--monospace": "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace",
}
html_theme_options = {"light_css_variables": _FONTS, "dark_css_variables": _FONTS}
pygments_style, pygments_dark_style = "friendly", "github-dark"


def setup(app: Any) -> None:
    """Leave out what scikit-learn adds to every estimator for its metadata routing."""
    routing = re.compile(r"set_\w+_request|get_metadata_routing")
    app.connect(
        "autodoc-skip-member",
        lambda app, what, name, item, skip, options: True if routing.fullmatch(name) else None,
    )
