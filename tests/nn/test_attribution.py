from itertools import pairwise

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from encyclo.errors import InputError
from encyclo.nn.attribution import Attribution, deembed, graph, input_invariant, logit_effect, pulled_back
from encyclo.nn.decoder_view import DecoderView
from encyclo.nn.sparse_dictionary import SparseDictionary


def llama() -> nn.Module:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50, hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=32,
        )
    )  # fmt: skip


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=24, n_layer=3, n_head=4, n_positions=32))


def neox() -> nn.Module:
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=50, hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4,
            max_position_embeddings=32,
        )
    )  # fmt: skip


FAMILIES = {"llama": llama, "gpt2": gpt2, "neox": neox}


@pytest.fixture(scope="module", params=list(FAMILIES))
def attribution(request: pytest.FixtureRequest) -> Attribution:
    torch.manual_seed(0)
    model = FAMILIES[request.param]().double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # norms and biases that are not trivial
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif "wte" not in name:
                parameter.mul_(4)
    view = DecoderView(model)
    dictionaries = {}
    for layer in range(3):
        dictionary = SparseDictionary.Config(expansion=2).build(dim=24).double()
        with torch.no_grad():
            for bias in (dictionary.encoder_bias, dictionary.input_bias, dictionary.output_bias):
                bias.copy_(0.1 * torch.randn_like(bias))
        dictionaries[layer] = dictionary
    return Attribution(view, view.trace(torch.tensor([3, 14, 15, 9, 26, 5])), dictionaries)


@torch.no_grad()
def test_the_parts_of_a_feature_add_up_to_its_preactivation(attribution: Attribution) -> None:
    for layer, feature, token in ((2, 5, 4), (1, 0, 5), (0, 3, 2)):
        parts = attribution.contributions(attribution.feature_reader(layer, feature, token))
        dictionary = attribution.transcoders[layer]
        exact = float(dictionary.preactivations(attribution.trace.mlp_in[layer, token])[feature])
        assert parts.value == pytest.approx(exact, rel=1e-6)
        assert parts.total() == pytest.approx(exact, rel=1e-6, abs=1e-7)


@torch.no_grad()
def test_the_parts_of_a_logit_difference_add_up(attribution: Attribution) -> None:
    unembedding = attribution.view.unembedding
    parts = attribution.contributions(attribution.logit_reader(unembedding[7] - unembedding[8], 5))
    logits = attribution.trace.logits[5]
    assert parts.total() == pytest.approx(float(logits[7] - logits[8]), rel=1e-6)


@torch.no_grad()
def test_a_step_down_explains_the_step_above(attribution: Attribution) -> None:
    root = attribution.feature_reader(2, 5, 4)
    parts = attribution.contributions(root)
    layer, head, source = 1, 2, 3
    below = attribution.contributions(attribution.head_reader(root, layer, head, source))
    assert below.total() == pytest.approx(float(parts.heads[layer, head, source]), rel=1e-5, abs=1e-7)
    active = next(int(i) for i in attribution.features[1][4].nonzero().flatten())
    scale = float(attribution.transcoders[1].decoder[active] @ root.direction)
    feature = attribution.contributions(attribution.feature_reader(1, active, 4, scale))
    assert feature.total() == pytest.approx(float(parts.features[1][active]), rel=1e-5, abs=1e-7)


def test_paths_are_greedy_capped_and_end_in_embeddings(attribution: Attribution) -> None:
    root = attribution.feature_reader(2, int(attribution.features[2][4].argmax()), 4)
    value = attribution.contributions(root).value
    capped = attribution.paths(root, depth=3, branches=4)
    for paths in capped:
        assert len(paths) <= 4
        assert [p.attribution for p in paths] == sorted((p.attribution for p in paths), reverse=True)
        for path in paths:
            weights = [value, *(s.attribution for s in path.steps)]
            assert all(a >= b > 0 for a, b in pairwise(weights))
            assert all(s.token != 0 or s.kind != "head" for s in path.steps)
    made = graph(capped, value)
    for node, error in made.errors.items():
        children = sum(v for (_, parent), v in made.edges.items() if parent == node)
        assert made.nodes[node] == pytest.approx(children + error)


@torch.no_grad()
def test_the_input_invariant_factor_times_the_activation_is_the_attribution(attribution: Attribution) -> None:
    norm, token = attribution.view.layers[2].norm_mlp, 4
    reader = attribution.feature_reader(2, 5, token)
    parts = attribution.contributions(reader).features[1]
    invariant = input_invariant(attribution.view, attribution.transcoders, 2, 5)[1]
    x = attribution.trace.middle[2, token]
    deviation = x - x.mean() if norm.centred else x
    scale = torch.rsqrt(deviation.square().mean() + norm.eps)
    expected = attribution.features[1][token] * invariant * scale
    torch.testing.assert_close(parts, expected, rtol=1e-5, atol=1e-7)


@torch.no_grad()
def test_reads_without_input_follow_the_weights(attribution: Attribution) -> None:
    view, dictionaries = attribution.view, attribution.transcoders
    direct = pulled_back(view, dictionaries, 2, 5)
    torch.testing.assert_close(direct, view.layers[2].norm_mlp.fold(dictionaries[2].encoder[5]))
    torch.testing.assert_close(deembed(view, direct), view.embedding @ direct)
    assert logit_effect(view, dictionaries[1], 3).shape == (50,)
    # a path's direction is that of the readers on a prompt, up to activations, patterns and norm scales
    steps = [("feature", 1, 7), ("head", 0, 2)]
    below = pulled_back(view, dictionaries, 2, 5, steps)
    reader = attribution.feature_reader(2, 5, 4)
    scale = float(dictionaries[1].decoder[7] @ reader.direction)
    reader = attribution.head_reader(attribution.feature_reader(1, 7, 4, scale), 0, 2, 3)
    cosine = torch.nn.functional.cosine_similarity(reader.direction, below, dim=0)
    assert float(cosine.abs()) == pytest.approx(1.0, abs=1e-6)


def test_a_path_that_does_not_lead_down_is_refused(attribution: Attribution) -> None:
    view, dictionaries = attribution.view, attribution.transcoders
    for steps in ([("feature", 2, 0)], [("head", 0, 0), ("head", 0, 0)], [("head", 1, 0), ("feature", 1, 0)]):
        with pytest.raises(InputError, match="does not lie below"):
            pulled_back(view, dictionaries, 2, 5, steps)
    with pytest.raises(InputError, match="heads"):
        pulled_back(view, dictionaries, 2, 5, [("head", 0, 9)])
    with pytest.raises(InputError, match="no transcoder"):
        pulled_back(view, {2: dictionaries[2]}, 2, 5, [("feature", 1, 0)])


@torch.no_grad()
def test_error_nodes_hold_what_transcoders_miss(attribution: Attribution) -> None:
    root = attribution.feature_reader(2, int(attribution.features[2][4].argmax()), 4)
    parts = attribution.contributions(root)
    made = graph(attribution.paths(root, depth=2, branches=3, raw=True), parts.value)
    top = ("root", -1, -1, -1)
    for layer, value in parts.errors.items():
        assert made.edges[("error", layer, 0, 4), top] == pytest.approx(value)
    children = sum(v for (_, parent), v in made.edges.items() if parent == top)
    assert children + made.errors[top] == pytest.approx(parts.value)


@torch.no_grad()
def test_harvest_stops_early_and_replacement_is_undone() -> None:
    torch.manual_seed(0)
    model = llama().eval()
    view, ids = DecoderView(model), torch.randint(0, 50, (2, 9))
    before = model(input_ids=ids).logits
    inputs, outputs = view.harvest(ids, [1])[1]
    torch.testing.assert_close(model.model.layers[1].mlp(inputs), outputs)
    residual = view.harvest(ids, [1], residual=True)[1][0]
    torch.testing.assert_close(model.model.layers[1].post_attention_layernorm(residual), inputs)
    with view.replaced({1: lambda x, y: y}):
        torch.testing.assert_close(model(input_ids=ids).logits, before)
    with view.replaced({1: lambda x, y: torch.zeros_like(y)}):
        assert not torch.allclose(model(input_ids=ids).logits, before)
    torch.testing.assert_close(model(input_ids=ids).logits, before)


def test_wrong_places_are_named(attribution: Attribution) -> None:
    with pytest.raises(InputError, match="outside the prompt"):
        attribution.feature_reader(1, 0, 99)
    with pytest.raises(InputError, match="outside the dictionary"):
        attribution.feature_reader(1, 999, 0)
    with pytest.raises(InputError, match="outside the model"):
        attribution.view.layer(7)
    with pytest.raises(InputError, match="no MLPs are found"):
        DecoderView(nn.Linear(2, 2))
