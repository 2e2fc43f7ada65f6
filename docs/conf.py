import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import _comparison
import _configuration
import _kills
import _performance

project = "gsocketpool"
author = "The gsocketpool authors"
copyright = "2026, The gsocketpool authors"
release = version_of("gsocketpool")
version = release

extensions = ["sphinx.ext.autodoc", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
# The links inside the documentation are checked; other sites change by themselves.
linkcheck_ignore = ["https?://"]
# Not needed for the documentation.
autodoc_mock_imports = ["psycopg"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
html_theme = "furo"
html_title = f"gsocketpool {release}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]

for module in (_comparison, _configuration, _kills, _performance):
    Path(module.__file__).with_suffix(".txt").write_text(module.reference())
