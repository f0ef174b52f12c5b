"""Configurations: a file for each experiment, and `base`, which they start from."""

import pkgutil

# Other folders of this name on the path add their files; those of this one come first.
__path__ = pkgutil.extend_path(__path__, __name__)
