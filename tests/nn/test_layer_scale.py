import torch

from encyclo.nn.layer_scale import LayerScale
from encyclo.nn.part import materialise


def test_channels_are_scaled_and_meta_parts_get_their_values() -> None:
    scale = LayerScale.Config(init=0.1).build(dim=3)
    x = torch.randn(2, 5, 3)
    torch.testing.assert_close(scale(x), 0.1 * x)
    with torch.device("meta"):
        empty = LayerScale.Config(init=0.1).build(dim=3)
    torch.testing.assert_close(materialise(empty)(x), scale(x))
