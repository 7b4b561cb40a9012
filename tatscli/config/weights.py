"""Names of the weight files from elsewhere, as the command line offers them."""

from typing import Literal

WeightName = Literal["i3d", "i3d-torchscript", "i3d-tf", "vgg16"]
