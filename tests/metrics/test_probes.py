import pytest
import torch
from torch import nn

from encyclo.errors import InputError
from encyclo.metrics import probes
from encyclo.metrics.probes import Labelled


def blobs(count: int, seed: int, spread: float = 0.5, classes: int = 3) -> Labelled:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centres = 3 * torch.eye(classes, 5)
    return Labelled(centres[labels] + spread * torch.randn(count, 5, generator=generator), labels)


def sets() -> tuple[Labelled, Labelled, Labelled]:
    return blobs(150, 0), blobs(60, 1), blobs(60, 2)


@pytest.mark.parametrize("probe", [probes.linear_probe, probes.knn_probe, probes.logistic_probe])
def test_classes_that_lie_apart_are_told_apart(probe) -> None:
    found = probe(*sets())
    assert found.accuracy > 0.95
    assert found.validation == max(accuracy for _, accuracy in found.tried)


@pytest.mark.parametrize("probe", [probes.linear_probe, probes.knn_probe, probes.logistic_probe])
def test_noise_gives_chance(probe) -> None:
    train, validation, test = (
        Labelled(torch.randn(300, 5, generator=torch.Generator().manual_seed(s)), torch.arange(300) % 3)
        for s in range(3)
    )
    assert probe(train, validation, test).accuracy < 0.5


@pytest.mark.parametrize("probe", [probes.linear_probe, probes.logistic_probe])
def test_the_head_that_is_returned_has_the_accuracy_that_is_reported(probe) -> None:
    train, validation, test = blobs(150, 0, 2.0), blobs(60, 1, 2.0), blobs(60, 2, 2.0)
    found = probe(train, validation, test)
    assert float((found.model(test.inputs).argmax(1) == test.labels).double().mean()) == pytest.approx(found.accuracy)


def test_two_classes_and_numbers_without_samples() -> None:
    train, validation, test = (blobs(80, s, classes=2) for s in range(3))
    assert probes.logistic_probe(train, validation, test).accuracy > 0.95
    moved = [Labelled(part.inputs, part.labels * 2) for part in (train, validation, test)]  # class 1 has no sample
    found = probes.logistic_probe(*moved)
    assert found.accuracy > 0.95
    assert float((found.model(moved[2].inputs).argmax(1) == moved[2].labels).double().mean()) == found.accuracy


def test_scaling_and_shifting_the_vectors_changes_nothing() -> None:
    train, validation, test = blobs(150, 0, 2.0), blobs(60, 1, 2.0), blobs(60, 2, 2.0)
    moved = [Labelled(1000 * part.inputs + 77, part.labels) for part in (train, validation, test)]
    plain = probes.linear_probe(train, validation, test)
    assert probes.linear_probe(*moved).accuracy == pytest.approx(plain.accuracy, abs=0.02)


def test_the_nearest_neighbour_of_a_training_sample_is_itself() -> None:
    train = blobs(60, 0, 3.0)
    assert probes.knn_probe(train, train, train, neighbours=(1,)).accuracy == 1.0


def test_knn_votes_are_weighed() -> None:
    """Two distant neighbours of class 1 against one near of class 0: exp(1 / 0.07) outweighs 2 exp(0.6 / 0.07)."""
    train = Labelled(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8]]), torch.tensor([0, 1, 1]))
    query = Labelled(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    assert probes.knn_probe(train, query, query, neighbours=(3,)).accuracy == 1.0
    assert probes.knn_probe(train, query, query, neighbours=(3,), temperature=1e3).accuracy == 0.0


def test_an_attentive_probe_finds_the_token_that_tells() -> None:
    def tokens(seed: int) -> Labelled:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(200) % 2
        noise = torch.randn(200, 6, 8, generator=generator)
        noise[:, :, 0] = 0
        place = torch.randint(0, 6, (200,), generator=generator)
        rows = torch.arange(200)
        noise[rows, place] = 0
        noise[rows, place, 0] = 6.0  # marks the token that tells
        noise[rows, place, 1] = 6.0 * (2 * labels - 1)
        return Labelled(noise, labels)

    found = probes.attentive_probe(tokens(0), tokens(1), tokens(2), heads=2, epochs=15, rates=(0.01,), batch_size=50)
    assert found.accuracy > 0.9


def test_equal_seeds_give_equal_probes() -> None:
    data = [Labelled(part.inputs[:, None].repeat(1, 4, 1), part.labels) for part in sets()]
    first, again = (probes.attentive_probe(*data, heads=1, epochs=2, seed=5) for _ in range(2))
    assert first.tried == again.tried
    state = torch.get_rng_state()
    probes.attentive_probe(*data, heads=1, epochs=1)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was touched"


def test_the_suite_runs_the_encoder_once_over_each_split() -> None:
    train, validation, test = sets()
    seen = 0

    def encode(x: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        seen += len(x)
        return x[:, None].repeat(1, 2, 1)

    found = probes.probe_suite(encode, train, validation, test, heads=1, epochs=5)
    assert set(found) == {"linear", "attentive", "knn", "logistic"}
    assert seen == 150 + 60 + 60
    assert min(p.accuracy for p in found.values()) > 0.8
    with pytest.raises(InputError, match="no probe"):
        probes.probe_suite(encode, train, validation, test, kinds=())


class Shift(nn.Module):
    """An encoder whose features are useless until it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(5, 8), nn.Linear(8, 8)])
        nn.init.zeros_(self.blocks[1].weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks[1](self.blocks[0](x).tanh())


def test_finetuning_trains_the_encoder_and_leaves_the_original_alone() -> None:
    torch.manual_seed(0)
    encoder = Shift()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    frozen = [Labelled(probes.extract(encoder, part.inputs), part.labels) for part in sets()]
    assert probes.linear_probe(*frozen).accuracy < 0.5
    found = probes.finetune(
        encoder,
        lambda module, x: module(x),
        *sets(),
        dim=8,
        depth_of=lambda name: int(name.split(".")[1]),
        rates=(0.03,),
        layer_decays=(0.5, 0.9),
        epochs=20,
        batch_size=32,
    )
    assert found.accuracy > 0.9
    assert len(found.tried) == 2
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_what_cannot_be_probed_is_refused() -> None:
    train, validation, test = sets()
    empty = Labelled(train.inputs[:0], train.labels[:0])
    with pytest.raises(InputError, match="validation split has no"):
        probes.linear_probe(train, empty, test)
    one = Labelled(train.inputs, torch.zeros_like(train.labels))
    with pytest.raises(InputError, match="one class"):
        probes.knn_probe(one, one, one)
    with pytest.raises(InputError, match="lacks"):
        probes.linear_probe(Labelled(train.inputs, train.labels % 2), validation, test)
    tokens = Labelled(train.inputs[:, None], train.labels)
    with pytest.raises(InputError, match="pool the tokens"):
        probes.linear_probe(tokens, tokens, tokens)
