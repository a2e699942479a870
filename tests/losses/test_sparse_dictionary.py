import pytest
import torch

from encyclo.losses import sparse_dictionary as loss


def test_both_forms_of_the_error_by_hand() -> None:
    target = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    output = torch.tensor([[2.0, 4.0], [0.0, 0.0]])
    assert float(loss.reconstruction(output, target, "plain")) == pytest.approx((1 + 4) / 2)
    # divided by the token's norm (5 and 2), averaged over tokens and dimensions
    assert float(loss.reconstruction(output, target, "normalised")) == pytest.approx((1 / 5 + 4 / 2) / 4)
    assert float(loss.sparsity(torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 5.0]]))) == pytest.approx(4.0)


def test_ghosts_teach_the_dead_only_and_weigh_as_much_as_the_loss() -> None:
    torch.manual_seed(0)
    before = torch.randn(6, 5, requires_grad=True)
    decoder = torch.nn.functional.normalize(torch.randn(5, 4), dim=1).requires_grad_()
    residual, main = torch.randn(6, 4), torch.tensor(0.7)
    dead = torch.tensor([False, True, False, True, False])
    term = loss.ghost(before, decoder, residual, dead, main)
    assert float(term) == pytest.approx(0.7, rel=1e-3)
    term.backward()
    assert before.grad is not None and decoder.grad is not None
    assert not before.grad[:, ~dead].any() and before.grad[:, dead].any()
    assert not decoder.grad[~dead].any() and decoder.grad[dead].any()
    assert float(loss.ghost(before, decoder, residual, torch.zeros(5, dtype=torch.bool), main)) == 0.0


def test_a_ghost_is_scaled_to_half_the_residual() -> None:
    decoder, residual = torch.eye(2)[:1], torch.tensor([[4.0, 0.0]])
    # exp(0) = 1 along the residual, scaled to length 2: what is left is 2, squared 4, divided by the norm 4
    term = loss.ghost(torch.zeros(1, 1), decoder, residual, torch.tensor([True]), torch.tensor(1.0))
    error = (4.0 + 0.0) / 4 / 2
    assert float(term) == pytest.approx(error * 1.0 / (error + 1e-6), rel=1e-4)
