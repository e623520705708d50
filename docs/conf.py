"""How the documentation becomes a site: see scripts/docs."""

from __future__ import annotations

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

from gpuyard import __version__

project = "gpuyard"
copyright = "gpuyard contributors, GPL-3.0-or-later"
version = release = __version__
extensions = ["myst_parser", "sphinx_antsibull_ext"]
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {
    "description": "GPUs rented, trained on, given back",
    "page_width": "1100px",
    "fixed_sidebar": True,
}
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3


def outside(app: Sphinx, env: object, node: addnodes.pending_xref, content: nodes.Element) -> nodes.Element | None:
    """Show as text where a plugin's page points into Ansible's documentation: nothing is fetched."""
    ours = node["reftarget"].startswith("ansible_collections.gpuyard.")
    return content if node["refdoc"].startswith("collection/") and not ours else None


def setup(app: Sphinx) -> None:
    """Add what is our own to Sphinx."""
    app.connect("missing-reference", outside)
