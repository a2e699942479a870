"""The quantiser family: its equations, its limiting cases, parity with transformers and vector-quantize-pytorch."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from encyclo.nn.part import materialise
from encyclo.nn.vector_quantize import (
    Codebooks,
    EmaLearning,
    GradientLearning,
    GroupResidualVectorQuantize,
    NoQuantize,
    ProductVectorQuantize,
    ResidualVectorQuantize,
    VectorQuantize,
    group_basis,
    k_means,
    rotate,
    straight_through,
)


def grvq(
    levels: int = 2, groups: int = 2, dim: int = 8, size: int = 16, **fields: object
) -> GroupResidualVectorQuantize:
    torch.manual_seed(0)
    books = Codebooks.Config(size=size, init="normal")
    made = GroupResidualVectorQuantize.Config(levels=levels, groups=groups, codebooks=books, **fields).build(dim=dim)
    assert isinstance(made, GroupResidualVectorQuantize)
    return made


def by_hand(quantizer: GroupResidualVectorQuantize, z: Tensor) -> tuple[Tensor, Tensor]:
    """r_1 = z; nearest code of each group of r_l; r_{l+1} = r_l - q_l: written out vector by vector."""
    groups = quantizer.config.groups
    width = quantizer.dim // groups
    values, codes = torch.zeros_like(z), []
    for i, vector in enumerate(z):
        residual, chosen = vector.clone(), []
        for level in quantizer.levels:
            q = torch.zeros_like(residual)
            for g in range(groups):
                part = residual[g * width : (g + 1) * width]
                best = int((level.weight[g] - part).square().sum(-1).argmin())
                chosen.append(best)
                q[g * width : (g + 1) * width] = level.weight[g, best]
            residual = residual - q
            values[i] += q
        codes.append(chosen)
    return values, torch.tensor(codes)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.sampled_from([1, 2, 4]), st.integers(1, 7))
def test_equals_the_definition_written_out(levels: int, groups: int, count: int) -> None:
    quantizer = grvq(levels, groups).eval()
    z = torch.randn(count, 8)
    with torch.no_grad():
        made = quantizer(z)
        values, codes = by_hand(quantizer, z)
    assert torch.equal(made.codes, codes)  # level 1 group 1..G, level 2 group 1..G
    torch.testing.assert_close(made.values, values)
    assert torch.equal(quantizer.decode(made.codes), made.values)
    assert made.codes.shape == (count, levels * groups)
    assert made.values.shape == (count, 8)


def test_one_group_is_residual_vq_and_one_level_is_product_vq() -> None:
    z = torch.randn(5, 3, 8)
    for general, special in (
        (grvq(3, 1), ResidualVectorQuantize.Config(levels=3, codebooks=Codebooks.Config(size=16)).build(dim=8)),
        (grvq(1, 4), ProductVectorQuantize.Config(groups=4, codebooks=Codebooks.Config(size=16)).build(dim=8)),
        (grvq(1, 1), VectorQuantize.Config(codebooks=Codebooks.Config(size=16)).build(dim=8)),
    ):
        special.load_state_dict(general.state_dict())
        assert torch.equal(general.eval()(z).codes, special.eval()(z).codes)


def test_every_level_and_group_has_its_own_codebook() -> None:
    quantizer = grvq(2, 2, dim=8, size=16)
    assert sum(p.numel() for p in quantizer.parameters()) == 2 * 16 * 8 == quantizer.table_parameters
    assert len({p.data_ptr() for p in quantizer.parameters()}) == 2


def test_costs_at_the_published_size() -> None:
    books = Codebooks.Config(size=1024)
    with torch.device("meta"):
        ours = GroupResidualVectorQuantize.Config(codebooks=books).build(dim=512)
        rvq = ResidualVectorQuantize.Config(levels=4, codebooks=books).build(dim=512)
    assert ours.bits == rvq.bits == 40
    assert (ours.table_parameters, rvq.table_parameters) == (1_048_576, 2_097_152)
    assert (ours.search_macs, rvq.search_macs) == (1_048_576, 2_097_152)
    assert (ours.sequential_steps, rvq.sequential_steps) == (2, 4)


def test_losses_are_the_stated_means() -> None:
    quantizer = grvq(2, 2).train()
    z = torch.randn(6, 8, requires_grad=True)
    made = quantizer(z)
    with torch.no_grad():
        parts = quantizer.decode_levels(made.codes)
        first, second = (z - parts[0]).square().mean(), (z - parts[1]).square().mean()
    torch.testing.assert_close(made.loss, 1.25 * (first + second) / 2)


def test_only_the_first_levels_commitment_moves_the_encoder() -> None:
    quantizer = grvq(2, 2).train()
    z = torch.randn(6, 8, requires_grad=True)
    quantizer(z).loss.backward()
    with torch.no_grad():
        first = quantizer.decode_levels(quantizer(z).codes)[0]
        expected = 0.25 * 2 * (z - first) / z.numel() / 2  # of the first level alone, averaged over two levels
    assert z.grad is not None
    torch.testing.assert_close(z.grad, expected)

    opened = grvq(2, 2, residual_gradient="open").train()
    z = z.detach().requires_grad_()
    opened(z).loss.backward()
    with torch.no_grad():
        both = opened.decode_levels(opened(z).codes)
        expected = 0.25 * 2 * ((z - both[0]) + (z - both[1])) / z.numel() / 2
    assert z.grad is not None
    torch.testing.assert_close(z.grad, expected)


@pytest.mark.parametrize("residual_gradient", ["blocked", "open"])
def test_straight_through_passes_the_outputs_gradient_once(residual_gradient: str) -> None:
    quantizer = grvq(3, 2, residual_gradient=residual_gradient).train()
    z = torch.randn(6, 8, requires_grad=True)
    slope = torch.randn(6, 8)
    (quantizer(z).values * slope).sum().backward()
    assert z.grad is not None
    torch.testing.assert_close(z.grad, slope)


def test_codes_move_by_their_own_gradient() -> None:
    quantizer = grvq(1, 1).train()
    z = torch.randn(6, 8)
    made = quantizer(z)
    made.loss.backward()
    gradient = quantizer.levels[0].weight.grad[0]
    expected = torch.zeros_like(gradient).index_add_(
        0, made.codes[:, 0], 2 * (quantizer.levels[0].weight[0].detach()[made.codes[:, 0]] - z) / z.numel()
    )
    torch.testing.assert_close(gradient, expected)


def test_rotation_has_the_codes_value_and_a_scaled_rotations_gradient() -> None:
    x, q = torch.randn(7, 5, requires_grad=True), torch.randn(7, 5)
    turned = rotate(x, q)
    torch.testing.assert_close(turned.detach(), q)
    slope = torch.randn(7, 5)
    (turned * slope).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad.norm(dim=-1), slope.norm(dim=-1) * q.norm(dim=-1) / x.detach().norm(dim=-1))
    # the angle between gradient and input is that between upstream gradient and code
    torch.testing.assert_close(
        torch.cosine_similarity(x.grad, x.detach()), torch.cosine_similarity(slope, q), atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(straight_through(x, q).detach(), q)


def test_padding_counts_nowhere() -> None:
    books = Codebooks.Config(size=4, learning=EmaLearning(), init="normal")
    torch.manual_seed(0)
    one = GroupResidualVectorQuantize.Config(codebooks=books).build(dim=4).train()
    two = GroupResidualVectorQuantize.Config(codebooks=books).build(dim=4).train()
    two.load_state_dict(one.state_dict())
    z = torch.randn(2, 5, 4)
    keep = torch.tensor([[True] * 5, [True, True, False, False, False]])
    masked = one(z, keep=keep)
    plain = two(torch.cat([z[0], z[1, :2]]))
    torch.testing.assert_close(masked.loss, plain.loss)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, two.state_dict()[name])


def test_fewer_levels_give_the_coarser_vector() -> None:
    quantizer = grvq(3, 2).eval()
    z = torch.randn(9, 8)
    whole = quantizer(z)
    assert torch.equal(quantizer(z, levels=2).codes, whole.codes[:, :4])
    assert torch.equal(quantizer.decode(whole.codes[:, :4]), quantizer.decode_levels(whole.codes)[1])
    with pytest.raises(ValueError, match="1 to 3"):
        quantizer(z, levels=4)
    with pytest.raises(ValueError, match="whole number of levels"):
        quantizer.decode(whole.codes[:, :3])


def test_k_means_finds_separated_clusters_and_each_group_its_own() -> None:
    torch.manual_seed(1)
    centres = torch.tensor([[[0.0, 10.0], [10.0, 0.0], [-10.0, 0.0]], [[5.0, 5.0], [-5.0, -5.0], [5.0, -5.0]]])
    x = (centres[:, :, None] + 0.01 * torch.randn(2, 3, 40, 2)).flatten(1, 2)
    best = min((k_means(x, 3, 20) for _ in range(8)), key=lambda found: float(torch.cdist(x, found).amin(-1).sum()))
    assert float(torch.cdist(centres, best).amin(-1).max()) < 0.1


def test_group_basis_turns_into_uncorrelated_groups_of_equal_weight() -> None:
    torch.manual_seed(0)
    x = torch.randn(4000, 4) @ torch.randn(4, 8) + 0.01 * torch.randn(4000, 8) + 5
    basis = group_basis(x, 2)
    torch.testing.assert_close(basis @ basis.t(), torch.eye(8), atol=1e-5, rtol=0)
    covariance = torch.cov((x @ basis.t()).t())
    off = covariance - covariance.diag().diag()
    assert float(off.abs().max()) < 1e-2 * float(covariance.diag().max())
    weights = covariance.diag().clamp(min=1e-9).log().view(2, 4).sum(1)
    assert float(weights.diff().abs()) < 3  # of eight logarithms that span about ten each
    errors = []
    for turn in (torch.eye(8), basis):
        torch.manual_seed(0)
        books = Codebooks.Config(size=32, init="k-means", rounds=20)
        quantizer = ProductVectorQuantize.Config(groups=2, codebooks=books).build(dim=8)
        turned = x @ turn.t()
        quantizer.initialise(turned)
        errors.append(float((turned - quantizer.eval()(turned).values).detach().square().mean()))
    assert errors[1] < errors[0]


@pytest.mark.parametrize("groups", [2, 4])
def test_the_group_basis_does_not_depend_on_the_scale(groups: int) -> None:
    """Variances below one must not draw all large components into one group."""
    torch.manual_seed(0)
    x = torch.randn(2000, 8) * 0.7 ** torch.arange(8)
    small, large = (group_basis(scale * x, groups) for scale in (1e-3, 1e3))
    torch.testing.assert_close(small.abs(), large.abs(), atol=1e-3, rtol=0)
    logs = (x @ small.t()).var(0).log().view(groups, -1).sum(1)
    assert float(logs.max() - logs.min()) < 1.5


def test_codebooks_initialised_from_data_are_healthy_where_the_published_draw_collapses() -> None:
    torch.manual_seed(0)
    z = 3 + torch.randn(600, 8)
    used = {}
    for init in ("uniform", "k-means", "samples"):
        torch.manual_seed(0)
        quantizer = GroupResidualVectorQuantize.Config(codebooks=Codebooks.Config(size=64, init=init)).build(dim=8)
        quantizer.train()(z)
        used[init] = len(quantizer.eval()(z).codes[:, 0].unique())
    assert used["uniform"] < 40 < min(used["k-means"], used["samples"])


def test_revival_replaces_dead_codes_by_vectors_of_the_batch() -> None:
    torch.manual_seed(0)
    for learning in (GradientLearning(), EmaLearning()):
        books = Codebooks.Config(size=32, learning=learning, init="normal", revive_below=0.5)
        quantizer = VectorQuantize.Config(codebooks=books).build(dim=4).train()
        with torch.no_grad():
            quantizer.levels[0].weight[0, 5:] = 1000.0
            if isinstance(learning, EmaLearning):
                quantizer.levels[0].sums[0, 5:] = 1000.0
        z = torch.randn(200, 4)
        for _ in range(80):
            quantizer(z)
        assert float(quantizer.levels[0].weight.abs().max()) < 10
        assert len(quantizer.eval()(z).codes.unique()) > 20


def test_distances_stay_fp32_under_bf16() -> None:
    quantizer = grvq(2, 2).eval()
    z = torch.randn(64, 8)
    plain = quantizer(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = quantizer(z)
    assert torch.equal(plain.codes, mixed.codes)
    assert quantizer(z.bfloat16()).values.dtype == torch.bfloat16


def test_large_inputs_are_searched_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer = grvq(2, 2).eval()
    z = torch.randn(100, 8)
    whole = quantizer(z).codes
    monkeypatch.setattr("encyclo.nn.vector_quantize._MOST_DISTANCES", 2 * 16 * 7)
    assert torch.equal(quantizer(z).codes, whole)


def test_cosine_search_ignores_length() -> None:
    torch.manual_seed(0)
    books = Codebooks.Config(size=16, init="normal", distance="cosine")
    quantizer = VectorQuantize.Config(codebooks=books).build(dim=8).eval()
    z = torch.randn(20, 8)
    assert torch.equal(quantizer(z).codes, quantizer(100 * z).codes)


def test_builds_on_meta_and_is_materialised() -> None:
    with torch.device("meta"):
        quantizer = GroupResidualVectorQuantize.Config().build(dim=16)
    made = materialise(quantizer)
    assert isinstance(made, GroupResidualVectorQuantize)
    assert float(made.levels[0].weight.abs().max()) <= 1 / 1024
    assert bool(made.levels[0].ready)


def test_no_quantiser_lets_everything_through() -> None:
    z = torch.randn(2, 3, 4)
    made = NoQuantize.Config().build(dim=4)(z)
    assert made.values is z
    assert made.codes.shape == (2, 3, 0)
    assert float(made.loss) == 0


def test_a_width_that_cannot_be_cut_is_refused() -> None:
    with pytest.raises(ValueError, match="3 groups"):
        GroupResidualVectorQuantize.Config(groups=3).build(dim=8)
    with pytest.raises(ValueError, match="8 are expected"):
        grvq()(torch.randn(3, 7))


def test_parity_with_transformers_residual_quantizer() -> None:
    from transformers import EncodecConfig
    from transformers.models.encodec.modeling_encodec import EncodecResidualVectorQuantizer

    torch.manual_seed(0)
    config = EncodecConfig(codebook_size=32, codebook_dim=16, target_bandwidths=[3.0], upsampling_ratios=[8, 5, 4, 2])
    theirs = EncodecResidualVectorQuantizer(config)
    count = len(theirs.layers)
    ours = ResidualVectorQuantize.Config(
        levels=count, codebooks=Codebooks.Config(size=32, learning=EmaLearning(), init="normal")
    ).build(dim=16)
    for layer, level in zip(theirs.layers, ours.levels, strict=True):
        layer.codebook.embed.copy_(level.weight[0])
    z = torch.randn(2, 16, 30)
    codes = theirs.encode(z, bandwidth=1e9 if count is None else count * 5 * config.frame_rate / 1000)
    made = ours.eval()(z.transpose(1, 2))
    assert torch.equal(made.codes.permute(2, 0, 1), codes)
    torch.testing.assert_close(made.values.transpose(1, 2), theirs.decode(codes))


def test_parity_with_vector_quantize_pytorch_over_ema_updates() -> None:
    library = pytest.importorskip("vector_quantize_pytorch")
    torch.manual_seed(0)
    theirs = library.ResidualVQ(dim=8, num_quantizers=3, codebook_size=16, decay=0.9, commitment_weight=1.0).train()
    ours = ResidualVectorQuantize.Config(
        levels=3,
        codebooks=Codebooks.Config(size=16, learning=EmaLearning(decay=0.9), init="normal"),
        residual_gradient="open",
    ).build(dim=8)
    for layer, level in zip(theirs.layers, ours.levels, strict=True):
        level.weight.copy_(layer._codebook.embed)
        level.sums.copy_(layer._codebook.embed_avg)
        level.use.copy_(layer._codebook.cluster_size)
    for _ in range(4):
        z = torch.randn(2, 40, 8)
        values, codes, losses = theirs(z)
        made = ours.train()(z)
        assert torch.equal(made.codes, codes)
        torch.testing.assert_close(made.values, values, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(made.loss, losses.mean())
    for layer, level in zip(theirs.layers, ours.levels, strict=True):
        torch.testing.assert_close(level.weight, layer._codebook.embed, atol=1e-5, rtol=1e-5)


def test_bits_are_those_of_the_table() -> None:
    assert grvq(2, 2, size=16).bits == 16
    assert math.isclose(grvq(1, 1, size=3 + 7).bits, math.log2(10))
