"""Sphinx configuration of the Encyclo site."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from encyclo import __version__

project = "Encyclo"
author = "The Encyclo authors"
project_copyright = "2026, the Encyclo authors"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["colon_fence", "dollarmath", "attrs_inline"]
myst_heading_anchors = 3
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "texts", "make_pages.py"]
html_theme = "furo"
html_title = "Encyclo"
html_static_path = ["_static"]
html_css_files = ["encyclo.css"]
html_show_sourcelink = False
napoleon_use_ivar = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True, "exclude-members": "Config, model_config"}
autodoc_mock_imports: list[str] = []
suppress_warnings = ["ref.python", "docutils", "autodoc", "myst.xref_missing"]
nitpicky = False
