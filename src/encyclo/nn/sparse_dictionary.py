"""Wide, sparse one-hidden-layer networks over activations: transcoders and sparse autoencoders.

A transcoder (Dunefsky et al. 2024, arXiv 2406.11944) imitates a sublayer, input to output; a sparse autoencoder
reconstructs one activation. The module is the same, the target differs.
"""

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from encyclo.nn.part import Part, PartConfig


class SparseDictionary(Part):
    """z = relu(W_enc (x - b_in) + b_enc), y = W_dec z + b_dec.

    Rows of `decoder` are the features' directions; they are kept at unit length in training (`normalise_decoder`,
    `drop_parallel_gradient`), or the L1 penalty could be cheated by small z and long rows.
    """

    class Config(PartConfig):
        """Width of the dictionary, as a multiple of the model's width."""

        expansion: int = Field(32, ge=1)

    def __init__(self, config: Config, *, dim: int) -> None:
        super().__init__()
        self.config, self.dim, self.features = config, dim, config.expansion * dim
        self.encoder = nn.Parameter(torch.empty(self.features, dim))
        self.decoder = nn.Parameter(torch.empty(self.features, dim))
        self.encoder_bias = nn.Parameter(torch.empty(self.features))
        self.input_bias = nn.Parameter(torch.empty(dim))
        self.output_bias = nn.Parameter(torch.empty(dim))
        self.silent: Tensor
        self.register_buffer("silent", torch.empty(self.features))
        """Steps since each feature was last active in training; kept with the weights, so that a training resumes."""
        self.init_own()

    @torch.no_grad()
    def init_own(self) -> None:
        """Kaiming-uniform matrices, unit decoder rows, zero biases (as the released code)."""
        nn.init.kaiming_uniform_(self.encoder)
        nn.init.kaiming_uniform_(self.decoder)
        for zeroed in (self.encoder_bias, self.input_bias, self.output_bias, self.silent):
            zeroed.zero_()
        self.normalise_decoder()

    @torch.no_grad()
    def centre(self, inputs: Float[Tensor, "n d"], targets: Float[Tensor, "n d"]) -> None:
        """Set the input bias to the mean input and the output bias to the mean target."""
        self.input_bias.copy_(inputs.mean(0, dtype=torch.float32))
        self.output_bias.copy_(targets.mean(0, dtype=torch.float32))

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Scale every decoder row to length 1."""
        self.decoder.copy_(functional.normalize(self.decoder, dim=1))

    @torch.no_grad()
    def drop_parallel_gradient(self) -> None:
        """Remove from the decoder's gradient what would only change the rows' lengths."""
        if self.decoder.grad is not None:
            along = (self.decoder.grad * self.decoder).sum(1, keepdim=True)
            self.decoder.grad -= along * self.decoder

    def preactivations(self, inputs: Float[Tensor, "... d"]) -> Float[Tensor, "... f"]:
        """W_enc (x - b_in) + b_enc."""
        shift = self.encoder_bias - self.encoder @ self.input_bias
        return functional.linear(inputs, self.encoder, shift)

    def encode(self, inputs: Float[Tensor, "... d"]) -> Float[Tensor, "... f"]:
        """Feature activations z >= 0."""
        return functional.relu(self.preactivations(inputs))

    def decode(self, features: Float[Tensor, "... f"]) -> Float[Tensor, "... d"]:
        """Sum of the active features' directions, plus the output bias."""
        return features @ self.decoder + self.output_bias

    def forward(self, inputs: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """The imitation of the sublayer's output."""
        return self.decode(self.encode(inputs))
