"""Configuration of the documentation site; CONTRIBUTING.md has the command that builds it."""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "topicell"
author = "the authors of topicell"
release = version = installed_version("topicell")
html_title = f"topicell {release}"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "extension.pages",
    "extension.reference",
]
# README.md is the list of pages for readers on a Git host; the site has index.md.
exclude_patterns = ["README.md", "_build", "extension"]
nitpicky = True
suppress_warnings = ["myst.header"]  # a study may begin with a section of its tables

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
# Notebooks are written with few cells that need long; an error of a cell is an error of the build.
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 300

# A name in single backticks of a docstring; extension.reference resolves it.
default_role = "py:obj"
add_module_names = False
toc_object_entries_show_parents = "hide"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 80
# The text of Returns and Warns is not preceded by a type: the signature has it.
napoleon_custom_sections = [("Returns", "notes_style"), ("Attributes", "params_style")]

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "sphinx_book_theme"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_context = {"default_mode": "auto"}
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "navbar_persistent": [],  # the search is in the side bar
    "use_download_button": False,
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
linkcheck_anchors = False
