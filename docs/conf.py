"""Configuration of the documentation; build with ``sphinx-build -W docs docs/_build``."""

import sys
from pathlib import Path

import transferkit

sys.path.append(str(Path(__file__).parent / "_ext"))

project = "transferkit"
author = "transferkit contributors"
copyright = "transferkit contributors"
version = release = transferkit.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "run_examples",
]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}

html_theme = "furo"
html_title = f"transferkit {release}"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["wide.css"]

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Source", "notes")]
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
