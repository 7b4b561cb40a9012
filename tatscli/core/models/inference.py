"""Models made ready to be used rather than trained: where, how exactly, and in which layout."""

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tatscli.config.compute import Precision
from tatscli.core.models.gpt import GPT
from tatscli.core.models.i3d import I3D
from tatscli.core.models.vqgan import VQGAN

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


def vqgan_for_inference(
    vqgan: VQGAN, device: torch.device, precision: Precision = "float32"
) -> VQGAN:
    """Move a VQGAN to where it encodes and decodes; the model given is that model afterwards.

    Its codebook and statistics stay float32. In bf16, codes of some clips change.
    """
    vqgan.to(device).eval().requires_grad_(False)
    for part in (vqgan.encoder, vqgan.decoder, vqgan.pre_vq_conv, vqgan.post_vq_conv):
        for layer in part.modules():
            if not isinstance(layer, _BatchNorm) and not list(layer.children()):
                layer.to(DTYPES[precision])
        if device.type != "mps":
            # The layout that convolutions are fastest in; numbers stay, up to rounding.
            part.to(memory_format=torch.channels_last_3d)
    return vqgan


def i3d_for_inference(i3d: I3D, device: torch.device, precision: Precision = "float32") -> I3D:
    """Move an I3D to where it is used; its last layer stays float32."""
    i3d.to(device)
    for part in i3d.children():
        part.to(DTYPES[precision])
    return i3d


def gpt_for_inference(
    gpt: GPT, device: torch.device, precision: Precision = "float32", *, graphs: bool = False
) -> GPT:
    """Move a GPT to where it writes tokens; the model given is that model afterwards.

    On a CPU its linear layers are packed: it can be neither saved, copied nor moved any more, and
    must not run under autocast.

    Args:
        gpt: The model.
        device: Where it is to be.
        precision: Of its weights, keys and values.
        graphs: Whether a CUDA device replays single steps, see ``RecordedSteps``.
    """
    gpt.to(device, DTYPES[precision]).eval().requires_grad_(False)
    gpt.replays = graphs and device.type == "cuda"
    if device.type == "cpu" and _packing_works(DTYPES[precision]):
        _pack_linears(gpt)
    return gpt


class PackedLinear(nn.Module):
    """A linear layer whose weights lie as oneDNN reads them fastest, for inference on a CPU.

    A product with a few rows costs reading the weights once. torch's own needs two to three times
    as long in float32, since it neither packs them nor goes through oneDNN (``tats bench``).

    Args:
        linear: The layer; its weights are copied.
        gelu: Whether the activation is applied to what it gives.
    """

    _ROWS = 64
    """Rows that oneDNN lays the weights out for; the layout is as good for 1 and for 1,000."""

    def __init__(self, linear: nn.Linear, *, gelu: bool = False) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, self._ROWS)
        self._bias = None if linear.bias is None else linear.bias.detach()
        self._then = "gelu" if gelu else "none"

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._weight, self._bias, self._then, [], "none"
        )
        return out


@cache
def _packing_works(kind: torch.dtype) -> bool:
    """Whether this torch and this CPU have the operators, which torch's own compiler uses, too."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        if kind == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        layer = nn.Linear(16, 8, device="meta").to_empty(device="cpu").to(kind)
        nn.init.constant_(layer.weight, 0.5)
        nn.init.constant_(layer.bias, 1.0)
        x = torch.arange(16).to(kind)[None]
        packed = PackedLinear(layer, gelu=True)  # which leaves so large a number alone
        return torch.equal(packed(x), torch.full((1, 8), 61.0, dtype=kind))
    except (AttributeError, RuntimeError):
        return False


def _pack_linears(module: nn.Module) -> None:
    """Replace all linear layers below a module by packed ones, each in its turn."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, PackedLinear(child))
        elif isinstance(child, nn.Sequential):
            setattr(module, name, _packed_mlp(child))
        else:
            _pack_linears(child)


def _packed_mlp(layers: nn.Sequential) -> nn.Sequential:
    """Two linear layers with a GELU between, and no dropout behind."""
    first, second = (layer for layer in layers if isinstance(layer, nn.Linear))
    return nn.Sequential(PackedLinear(first, gelu=True), PackedLinear(second))
