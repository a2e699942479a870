"""What a frozen (or fine-tuned) encoder's output tells about labels: one probe suite for every encoder.

Every probe has a fixed grid of settings, trains each on the training split, chooses by accuracy on the validation split
and reports the accuracy of that one setting on the test split, which nothing else looks at.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from encyclo.errors import InputError
from encyclo.nn.attentive_pool import AttentivePool

__all__ = [
    "AttentiveHead",
    "Classifier",
    "Labelled",
    "LinearHead",
    "Probe",
    "Probed",
    "attentive_probe",
    "extract",
    "finetune",
    "knn_probe",
    "linear_probe",
    "logistic_probe",
    "probe_suite",
]

Probe = Literal["linear", "attentive", "knn", "logistic"]


@dataclass(frozen=True)
class Labelled:
    """Inputs of a probe with their classes.

    Attributes:
        inputs: vectors [n, d], sets of tokens [n, t, d], or images [n, c, h, w] for `finetune`.
        labels: class numbers from 0.
    """

    inputs: Shaped[Tensor, "n ..."]
    labels: Int64[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Labelled":
        """The same on another device."""
        return Labelled(self.inputs.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Probed:
    """What a probe found.

    Attributes:
        accuracy: share of test samples that the chosen setting names rightly, 0..1.
        validation: the same on the validation split.
        chosen: the setting.
        tried: every setting with its validation accuracy.
        model: the trained head, or classifier.
    """

    accuracy: float
    validation: float
    chosen: Mapping[str, float]
    tried: Sequence[tuple[Mapping[str, float], float]]
    model: nn.Module | None = field(default=None, compare=False)


def extract(
    encode: Callable[[Tensor], Tensor], inputs: Shaped[Tensor, "n ..."], *, batch_size: int = 256
) -> Float[Tensor, "n ..."]:
    """The encoder's output for all inputs, batch by batch, without gradients."""
    with torch.no_grad():
        return torch.cat([encode(batch) for batch in torch.split(inputs, batch_size)])


def _classes(train: Labelled, validation: Labelled, test: Labelled) -> int:
    """The number of classes, checked."""
    for name, part in (("training", train), ("validation", validation), ("test", test)):
        if not len(part):
            raise InputError(f"the {name} split has no labelled samples: a probe needs all three splits")
        if len(part.inputs) != len(part.labels):
            raise InputError(f"the {name} split has {len(part.inputs)} inputs but {len(part.labels)} labels")
    classes = int(train.labels.max()) + 1
    if classes < 2 or int(train.labels.min()) == classes - 1:
        raise InputError("the training split has one class only: a probe needs at least two")
    if max(int(validation.labels.max()), int(test.labels.max())) >= classes:
        raise InputError("validation or test has a class that the training split lacks")
    return classes


def _accuracy(scores: Float[Tensor, "n c"], labels: Int64[Tensor, " n"]) -> float:
    if not bool(torch.isfinite(scores).all()):
        return 0.0  # a setting that diverged
    return float((scores.argmax(1) == labels).double().mean())


def _cosine(step: int, steps: int, warmup: int = 0) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2


def _orders(count: int, batch_size: int, epochs: int, seed: int) -> list[Int64[Tensor, " b"]]:
    """The batches of all epochs, as indices; short last batches are left out where there is a full one."""
    generator = torch.Generator().manual_seed(seed)
    batches: list[Tensor] = []
    for _ in range(epochs):
        parts = torch.split(torch.randperm(count, generator=generator), min(batch_size, count))
        batches += [part for part in parts if len(part) == min(batch_size, count)]
    return batches


def _choose(tried: list[tuple[dict[str, float], float]]) -> int:
    """The best setting; of equals the first."""
    return max(range(len(tried)), key=lambda i: (tried[i][1], -i))


# -- linear ----------------------------------------------------------------------------------------------------------


class LinearHead(nn.Module):
    """A linear classifier over vectors standardised by the training split's mean and deviation."""

    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.linear = nn.Linear(dim, classes)

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b c"]:
        """Scores by class."""
        out: Tensor = self.linear((x - self.mean) * self.scale)
        return out


def _vectors(*parts: Labelled) -> None:
    for part in parts:
        if part.inputs.ndim != 2:
            raise InputError(f"this probe takes vectors [n, d], not {list(part.inputs.shape)}: pool the tokens first")


def _standard(train: Labelled) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    deviation, mean = torch.std_mean(train.inputs.float(), dim=0, correction=0)
    return mean, 1 / deviation.clamp(min=1e-6)


def linear_probe(
    train: Labelled,
    validation: Labelled,
    test: Labelled,
    *,
    rates: Sequence[float] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
    epochs: int = 50,
    batch_size: int = 256,
    seed: int = 0,
) -> Probed:
    """A linear classifier on frozen vectors, by stochastic gradient descent (momentum 0.9, cosine, no decay).

    The vectors are standardised with the training split's statistics, which is what a BatchNorm without affine
    parameters in front of the classifier converges to. All rates of the grid are trained at once.

    Args:
        train, validation, test: vectors [n, d].
        rates: learning rates to choose from.
        epochs: passes over the training split.
        batch_size: of them.
        seed: order of the samples.

    Raises:
        InputError: an empty split, a single class, inputs that are not vectors.
    """
    classes = _classes(train, validation, test)
    _vectors(train, validation, test)
    mean, scale = _standard(train)
    parts = [((part.inputs.float() - mean) * scale, part.labels) for part in (train, validation, test)]
    x, y = parts[0]
    weight = x.new_zeros(len(rates), x.shape[1], classes, requires_grad=True)
    bias = x.new_zeros(len(rates), 1, classes, requires_grad=True)
    speed = x.new_tensor(rates).view(-1, 1, 1)
    moving = [torch.zeros_like(weight), torch.zeros_like(bias)]
    batches = _orders(len(y), batch_size, epochs, seed)
    for step, chosen in enumerate(batches):
        here = chosen.to(x.device)
        scores = x[here] @ weight + bias  # [g, b, c]
        target = y[here].expand(len(rates), -1)
        loss = F.cross_entropy(scores.flatten(0, 1), target.flatten(), reduction="sum") / len(here)
        gradients = torch.autograd.grad(loss, (weight, bias))
        with torch.no_grad():
            for value, gradient, past in zip((weight, bias), gradients, moving, strict=True):
                past.mul_(0.9).add_(gradient)
                value.sub_(speed * _cosine(step, len(batches)) * past)
    weight, bias = weight.detach(), bias.detach()
    by_split = [
        [_accuracy(inputs @ w + b, labels) for w, b in zip(weight, bias, strict=True)] for inputs, labels in parts
    ]
    tried = [({"lr": rate}, accuracy) for rate, accuracy in zip(rates, by_split[1], strict=True)]
    best = _choose(tried)
    head = LinearHead(x.shape[1], classes).to(x.device)
    with torch.no_grad():
        head.mean.copy_(mean)
        head.scale.copy_(scale)
        head.linear.weight.copy_(weight[best].T)
        head.linear.bias.copy_(bias[best, 0])
    return Probed(by_split[2][best], by_split[1][best], tried[best][0], tried, head)


# -- attentive ---------------------------------------------------------------------------------------------------------


class AttentiveHead(nn.Module):
    """Attentive pooling, BatchNorm without affine parameters, a linear classifier (CAE, section 4.2)."""

    def __init__(self, dim: int, classes: int, heads: int) -> None:
        super().__init__()
        self.pool = AttentivePool.Config(heads=heads).build(dim=dim)
        self.norm = nn.BatchNorm1d(dim, affine=False, eps=1e-6)
        self.linear = nn.Linear(dim, classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens: Float[Tensor, "b t d"]) -> Float[Tensor, "b c"]:
        """Scores by class."""
        out: Tensor = self.linear(self.norm(self.pool(tokens)))
        return out


def attentive_probe(
    train: Labelled,
    validation: Labelled,
    test: Labelled,
    *,
    heads: int = 12,
    rates: Sequence[float] = (1e-3, 3e-3, 1e-2),
    epochs: int = 20,
    batch_size: int = 256,
    seed: int = 0,
) -> Probed:
    """A learned query over frozen tokens, then a linear classifier (CAE, section 4.2), by Adam with a cosine schedule.

    The paper trains the same head by SGD with batches of 8192; Adam needs no such batch.

    Args:
        train, validation, test: sets of tokens [n, t, d].
        heads: of the attention; must divide d.
        rates: learning rates to choose from.
        epochs: passes over the training split.
        batch_size: of them; large enough for BatchNorm.
        seed: first values and order of the samples.

    Raises:
        InputError: an empty split, a single class, inputs that are not sets of tokens.
    """
    classes = _classes(train, validation, test)
    if train.inputs.ndim != 3:
        raise InputError(f"an attentive probe takes tokens [n, t, d], not {list(train.inputs.shape)}")
    device = train.inputs.device
    tried: list[tuple[dict[str, float], float]] = []
    tests: list[float] = []
    models: list[nn.Module] = []
    batches = _orders(len(train), batch_size, epochs, seed)
    for rate in rates:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = AttentiveHead(train.inputs.shape[-1], classes, heads)
        head.to(device).train()
        optimiser = torch.optim.Adam(head.parameters(), lr=rate)
        for step, chosen in enumerate(batches):
            here = chosen.to(device)
            for group in optimiser.param_groups:
                group["lr"] = rate * _cosine(step, len(batches))
            loss = F.cross_entropy(head(train.inputs[here].float()), train.labels[here])
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
        head.eval()
        accuracies = [
            _accuracy(extract(lambda x, head=head: head(x.float()), part.inputs), part.labels)
            for part in (validation, test)
        ]
        tried.append(({"lr": rate}, accuracies[0]))
        tests.append(accuracies[1])
        models.append(head)
    best = _choose(tried)
    return Probed(tests[best], tried[best][1], tried[best][0], tried, models[best])


# -- nearest neighbours ------------------------------------------------------------------------------------------------


def knn_probe(
    train: Labelled,
    validation: Labelled,
    test: Labelled,
    *,
    neighbours: Sequence[int] = (1, 5, 10, 20, 50),
    temperature: float = 0.07,
) -> Probed:
    """Votes of the k nearest training samples by cosine, each weighing exp(cosine / temperature) (Wu et al. 2018).

    Args:
        train, validation, test: vectors [n, d].
        neighbours: values of k to choose from; those above the number of training samples mean all of them.
        temperature: of the weights.

    Raises:
        InputError: an empty split, a single class, inputs that are not vectors.
    """
    classes = _classes(train, validation, test)
    _vectors(train, validation, test)
    base = F.normalize(train.inputs.float(), dim=1)
    sizes = torch.tensor([min(k, len(base)) - 1 for k in neighbours], device=base.device)
    found: list[list[float]] = []
    for part in (validation, test):
        hits = torch.zeros(len(neighbours), dtype=torch.int64, device=base.device)
        for inputs, labels in zip(torch.split(part.inputs, 1024), torch.split(part.labels, 1024), strict=True):
            near, index = (F.normalize(inputs.float(), dim=1) @ base.T).topk(int(sizes.max()) + 1, dim=1)
            vote = (near / temperature).exp()
            score = vote.new_zeros(*vote.shape, classes).scatter_(2, train.labels[index].unsqueeze(-1), vote[..., None])
            named = score.cumsum(1)[:, sizes].argmax(-1)
            hits += (named == labels[:, None]).sum(0)
        found.append((hits.double() / len(part)).tolist())
    tried = [({"k": float(k)}, accuracy) for k, accuracy in zip(neighbours, found[0], strict=True)]
    best = _choose(tried)
    return Probed(found[1][best], found[0][best], tried[best][0], tried)


# -- logistic regression -----------------------------------------------------------------------------------------------


def logistic_probe(
    train: Labelled,
    validation: Labelled,
    test: Labelled,
    *,
    strengths: Sequence[float] = (0.001, 0.01, 0.1, 1.0, 10.0),
    iterations: int = 500,
) -> Probed:
    """Logistic regression on standardised frozen vectors, solved by L-BFGS (scikit-learn): no learning rate, no seed.

    Args:
        train, validation, test: vectors [n, d].
        strengths: inverse regularisation strengths C to choose from.
        iterations: of the solver, at most.

    Raises:
        InputError: an empty split, a single class, inputs that are not vectors.
    """
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    classes = _classes(train, validation, test)
    _vectors(train, validation, test)
    mean, scale = _standard(train)
    arrays = [((p.inputs.float() - mean) * scale).cpu().double().numpy() for p in (train, validation, test)]
    labels = [p.labels.cpu().numpy() for p in (train, validation, test)]
    tried: list[tuple[dict[str, float], float]] = []
    fits = []
    for strength in strengths:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # it stops at `iterations` by choice
            fit = LogisticRegression(C=strength, max_iter=iterations).fit(arrays[0], labels[0])
        tried.append(({"C": strength}, float(fit.score(arrays[1], labels[1]))))
        fits.append(fit)
    best = _choose(tried)
    head = LinearHead(arrays[0].shape[1], classes)
    coefficients = torch.from_numpy(fits[best].coef_).float()
    shifts = torch.from_numpy(fits[best].intercept_).float()
    if len(coefficients) == 1:  # two classes: scikit-learn keeps the difference of their scores
        coefficients, shifts = torch.cat((-coefficients, coefficients)) / 2, torch.cat((-shifts, shifts)) / 2
    present = torch.from_numpy(fits[best].classes_)
    with torch.no_grad():
        head.mean.copy_(mean)
        head.scale.copy_(scale)
        head.linear.weight.zero_()
        head.linear.bias.fill_(-1e4)  # a class number without samples is never named
        head.linear.weight[present] = coefficients
        head.linear.bias[present] = shifts
    accuracy = float(fits[best].score(arrays[2], labels[2]))
    return Probed(accuracy, tried[best][1], tried[best][0], tried, head.to(train.inputs.device))


# -- all of them -------------------------------------------------------------------------------------------------------


def probe_suite(
    encode: Callable[[Tensor], Float[Tensor, "b t d"]],
    train: Labelled,
    validation: Labelled,
    test: Labelled,
    *,
    kinds: Sequence[Probe] = ("linear", "attentive", "knn", "logistic"),
    pool: Callable[[Float[Tensor, "b t d"]], Float[Tensor, "b d"]] | None = None,
    heads: int = 12,
    batch_size: int = 256,
    seed: int = 0,
    **options: Any,
) -> dict[str, Probed]:
    """Several probes of one encoder, which runs once over each split.

    Args:
        encode: a batch of inputs to tokens [b, t, d]; an encoder of vectors gives t = 1.
        train, validation, test: inputs as `encode` takes them, with labels.
        kinds: which probes.
        pool: tokens to the vector that all but the attentive probe see; None takes their mean.
        heads: of the attentive probe.
        batch_size: of inputs through the encoder.
        seed: of the probes.
        **options: further arguments of the probes by name (`epochs`, say), given to those that take them.

    Raises:
        InputError: no probe, or what a probe refuses.
    """
    import inspect

    known: dict[str, Callable[..., Probed]] = {
        "linear": linear_probe,
        "attentive": attentive_probe,
        "knn": knn_probe,
        "logistic": logistic_probe,
    }
    if not kinds:
        raise InputError(f"no probe is named: choose among {', '.join(known)}")
    parts = [Labelled(extract(encode, p.inputs, batch_size=batch_size), p.labels) for p in (train, validation, test)]
    parts = [Labelled(p.inputs, p.labels.to(p.inputs.device)) for p in parts]
    pooled = [Labelled(p.inputs.mean(1) if pool is None else pool(p.inputs), p.labels) for p in parts]
    settings = {"heads": heads, "seed": seed, **options}
    found: dict[str, Probed] = {}
    for kind in kinds:
        taken = inspect.signature(known[kind]).parameters
        given = {name: value for name, value in settings.items() if name in taken}
        found[kind] = known[kind](*(parts if kind == "attentive" else pooled), **given)
    return found


# -- fine-tuning -------------------------------------------------------------------------------------------------------


class Classifier(nn.Module):
    """An encoder, a pooling of its output into one vector, and a linear classifier."""

    def __init__(
        self, encoder: nn.Module, pool: Callable[[nn.Module, Tensor], Float[Tensor, "b d"]], dim: int, classes: int
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self._pool = pool
        self.head = nn.Linear(dim, classes)
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, inputs: Shaped[Tensor, "b ..."]) -> Float[Tensor, "b c"]:
        """Scores by class."""
        out: Tensor = self.head(self._pool(self.encoder, inputs))
        return out


def finetune(
    encoder: nn.Module,
    pool: Callable[[nn.Module, Tensor], Float[Tensor, "b d"]],
    train: Labelled,
    validation: Labelled,
    test: Labelled,
    *,
    dim: int,
    depth_of: Callable[[str], int] | None = None,
    augment: Callable[[Tensor], Tensor] | None = None,
    rates: Sequence[float] = (3e-4, 1e-3),
    layer_decays: Sequence[float] = (0.65, 0.85),
    epochs: int = 20,
    warmup: float = 0.1,
    batch_size: int = 256,
    weight_decay: float = 0.05,
    label_smoothing: float = 0.1,
    clip: float | None = 3.0,
    seed: int = 0,
) -> Probed:
    """Train encoder and classifier together, with AdamW, a cosine schedule and a rate that falls with depth (BEiT).

    A parameter at depth l of L gets rate * layer_decay ** (L + 1 - l), the classifier the full rate. Every setting of
    the grid starts from a copy of the encoder, which itself stays as it was.

    Args:
        encoder: to start from.
        pool: (encoder, inputs) to vectors [b, dim].
        train, validation, test: inputs as `pool` takes them.
        dim: of the vectors.
        depth_of: name of a parameter of the encoder to its depth, 0 nearest to the input; None: no decay over layers.
        augment: applied to training inputs.
        rates, layer_decays: the grid (without `depth_of` the decays are not tried).
        epochs, warmup: passes over the training split, and the share of them in which the rate rises.
        batch_size, weight_decay, label_smoothing, clip: as usual; vectors are not decayed.
        seed: first values and order of the samples.

    Raises:
        InputError: an empty split or a single class.
    """
    classes = _classes(train, validation, test)
    device = next(encoder.parameters()).device
    names = [name for name, _ in encoder.named_parameters()]
    deepest = max((depth_of(name) for name in names), default=0) if depth_of else 0
    decays = list(layer_decays) if depth_of else [1.0]
    batches = _orders(len(train), batch_size, epochs, seed)
    tried: list[tuple[dict[str, float], float]] = []
    best: tuple[float, float, nn.Module] | None = None
    for rate in rates:
        for decay in decays:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = Classifier(copy.deepcopy(encoder), pool, dim, classes).to(device)
            groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(True)
                inner = name.removeprefix("encoder.")
                power = deepest + 1 - depth_of(inner) if depth_of and inner != name else 0
                groups.setdefault((decay**power, parameter.ndim > 1), []).append(parameter)
            optimiser = torch.optim.AdamW(
                [
                    {"params": members, "scale": scale, "weight_decay": weight_decay if decayed else 0.0}
                    for (scale, decayed), members in groups.items()
                ],
                lr=rate,
            )
            model.train()
            for step, chosen in enumerate(batches):
                for group in optimiser.param_groups:
                    group["lr"] = rate * group["scale"] * _cosine(step, len(batches), int(warmup * len(batches)))
                inputs = train.inputs[chosen.to(train.inputs.device)].to(device)
                labels = train.labels[chosen.to(train.labels.device)].to(device)
                scores = model(inputs if augment is None else augment(inputs))
                loss = F.cross_entropy(scores, labels, label_smoothing=label_smoothing)
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                if clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimiser.step()
            model.eval()
            accuracies = [
                _accuracy(extract(lambda x, model=model: model(x.to(device)), part.inputs), part.labels.to(device))
                for part in (validation, test)
            ]
            setting = {"lr": rate, "layer_decay": decay} if depth_of else {"lr": rate}
            tried.append((setting, accuracies[0]))
            if best is None or accuracies[0] > best[0]:
                best = (accuracies[0], accuracies[1], model)
    assert best is not None
    chosen_setting = tried[_choose(tried)][0]
    return Probed(best[1], best[0], chosen_setting, tried, best[2])
