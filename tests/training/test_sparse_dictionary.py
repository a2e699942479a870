"""Harvesting in buffers and training a dictionary: exact sums, order, resumption."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from encyclo.nn.decoder_view import DecoderView
from encyclo.nn.sparse_dictionary import SparseDictionary
from encyclo.training import AdamW, Trainer, TrainingConfig
from encyclo.training.sparse_dictionary import ActivationStore, BufferedBatches, fit_dictionary


@pytest.fixture(scope="module")
def view() -> DecoderView:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32, initializer_range=0.3,
    )  # fmt: skip
    return DecoderView(LlamaForCausalLM(config).eval())


def contexts(count: int = 20) -> torch.Tensor:
    return torch.randint(0, 30, (count, 9), generator=torch.Generator().manual_seed(0))


def config(steps: int) -> TrainingConfig:
    return TrainingConfig(steps=steps, batch_size=32, optimiser=AdamW(lr=1e-2), log_every=5, checkpoint_seconds=0)


def test_buffers_hold_what_the_model_did_without_first_positions(view: DecoderView) -> None:
    whole = ActivationStore(view, contexts(), [0, 1])
    assert (whole.buffers, whole.tokens) == (1, 160)
    inputs, outputs = whole.buffer(1)
    seen = view.harvest(contexts(), [1])[1]
    torch.testing.assert_close(inputs.float(), seen[0][:, 1:].flatten(0, 1), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(outputs.float(), seen[1][:, 1:].flatten(0, 1), rtol=1e-2, atol=1e-2)
    parts = ActivationStore(view, contexts(), [0, 1], buffer=70)
    assert (parts.buffers, parts.rows, parts.tokens) == (2, 8, 64)
    torch.testing.assert_close(parts.buffer(1, 1)[0], inputs[64:128])
    torch.testing.assert_close(parts.buffer(1, 0)[0], inputs[:64])


def test_batches_stay_within_a_buffer_and_see_everything() -> None:
    batches = BufferedBatches(3, 100, 32, seed=1)
    drawn = [next(batches) for _ in range(9)]
    for index in drawn:
        assert len(set((index // batches.each).tolist())) == 1
    assert torch.cat(drawn).sort().values.tolist() == list(range(288))
    assert torch.cat([next(batches) for _ in range(9)]).tolist() != torch.cat(drawn).tolist()


@pytest.mark.parametrize("autoencode", [False, True])
def test_training_lowers_the_error_and_keeps_rows_at_unit_length(view: DecoderView, autoencode: bool) -> None:
    store = ActivationStore(view, contexts(60), [1])
    torch.manual_seed(0)
    dictionary: SparseDictionary = SparseDictionary.Config(expansion=4).build(dim=16)
    trainer = Trainer(None, seed=0, progress=False)
    fit_dictionary(dictionary, store, 1, trainer, config(200), l1=1e-4, autoencode=autoencode, dead_window=20)
    inputs, outputs = (part.float() for part in store.buffer(1))
    with torch.no_grad():
        error = (dictionary(outputs if autoencode else inputs) - outputs).square().sum()
    assert float(error) < 0.7 * float((outputs - outputs.mean(0)).square().sum())
    torch.testing.assert_close(dictionary.decoder.norm(dim=1), torch.ones(64))


def test_a_stronger_penalty_leaves_fewer_features_active(view: DecoderView) -> None:
    store, counts = ActivationStore(view, contexts(60), [1]), []
    for l1 in (1e-4, 1.0):
        torch.manual_seed(0)
        dictionary: SparseDictionary = SparseDictionary.Config(expansion=4).build(dim=16)
        fit_dictionary(dictionary, store, 1, Trainer(None, seed=0, progress=False), config(100), l1=l1)
        with torch.no_grad():
            counts.append(float((dictionary.encode(store.buffer(1)[0].float()) > 0).float().sum(1).mean()))
    assert counts[1] < 0.8 * counts[0]


def test_a_resumed_training_ends_where_an_unbroken_one_does(view: DecoderView, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def run(folder: Path, stop: int | None, resume: bool) -> SparseDictionary:
        store = ActivationStore(view, contexts(30), [1], buffer=100)  # two buffers and a bit
        torch.manual_seed(0)
        dictionary: SparseDictionary = SparseDictionary.Config(expansion=2).build(dim=16)
        trainer = Trainer(folder, seed=3, resume=resume, progress=False)
        if stop is not None:
            plain, calls = dictionary.normalise_decoder, []

            def counted() -> None:
                calls.append(1)
                if len(calls) > stop:
                    raise Stopped
                plain()

            dictionary.normalise_decoder = counted  # type: ignore[method-assign]
        fit_dictionary(dictionary, store, 1, trainer, config(24), l1=1e-3, dead_window=3)
        return dictionary

    straight = run(tmp_path / "straight", None, False)
    with pytest.raises(Stopped):
        run(tmp_path / "broken", 13, False)
    resumed = run(tmp_path / "broken", None, True)
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
