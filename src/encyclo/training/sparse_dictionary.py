"""Training sparse dictionaries on a language model's activations, harvested a buffer at a time."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from encyclo.data.batches import Batches
from encyclo.losses import sparse_dictionary as objective
from encyclo.nn.decoder_view import DecoderView
from encyclo.nn.sparse_dictionary import SparseDictionary
from encyclo.training.config import TrainingConfig
from encyclo.training.loss import Loss
from encyclo.training.trainer import Trainer


class ActivationStore:
    """MLP inputs and outputs over fixed contexts, in half precision on the CPU; position 0 of each is left out.

    What fits in one buffer is harvested once, for all layers together. Of more, one buffer of one layer is held at a
    time; a buffer depends on its number alone, so a training can stop and go on anywhere.

    Args:
        view: the language model; it runs no further than the last layer wanted.
        contexts: tokens.
        layers: whose MLPs.
        residual: take the inputs before the norm.
        buffer: most tokens held at a time.
    """

    def __init__(
        self,
        view: DecoderView,
        contexts: Int64[Tensor, "n t"],
        layers: Sequence[int],
        *,
        residual: bool = False,
        buffer: int = 524_288,
    ) -> None:
        self.view, self.contexts, self.layers, self.residual = view, contexts, tuple(layers), residual
        each = contexts.shape[1] - 1
        rows = min(len(contexts), max(1, buffer // each))
        self.buffers = len(contexts) // rows  # a last, shorter one is left out
        self.rows, self.tokens = rows, rows * each
        """Contexts and tokens in one buffer."""
        self._held: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def buffer(self, layer: int, number: int = 0) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        """Inputs and outputs of one buffer."""
        if (layer, number) not in self._held:
            self._held.clear()
            wanted = self.layers if self.buffers == 1 else (layer,)
            parts: dict[int, tuple[list[Tensor], list[Tensor]]] = {index: ([], []) for index in wanted}
            device = self.view.embedding.device
            for batch in self.contexts[number * self.rows : (number + 1) * self.rows].split(8):
                seen = self.view.harvest(batch.to(device), wanted, residual=self.residual)
                for index, both in seen.items():
                    for kept, values in zip(parts[index], both, strict=True):
                        kept.append(values[:, 1:].flatten(0, 1).half().cpu())
            self._held = {(i, number): (torch.cat(a), torch.cat(b)) for i, (a, b) in parts.items()}
        return self._held[layer, number]


class BufferedBatches(Batches):
    """Batches of indices, shuffled within one buffer after another: no batch needs two buffers.

    Args:
        buffers: how many.
        tokens: in each; what does not fill a batch is left out.
        batch_size: indices in a batch.
        seed: decides, with the epoch's number, the order.
    """

    def __init__(self, buffers: int, tokens: int, batch_size: int, *, seed: int) -> None:
        self.buffers = buffers
        self.each = tokens if buffers == 1 else tokens - tokens % batch_size
        super().__init__(buffers * self.each, batch_size, seed=seed)

    def order(self, epoch: int) -> Int64[Tensor, " n"]:
        """The order of the indices in `epoch`, buffer after buffer."""
        inner = Batches(self.each, 1, seed=self.seed)
        orders = [inner.order(epoch * self.buffers + i) + i * self.each for i in range(self.buffers)]
        return torch.cat(orders)


def fit_dictionary(
    dictionary: SparseDictionary,
    store: ActivationStore,
    layer: int,
    trainer: Trainer,
    config: TrainingConfig,
    *,
    l1: float,
    form: Literal["normalised", "plain"] = "normalised",
    autoencode: bool = False,
    dead_window: int | None = None,
    start: float = 1.0,
    stage: str = "dictionary",
) -> None:
    """Train a dictionary to give an MLP's output from its input, sparsely.

    While training, inputs are scaled to the mean norm sqrt(d), which a norm's output has without its gain (the
    published input); small gains would otherwise make a transcoder learn far more slowly than an autoencoder. The scale
    is folded into the encoder at the end.

    Args:
        dictionary: changed in place; its biases start at the means of the first buffer.
        store: activations.
        layer: which of its layers.
        trainer: the loop.
        config: budget and optimiser.
        l1: weight of the penalty.
        form: of the squared error, see `encyclo.losses.sparse_dictionary.reconstruction`.
        autoencode: reconstruct the MLP's output from itself (a sparse autoencoder).
        dead_window: steps of silence after which a feature gets ghost gradients; None: never.
        start: factor on the encoder's initial weights. At 1 a thousand random features sum to noise louder than the
            target, which a short training spends most of its steps on.
        stage: name of the stage.
    """
    dictionary.to(trainer.device)
    inputs, outputs = store.buffer(layer)
    targets = outputs[:65_536].float()
    first = targets if autoencode else inputs[:65_536].float()
    scale = math.sqrt(dictionary.dim) / max(float(first.norm(dim=1).mean()), 1e-6)
    dictionary.centre(first * scale, targets)
    with torch.no_grad():
        dictionary.encoder.mul_(start)
    batches = BufferedBatches(store.buffers, store.tokens, config.batch_size, seed=trainer.seed)

    def taken(values: Shaped[Tensor, "n d"], rows: Int64[Tensor, " b"]) -> Float[Tensor, "b d"]:
        return values[rows].to(trainer.device).float()

    def loss(index: Int64[Tensor, " b"]) -> Loss:
        rows = index.cpu()
        number = int(rows[0]) // batches.each
        inputs, outputs = store.buffer(layer, number)
        target = taken(outputs, rows - number * batches.each)
        x = target if autoencode else taken(inputs, rows - number * batches.each)
        before = dictionary.preactivations(x * scale)
        z = before.relu()
        y = dictionary.decode(z)
        active = z.detach() > 0
        dictionary.silent.masked_fill_(active.any(0), 0)
        main = objective.reconstruction(y, target, form)
        logs = {"error": main.detach(), "l0": active.sum(1).float().mean()}
        total = main + l1 * objective.sparsity(z)
        if dead_window is not None:
            total = total + objective.ghost(
                before, dictionary.decoder, target - y, dictionary.silent > dead_window, main
            )
        return Loss(total, float(len(rows)), logs)

    def before_step(step: int) -> None:
        dictionary.normalise_decoder()
        dictionary.silent.add_(1)

    trainer.fit(
        dictionary,
        loss,
        batches,
        config,
        stage=stage,
        before_step=before_step,
        before_update=lambda step: dictionary.drop_parallel_gradient(),
    )
    dictionary.normalise_decoder()
    with torch.no_grad():
        dictionary.encoder.mul_(scale)
        dictionary.input_bias.div_(scale)
