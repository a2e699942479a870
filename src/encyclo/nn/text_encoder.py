"""A transformer encoder of text (Devlin et al. 2019) whose parts can be exchanged one by one (Portes et al. 2023).

The block is BERT's, with the LayerNorm behind each residual sum. Position scheme, feed-forward, attention path,
unpadding and the precision of LayerNorm are choices of the configuration.
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from pydantic import Field, model_validator
from torch import Tensor, nn

from encyclo.errors import InputError
from encyclo.nn.alibi import Alibi
from encyclo.nn.feed_forward import Activation, FeedForward, Glu, activate
from encyclo.nn.part import Part, PartConfig
from encyclo.nn.varlen import Attention, AttentionPath, Layout, attention_over, runs_by_length


class LearnedPositions(Part):
    """One trained vector per position; inputs longer than the table are refused.

    Args:
        dim: width of the vectors.
    """

    class Config(PartConfig):
        """The size of the table."""

        kind: Literal["learned"] = "learned"
        length: int = Field(512, ge=1, description="positions in the table")

    def __init__(self, config: Config, *, dim: int) -> None:
        super().__init__()
        self.config = config
        self.table = nn.Embedding(config.length, dim)

    def forward(self, positions: Int64[Tensor, " n"], longest: int) -> Float[Tensor, "n dim"]:
        """Vectors for positions, the highest of which is below `longest`.

        Raises:
            InputError: more positions than the table has.
        """
        if longest > self.config.length:
            raise InputError(
                f"a text of {longest} tokens is longer than the {self.config.length} learned positions:"
                " shorten it, or use ALiBi positions"
            )
        vectors: Tensor = self.table(positions)
        return vectors


Positions = Annotated[Alibi.Config | LearnedPositions.Config, Field(discriminator="kind")]
"""How the order of tokens is told: a distance penalty in attention (alibi) or trained vectors (learned)."""


class Norm(nn.LayerNorm):
    """LayerNorm that under 16-bit autocast runs in 16 bit (weights cast for the call), instead of in float32.

    Args:
        low_precision: False leaves it to autocast.
    """

    def __init__(self, dim: int, eps: float, low_precision: bool) -> None:
        super().__init__(dim, eps=eps)
        self.low_precision = low_precision

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Normalised over the last dimension."""
        kind = x.device.type
        if not (self.low_precision and torch.is_autocast_enabled(kind)):
            return super().forward(x)
        dtype = torch.get_autocast_dtype(kind)
        with torch.autocast(kind, enabled=False):
            return F.layer_norm(
                x.to(dtype), self.normalized_shape, self.weight.to(dtype), self.bias.to(dtype), self.eps
            )


class EncoderLayer(nn.Module):
    """Attention and feed-forward, each followed by dropout, the residual sum and LayerNorm."""

    def __init__(self, config: "TextEncoder.Config") -> None:
        super().__init__()
        dim = config.dim
        self.heads = config.heads
        self.dropout, self.attention_dropout = config.dropout, config.attention_dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.attention_norm = Norm(dim, config.norm_eps, config.low_precision_norm)
        self.feed_forward = config.feed_forward.build(dim=dim)
        self.norm = Norm(dim, config.norm_eps, config.low_precision_norm)

    def forward(
        self, x: Float[Tensor, "n dim"], attention: Attention, chosen: Int64[Tensor, " k"] | None = None
    ) -> Float[Tensor, "m dim"]:
        """All tokens, or only the `chosen` ones behind the attention (which still sees every token)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        mixed = attention(qkv, self.attention_dropout if self.training else 0.0)
        if chosen is not None:
            mixed, x = mixed.index_select(0, chosen), x.index_select(0, chosen)
        x = self.attention_norm(x + self._drop(self.out(mixed)))
        out: Tensor = self.norm(x + self._drop(self.feed_forward(x)))
        return out

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.training and self.dropout else x


class TextEncoder(Part):
    """Token ids -> one vector per token.

    `forward` takes and gives padded batches; `flat` works on the tokens of a `Layout` and is what training uses.
    """

    class Config(PartConfig):
        """The defaults are MosaicBERT-base (Portes et al. 2023)."""

        vocabulary: int = Field(30522, ge=2, description="tokens of the tokenizer")
        vocabulary_multiple: int = Field(64, ge=1, description="the table is rounded up to a multiple of this")
        dim: int = Field(768, ge=1)
        layers: int = Field(12, ge=1)
        heads: int = Field(12, ge=1)
        feed_forward: FeedForward = Glu.Config(kind="geglu", dropout=0.1)
        positions: Positions = Alibi.Config()
        types: int = Field(2, ge=0, description="token types (sentence A, sentence B); 0: no such table")
        attention: AttentionPath = "auto"
        buckets: int = Field(6, ge=1, description="for attention=buckets")
        unpad: bool = Field(True, description="compute on real tokens only, from the first layer to the last")
        low_precision_norm: bool = Field(True, description="LayerNorm in 16 bit under autocast")
        norm_eps: float = 1e-12
        dropout: float = Field(0.1, ge=0, lt=1, description="on embeddings and on both outputs of a layer")
        attention_dropout: float = Field(0.0, ge=0, lt=1)
        init_std: float = Field(0.02, gt=0, description="of all matrices and tables")

        @model_validator(mode="after")
        def _heads_divide(self) -> "TextEncoder.Config":
            if self.dim % self.heads:
                raise ValueError(f"dim {self.dim} cannot be divided among {self.heads} heads")
            return self

        @property
        def table(self) -> int:
            """Rows of the word table: the vocabulary, rounded up."""
            return -(-self.vocabulary // self.vocabulary_multiple) * self.vocabulary_multiple

    def __init__(self, config: Config, *, pad: int = 0) -> None:
        super().__init__()
        self.config = config
        self.pad = pad
        self.words = nn.Embedding(config.table, config.dim)
        self.types = nn.Embedding(config.types, config.dim) if config.types else None
        learned = config.positions.kind == "learned"
        self.positions: LearnedPositions | None = config.positions.build(dim=config.dim) if learned else None
        self.alibi: Alibi | None = None if learned else config.positions.build(heads=config.heads)
        self.norm = Norm(config.dim, config.norm_eps, config.low_precision_norm)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))
        self.init_own()

    def init_own(self) -> None:
        """Matrices and tables ~ N(0, init_std), biases 0, the padding token's row 0; LayerNorms are 1 and 0 already."""
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, nn.Linear | nn.Embedding):
                    module.weight.normal_(0, self.config.init_std)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    module.bias.zero_()
            self.words.weight[self.pad].zero_()

    def layout(self, lengths: list[int] | Int64[Tensor, " batch"]) -> Layout:
        """The layout (on the CPU) in which this encoder computes a batch of sequences of these lengths."""
        return Layout.from_lengths(lengths, padded=not self.config.unpad)

    def flat(
        self,
        tokens: Int64[Tensor, " n"],
        layout: Layout,
        *,
        types: Int64[Tensor, " n"] | None = None,
        chosen: Int64[Tensor, " k"] | None = None,
        path: AttentionPath | None = None,
    ) -> Float[Tensor, "m dim"]:
        """The vectors of a layout's tokens.

        Args:
            tokens: ids, arranged by the layout; both on the encoder's device.
            layout: where the sequences lie.
            types: token types; all 0 if not given.
            chosen: entries whose vectors are wanted. The last layer's output matrix, feed-forward and norms then run on
                these only; the result is exactly what they would be otherwise.
            path: how attention is computed here; the configuration's way if not given.

        Raises:
            InputError: a sequence longer than a table of learned positions.
        """
        config = self.config
        x = self.words(tokens)
        if self.types is not None:
            x = x + (self.types.weight[0] if types is None else self.types(types))
        if self.positions is not None:
            x = x + self.positions(layout.positions, layout.width)
        x = self.norm(x)
        if self.training and config.dropout:
            x = F.dropout(x, config.dropout)
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        attention = attention_over(
            layout,
            self.alibi,
            path=path or config.attention,
            buckets=config.buckets,
            dtype=dtype,
            dropout=config.attention_dropout if self.training else 0.0,
        )
        for layer in self.layers[:-1]:
            x = layer(x, attention)
        out: Tensor = self.layers[-1](x, attention, chosen)
        return out

    @torch.no_grad()
    def embed(
        self,
        ids: Int64[Tensor, " n"],
        lengths: Int64[Tensor, " texts"],
        *,
        pool: Literal["mean", "first"] = "mean",
        batch_tokens: int = 4096,
    ) -> Float[Tensor, "texts dim"]:
        """One vector per text (float32 at least, on the CPU), in the order given.

        Texts of like length are computed together.

        Args:
            ids: tokens of all texts, behind one another.
            lengths: tokens of each text.
            pool: the mean over a text's tokens, or its first token.
            batch_tokens: most cells of a batch, padding included; a longer text is a batch by itself.
        """
        device = self.words.weight.device
        begin = lengths.cumsum(0) - lengths
        runs = runs_by_length(lengths, batch_tokens)
        # texts of like length have few distinct lengths, and no gradients to gather: attention needs no padding at all
        path: AttentionPath | None = "lengths" if self.config.attention == "auto" and device.type == "cpu" else None
        pooled = []
        for rows in runs:
            sizes = lengths[rows]
            layout = self.layout(sizes)
            places = torch.arange(int(sizes.sum())) + (begin[rows] - (sizes.cumsum(0) - sizes)).repeat_interleave(sizes)
            tokens = layout.arrange(ids[places], self.pad).to(device)
            layout = layout.to(device)
            x = self.flat(tokens, layout, path=path)
            pooled.append((layout.mean(x) if pool == "mean" else layout.first(x).float()).cpu())
        joined = torch.cat(pooled)
        return torch.empty_like(joined).index_copy(0, torch.cat(runs), joined)

    def forward(
        self,
        ids: Int64[Tensor, "batch width"],
        mask: Shaped[Tensor, "mask_rows mask_columns"] | None = None,
        types: Int64[Tensor, "batch width"] | None = None,
    ) -> Float[Tensor, "batch width dim"]:
        """The vectors of a padded batch, 0 where there is padding.

        Args:
            ids: token ids.
            mask: 1 for tokens, 0 for padding; all are tokens if not given.
            types: token types; all 0 if not given.

        Raises:
            InputError: an id outside the vocabulary, a mask of another shape, a row that is all padding or has a gap
                (the message names the row).
        """
        if mask is None:
            mask = torch.ones_like(ids)
        if mask.shape != ids.shape:
            raise InputError(
                f"the mask is {tuple(mask.shape)}, the ids are {tuple(ids.shape)}: give one entry for each id"
            )
        wrong = (((ids < 0) | (ids >= self.config.table)) & mask.bool()).any(1).nonzero()
        if len(wrong):
            row = int(wrong[0])
            raise InputError(
                f"row {row} holds an id outside 0..{self.config.table - 1} ({int(ids[row].max())}):"
                " was another tokenizer used?"
            )
        layout = Layout.from_mask(mask, padded=not self.config.unpad)
        ids = ids.masked_fill(~mask.bool(), self.pad)
        flat = self.flat(layout.unpad(ids), layout, types=None if types is None else layout.unpad(types))
        return layout.pad(flat)


class MaskedLMHead(Part):
    """Vectors -> scores over the vocabulary: dense, activation, LayerNorm, then the word table itself and a bias.

    Args:
        encoder: configuration of the encoder below.
    """

    class Config(PartConfig):
        """BERT takes the activation of its feed-forward here too."""

        activation: Activation = "gelu"

    def __init__(self, config: Config, *, encoder: TextEncoder.Config) -> None:
        super().__init__()
        self.config = config
        self.dense = nn.Linear(encoder.dim, encoder.dim)
        self.norm = Norm(encoder.dim, encoder.norm_eps, encoder.low_precision_norm)
        self.bias = nn.Parameter(torch.zeros(encoder.table))
        self.std = encoder.init_std
        self.init_own()

    def init_own(self) -> None:
        """The matrix ~ N(0, init_std), biases 0."""
        with torch.no_grad():
            self.dense.weight.normal_(0, self.std)
            self.dense.bias.zero_()
            self.bias.zero_()

    def forward(
        self, x: Float[Tensor, "n dim"], words: Float[Tensor, "vocabulary dim"]
    ) -> Float[Tensor, "n vocabulary"]:
        """Scores; `words` is the encoder's word table (tied)."""
        return F.linear(self.norm(activate(self.dense(x), self.config.activation)), words, self.bias)
