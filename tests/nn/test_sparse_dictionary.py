import torch

from encyclo.nn.sparse_dictionary import SparseDictionary


def dictionary(dim: int = 8, expansion: int = 4) -> SparseDictionary:
    torch.manual_seed(0)
    made: SparseDictionary = SparseDictionary.Config(expansion=expansion).build(dim=dim)
    with torch.no_grad():
        for bias in (made.encoder_bias, made.input_bias, made.output_bias):
            bias.copy_(torch.randn_like(bias))
    return made


def test_the_module_is_its_equation() -> None:
    tc, x = dictionary(), torch.randn(5, 8)
    z = torch.relu((x - tc.input_bias) @ tc.encoder.T + tc.encoder_bias)
    torch.testing.assert_close(tc.encode(x), z)
    torch.testing.assert_close(tc(x), z @ tc.decoder + tc.output_bias)


def test_it_starts_with_unit_rows_no_bias_and_the_means_of_its_data() -> None:
    tc: SparseDictionary = SparseDictionary.Config(expansion=2).build(dim=8)
    torch.testing.assert_close(tc.decoder.norm(dim=1), torch.ones(16))
    assert not tc.encoder_bias.any() and not tc.silent.any()
    x, y = torch.randn(100, 8), torch.randn(100, 8)
    tc.centre(x.half(), y.half())
    torch.testing.assert_close(tc.input_bias, x.mean(0), rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(tc.output_bias, y.mean(0), rtol=1e-2, atol=1e-3)


def test_decoder_rows_stay_at_unit_length_and_get_no_gradient_along_them() -> None:
    tc = dictionary()
    tc(torch.randn(16, 8)).square().sum().backward()
    tc.drop_parallel_gradient()
    along = (tc.decoder.grad * tc.decoder).sum(1)
    torch.testing.assert_close(along, torch.zeros_like(along), atol=1e-4, rtol=0)
    with torch.no_grad():
        tc.decoder.mul_(3)
    tc.normalise_decoder()
    torch.testing.assert_close(tc.decoder.norm(dim=1), torch.ones(32))


def test_the_published_width_has_the_published_size() -> None:
    with torch.device("meta"):
        published = SparseDictionary.Config(expansion=32).build(dim=768)
    assert sum(p.numel() for p in published.parameters()) == 37_774_848
