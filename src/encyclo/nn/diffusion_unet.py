"""UNets of diffusers, by configuration."""

from typing import Any, Literal

from torch import nn

from encyclo.nn.part import Part, PartConfig


class ClassConditionalUNet(Part):
    """diffusers' UNet2DModel with class embeddings; `build(size=, channels=, classes=)` gives the network itself."""

    class Config(PartConfig):
        """Widths per level, residual blocks per level, attention at all levels but the first."""

        kind: Literal["class"] = "class"
        widths: tuple[int, ...] = (32, 64, 64)
        layers: int = 2
        norm_groups: int = 8
        head_dim: int = 16

        def build(self, **context: Any) -> nn.Module:
            """The network for `size` x `size` inputs of `channels` channels; `classes` 0 is unconditional."""
            from diffusers import UNet2DModel

            size, channels, classes = context["size"], context["channels"], context["classes"]
            attends = [False] + [True] * (len(self.widths) - 1)
            return UNet2DModel(  # type: ignore[no-any-return]
                sample_size=size,
                in_channels=channels,
                out_channels=channels,
                block_out_channels=self.widths,
                layers_per_block=self.layers,
                norm_num_groups=self.norm_groups,
                attention_head_dim=self.head_dim,
                down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
                up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
                num_class_embeds=classes or None,
            )


class TextConditionalUNet(Part):
    """diffusers' UNet2DConditionModel, by default in the shape of Stable Diffusion 1.5 (859.52 M parameters)."""

    class Config(PartConfig):
        """Shape of the network."""

        kind: Literal["text"] = "text"
        widths: tuple[int, ...] = (320, 640, 1280, 1280)
        layers: int = 2
        heads: int = 8
        text_dim: int = 768
        norm_groups: int = 32

        def build(self, **context: Any) -> nn.Module:
            """The network for `size` x `size` latents of `channels` channels."""
            from diffusers import UNet2DConditionModel

            return UNet2DConditionModel(  # type: ignore[no-any-return]
                sample_size=context["size"],
                in_channels=context["channels"],
                out_channels=context["channels"],
                block_out_channels=self.widths,
                layers_per_block=self.layers,
                attention_head_dim=self.heads,
                cross_attention_dim=self.text_dim,
                norm_num_groups=self.norm_groups,
            )
