# The site: README, pages of their own, and the reference of the headers. scripts/docs.sh builds it.
import re
import sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root / "docs"))
project = "mamba.cpp"
author = "the authors of mamba.cpp"
release = re.search(r'version = "([0-9.]+)"', (root / "include/mamba/version.hpp").read_text())[1]

extensions = ["myst_parser", "sphinx_inline_tabs", "headers", "python_api"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
primary_domain = highlight_language = "cpp"
smartquotes = False
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]  # annotations name what other packages have
python_package = str(root / "python/mamba_cpp")

html_theme = "furo"
html_title = f"mamba.cpp {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
