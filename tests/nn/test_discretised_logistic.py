"""Mixtures of discretised logistics are distributions, and the differentiable form is the table's logarithm."""

import torch

from encyclo.nn.discretised_logistic import QUICK, DiscretisedLogistics


def mixture(variables=3, values=17, components=2):
    part = DiscretisedLogistics.Config(components=components).build(variables=variables, values=values)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        part.weight.copy_(torch.randn(part.weight.shape, generator=generator) / QUICK)
        part.mean.copy_(torch.rand(part.mean.shape, generator=generator))
    return part


def test_rows_sum_to_one_and_nothing_is_impossible():
    part = mixture()
    with torch.no_grad():
        part.log_scale.fill_(-9.0 / QUICK)
    table = part.table()
    torch.testing.assert_close(table.sum(1), torch.ones(3, dtype=torch.float64))
    assert (table > 1e-8).all()


def test_the_differentiable_form_is_the_logarithm_of_the_table():
    part = mixture()
    values = torch.arange(17)[:, None].expand(-1, 3)
    expected = part.table().log().T
    torch.testing.assert_close(part(values.float()).double(), expected, rtol=1e-3, atol=1e-3)


def test_one_logistic_by_hand():
    part = DiscretisedLogistics.Config(components=1).build(variables=1, values=4)
    with torch.no_grad():
        part.mean.fill_(0.25)  # of four values: stands at 1
        part.log_scale.fill_(torch.log(torch.tensor(0.5)) / QUICK)  # breadth 2
    edges = torch.sigmoid((torch.tensor([0.5, 1.5, 2.5], dtype=torch.float64) - 1) / 2)
    expected = torch.cat([edges[:1], edges.diff(), 1 - edges[-1:]])
    torch.testing.assert_close(part.table()[0], expected, rtol=1e-6, atol=1e-6)


def test_far_from_the_mean_there_still_is_a_gradient():
    part = DiscretisedLogistics.Config(components=1).build(variables=1, values=256)
    with torch.no_grad():
        part.mean.fill_(0.1)
        part.log_scale.fill_(-6.0 / QUICK)
    part(torch.full((1, 1), 200.0)).sum().backward()
    assert float(part.mean.grad) > 0
