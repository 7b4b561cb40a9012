"""tats: train, sample and judge video generators built from a video VQGAN and a GPT.

The names below are imported when first used, so that ``import tatscli`` stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tatscli.app.evaluate import fvd as fvd
    from tatscli.app.sample import sample_long as sample_long
    from tatscli.app.sample import sample_short as sample_short
    from tatscli.core.checkpoint import load_gpt as load_gpt
    from tatscli.core.checkpoint import load_vqgan as load_vqgan
    from tatscli.core.models.gpt import condition_ids as condition_ids

__version__ = "0.1.0"

_LAZY = {
    "load_vqgan": "tatscli.core.checkpoint",
    "load_gpt": "tatscli.core.checkpoint",
    "condition_ids": "tatscli.core.models.gpt",
    "sample_short": "tatscli.app.sample",
    "sample_long": "tatscli.app.sample",
    "fvd": "tatscli.app.evaluate",
}

__all__ = [
    "__version__",
    "condition_ids",
    "fvd",
    "load_gpt",
    "load_vqgan",
    "sample_long",
    "sample_short",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'tatscli' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
