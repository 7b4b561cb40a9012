"""Names of the weight files from elsewhere, as the command line offers them."""

from enum import StrEnum
from typing import Literal

FetchedName = Literal["i3d", "i3d-torchscript", "i3d-tf", "vgg16", "alexnet"]
"""Files that are fetched."""


class WeightName(StrEnum):
    """All files; the last two come with an installed package."""

    I3D = "i3d"
    I3D_TORCHSCRIPT = "i3d-torchscript"
    I3D_TF = "i3d-tf"
    VGG16 = "vgg16"
    ALEXNET = "alexnet"
    LPIPS_VGG = "lpips-vgg"
    LPIPS_ALEX = "lpips-alex"
