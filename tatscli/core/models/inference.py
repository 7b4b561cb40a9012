"""Models made ready to be used rather than trained: where, how exactly, and in which layout."""

import torch
from torch import Tensor, nn

from tatscli.config.sample import Precision
from tatscli.core.models.gpt import GPT
from tatscli.core.models.i3d import I3D
from tatscli.core.models.vqgan import VQGAN

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


def vqgan_for_inference(
    vqgan: VQGAN, device: torch.device, precision: Precision = "float32"
) -> VQGAN:
    """Move a VQGAN to where it encodes and decodes; the model given is that model afterwards.

    Its codebook stays float32. In bf16, codes of some clips change.
    """
    kind = DTYPES[precision]
    for part in (vqgan.encoder, vqgan.decoder, vqgan.pre_vq_conv, vqgan.post_vq_conv):
        # The layout that convolutions are fastest in; numbers stay the same.
        part.to(device, kind).to(memory_format=torch.channels_last_3d)
    vqgan.codebook.to(device)
    return vqgan.eval().requires_grad_(False)


def i3d_for_inference(i3d: I3D, device: torch.device, precision: Precision = "float32") -> I3D:
    """Move an I3D to where it is used; its last layer stays float32."""
    i3d.to(device)
    if precision != "float32":
        i3d.stem.to(DTYPES[precision])
        i3d.blocks.to(DTYPES[precision])
    return i3d


def gpt_for_inference(gpt: GPT, device: torch.device, precision: Precision = "float32") -> GPT:
    """Move a GPT to where it writes tokens; the model given is that model afterwards.

    On a CPU its linear layers are packed, and it can be neither saved nor moved any more.
    """
    gpt.to(device, DTYPES[precision]).eval().requires_grad_(False)
    if device.type == "cpu" and _can_pack(precision):
        _pack_linears(gpt)
    return gpt


class PackedLinear(nn.Module):
    """A linear layer whose weights lie as oneDNN reads them fastest, for inference on a CPU.

    A product with a few rows costs reading the weights once. torch's own needs two to three times
    as long in float32, since it neither packs them nor goes through oneDNN (``tats bench``).

    Args:
        linear: The layer; its weights are copied.
    """

    _ROWS = 64
    """Rows that oneDNN lays the weights out for; the layout is as good for 1 and for 1,000."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, self._ROWS)
        self._bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._weight, self._bias, "none", [], ""
        )
        return out


def _can_pack(precision: Precision) -> bool:
    """Whether this torch and this CPU have the operators, which torch's own compiler uses."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    operators = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    if not all(hasattr(torch.ops.mkldnn, name) for name in operators):
        return False
    return precision == "float32" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _pack_linears(module: nn.Module) -> None:
    """Replace all linear layers below a module by packed ones, each in its turn."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, PackedLinear(child))
        else:
            _pack_linears(child)
