"""The configurations that come with the package: `from cpng_jax.configs import digits`.

In a checkout, which alone has this file, they lie in `configs/` beside the package; where that is installed, they lie
here, and the `__init__.py` of that folder with them.
"""

import pathlib
import types
from typing import TYPE_CHECKING

__path__ = [str(pathlib.Path(__file__).parents[2] / 'configs')]

if TYPE_CHECKING:  # which does not follow the path

    def __getattr__(name: str) -> types.ModuleType: ...
