import torch

from encyclo.nn.text_classifier import TextClassifier


def test_it_pools_by_tanh_and_multiplies() -> None:
    classifier = TextClassifier.Config().build(dim=6, classes=3).eval()
    x = torch.randn(4, 6)
    hidden = torch.tanh(x @ classifier.dense.weight.T + classifier.dense.bias)
    torch.testing.assert_close(classifier(x), hidden @ classifier.out.weight.T + classifier.out.bias)
    assert classifier.out.bias.abs().max() == 0
