import torch
from scipy import linalg
from torchmetrics.image.kid import maximum_mean_discrepancy

from encyclo.metrics.frechet import frechet_distance, kernel_distance


def test_frechet_of_two_normals_is_the_closed_form() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(400, 6, generator=generator).double()
    b = 2 * torch.randn(500, 6, generator=generator).double() + 1
    s, t = torch.cov(a.T).numpy(), torch.cov(b.T).numpy()
    expected = float((a.mean(0) - b.mean(0)).square().sum()) + (s + t - 2 * linalg.sqrtm(s @ t).real).trace()
    assert abs(frechet_distance(a.float(), b.float()) - expected) < 1e-4
    assert abs(frechet_distance(a.float(), a.float())) < 1e-4


def test_kernel_distance_is_the_library_s() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(50, 8, generator=generator), torch.randn(50, 8, generator=generator) + 0.5
    k = [(x.double() @ y.double().T / 8 + 1) ** 3 for x, y in ((a, a), (a, b), (b, b))]
    expected = float(maximum_mean_discrepancy(*k))
    assert abs(kernel_distance(a, b) - expected) < 1e-9
