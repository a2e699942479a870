"""The integer flow is a bijection, exact in whole numbers, and close to what was trained."""

import pytest
import torch

from encyclo.nn.integer_flow import FactorisedFlow, IntegerFlow, Translation

GENERATOR = torch.Generator().manual_seed(0)


def flow(shape=(3, 8, 8), values=256, strength=0.05, **config):
    part = IntegerFlow.Config(**{"levels": 2, "rounds": 1, "translation": {"width": 8}, **config}).build(
        shape=shape, values=values
    )
    with torch.no_grad():
        for p in part.parameters():
            p.copy_(torch.randn(p.shape, generator=GENERATOR) * strength)
    return part


@pytest.mark.parametrize(("shape", "values", "levels"), [((3, 8, 8), 256, 2), ((1, 4, 8), 17, 1), ((3, 8, 16), 5, 3)])
def test_decoding_undoes_encoding(shape, values, levels):
    part = flow(shape, values, levels=levels)
    d = shape[0] * shape[1] * shape[2]
    images = torch.randint(0, values, (7, d), generator=GENERATOR).to(torch.uint8)
    latents = part.encode(images)
    assert latents.dtype == torch.uint8
    assert int(latents.max()) < values
    assert not torch.equal(latents, images)
    assert torch.equal(part.decode(latents), images)
    assert torch.equal(part.encode(part.decode(images)), images), "it is onto: any array of latents has its image"
    assert part.encode(images[:0]).shape == (0, d)


def test_it_begins_as_a_permutation():
    part = IntegerFlow.Config(levels=2).build(shape=(1, 4, 4), values=256)
    image = torch.arange(16, dtype=torch.uint8)[None]
    assert sorted(part.encode(image)[0].tolist()) == list(range(16))


def test_batches_and_threads_change_nothing():
    part = flow(strength=0.3)
    images = torch.randint(0, 256, (33, 192), generator=GENERATOR).to(torch.uint8)
    whole = part.encode(images)
    assert torch.equal(part.encode(images, batch=5), whole)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))
        assert torch.equal(part.encode(images), whole)
    finally:
        torch.set_num_threads(threads)


def test_the_exact_translation_is_the_trained_one_in_whole_numbers():
    net = Translation.Config(width=8).build(inputs=3, outputs=2)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=GENERATOR) * 0.2)
    x = torch.randint(-128, 128, (4, 3, 6, 6), generator=GENERATOR)
    exact, trained = net.exact(x), net(x.float())
    assert exact.dtype == torch.int64
    assert (exact - trained).abs().max() < 0.5 + 0.3  # half a step of rounding, and the tables' coarseness
    grid = torch.nn.functional.pad(x, (1, 1, 1, 1))  # the first output by hand, in Python's whole numbers
    numbers = [n.tolist() for n in net.whole_numbers()]
    hidden = []
    for y in range(3):
        for at in range(3):
            row = []
            for out in range(8):
                total = numbers[1][out] + sum(
                    numbers[0][out][c][i][j] * int(grid[0, c, y + i, at + j])
                    for c in range(3)
                    for i in range(3)
                    for j in range(3)
                )
                row.append(min(max((total + (1 << 8)) >> 9, 0), 65535))
            second = [numbers[3][o] + sum(numbers[2][o][k][0][0] * row[k] for k in range(8)) for o in range(8)]
            hidden.append([min(max((t + (1 << 11)) >> 12, 0), 65535) for t in second])
    total = numbers[5][0] + sum(
        numbers[4][0][k][i][j] * hidden[3 * i + j][k] for k in range(8) for i in range(3) for j in range(3)
    )
    assert int(exact[0, 0, 1, 1]) == (total + (1 << 14)) >> 15


def test_training_sees_nearly_the_exact_latents_and_gradients_reach_all():
    density = FactorisedFlow.Config(flow={"levels": 1, "rounds": 1, "translation": {"width": 8}}).build(
        shape=(3, 8, 8), values=256
    )
    images = torch.randint(100, 156, (16, 192), generator=GENERATOR).to(torch.uint8)
    with torch.no_grad():
        for net in density.flow.translations:
            net.layers[-1].weight.copy_(torch.randn(net.layers[-1].weight.shape, generator=GENERATOR) * 0.01)
    trained, exact = density.flow(images.view(-1, 3, 8, 8).float()), density.flow.encode(images)
    assert ((trained - exact.float()).abs() <= 1).float().mean() > 0.99
    density.nll(images).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in density.parameters())
    torch.testing.assert_close(density.nll(images).double(), -density.log_likelihood(images).mean(), rtol=2e-3, atol=1)


def test_probabilities_of_all_images_sum_to_one():
    density = FactorisedFlow.Config(flow={"levels": 1, "rounds": 1, "translation": {"width": 4}}).build(
        shape=(1, 2, 2), values=5
    )
    with torch.no_grad():
        for p in density.parameters():
            p.copy_(torch.randn(p.shape, generator=GENERATOR) * 0.2)
    every = torch.cartesian_prod(*[torch.arange(5)] * 4).to(torch.uint8)
    torch.testing.assert_close(
        density.log_likelihood(every).exp().sum(), torch.tensor(1.0, dtype=torch.float64), rtol=1e-9, atol=1e-9
    )


def test_digests_tell_flows_apart():
    assert flow(strength=0.0).digest() == flow(strength=0.0).digest()
    assert flow().digest() != flow().digest()


def test_odd_sides_are_refused():
    with pytest.raises(ValueError, match="multiples of 4"):
        IntegerFlow.Config(levels=2).build(shape=(3, 8, 10), values=256)
