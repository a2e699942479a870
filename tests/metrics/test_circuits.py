"""Circuits on a small random decoder: sums, ablations, behaviours, drawings, pages."""

import json
import math
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from encyclo.metrics.circuit_page import find_circuit, node_name
from encyclo.metrics.circuits import ablation_test, behaviour_picture, exactness, features_and_neurons
from encyclo.metrics.feature_page import feature_page, overview_page, survey_all, survey_feature
from encyclo.nn.attribution import Attribution
from encyclo.nn.decoder_view import DecoderView
from encyclo.nn.sparse_dictionary import SparseDictionary


@pytest.fixture(scope="module")
def view() -> DecoderView:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    return DecoderView(LlamaForCausalLM(config).eval())


@pytest.fixture(scope="module")
def dictionaries() -> dict[int, SparseDictionary]:
    torch.manual_seed(1)
    return {layer: SparseDictionary.Config(expansion=4).build(dim=16) for layer in range(3)}


def prompts(count: int, length: int = 16) -> list[torch.Tensor]:
    return list(torch.randint(0, 30, (count, length), generator=torch.Generator().manual_seed(2)))


def test_everything_adds_up(view: DecoderView, dictionaries: dict[int, SparseDictionary]) -> None:
    told = exactness(view, dictionaries, prompts(2))
    assert set(told) == {"identity_error", "path_error", "logit_error", "invariant_error"}
    assert all(value < 1e-4 for value in told.values()), told


def test_an_ablated_cause_takes_away_what_it_gave(view: DecoderView, dictionaries: dict[int, SparseDictionary]) -> None:
    told = ablation_test(view, dictionaries, prompts(8, 24), seed=0, roots=4, named=2)
    assert 0 < told["roots_tested"] <= 4
    assert told["named_drop"] > told["other_drop"]
    assert told["drop_ratio"] == pytest.approx(told["named_drop"] / max(told["other_drop"], 1.0))
    none = ablation_test(view, dictionaries, [], seed=0)
    assert none["roots_tested"] == 0 and math.isnan(none["drop_ratio"])


def test_keeping_all_features_is_the_transcoder_and_all_neurons_the_model(
    view: DecoderView, dictionaries: dict[int, SparseDictionary]
) -> None:
    lines = [ids[: 5 + i] for i, ids in enumerate(prompts(4))]  # of different lengths
    answers = [(3, 4), (5, 6), (3, 4), (5, 6)]
    told = features_and_neurons(view, dictionaries[1], 1, lines, answers, kept=(0, 24, 64))
    single = torch.stack([view.model(input_ids=ids[None]).logits[0, -1] for ids in lines])
    whole = torch.stack([row[a] - row[b] for row, (a, b) in zip(single, answers, strict=True)]).mean()
    assert told["behaviour_whole"] == pytest.approx(float(whole), rel=1e-4)
    assert told["behaviour_neurons_24"] == pytest.approx(float(whole), rel=1e-4)
    assert told["behaviour_neurons_mean_24"] == pytest.approx(float(whole), rel=1e-4)
    assert told["behaviour_features_64"] != pytest.approx(told["behaviour_features_0"], rel=1e-3)
    assert b"<svg" in behaviour_picture(told, "logits").content


def test_a_circuit_reads_as_rows_json_drawing_and_page(
    view: DecoderView, dictionaries: dict[int, SparseDictionary]
) -> None:
    ids = prompts(1)[0]
    attribution = Attribution(view, view.trace(ids, 3), dictionaries)
    feature = int(attribution.features[2][9].argmax())
    reader = attribution.feature_reader(2, feature, 9)
    found = find_circuit(attribution, reader, f"feature 2/{feature}", lambda i: f"<w{i}>", depth=2, branches=4)
    report = found.report()
    parts = sum(v for name, v in report.items() if name != "value")
    assert parts == pytest.approx(report["value"], rel=1e-4)
    assert len(found.rows()) == sum(len(paths) for paths in found.rounds)
    told: dict[str, Any] = json.loads(found.as_json())
    names = {node["id"] for node in told["nodes"]}
    assert len(names) == len(told["nodes"]), "names are unique"
    assert all(edge["source"] in names and edge["target"] in names for edge in told["edges"])
    assert any(node["kind"] == "error" for node in told["nodes"])
    for node in told["nodes"]:  # every node with causes is the sum of them and what is left unexplained
        causes = [edge["attribution"] for edge in told["edges"] if edge["target"] == node["id"]]
        if causes:
            assert sum(causes) + node["unexplained"] == pytest.approx(node["attribution"], rel=1e-4, abs=1e-6)
    text = found.page()
    assert "<svg" in text and "&lt;w" in text and "<w" not in text.replace("<wbr", "")
    assert "w1" not in json.dumps([row["path"] for row in found.hidden().rows()])
    assert node_name(("head", 1, 0, 2), found.words).startswith("head L1.0 @2")
    dollars = find_circuit(attribution, reader, "logit:$x-$", lambda i: "$a_$$", depth=1)
    assert dollars.drawing().content  # words are no formulas


def test_a_feature_page_shows_contexts_and_hides_them_when_blind(
    view: DecoderView, dictionaries: dict[int, SparseDictionary]
) -> None:
    ids = torch.stack(prompts(6))
    seen = view.harvest(ids, [1, 2])
    activities = [{layer: dictionaries[layer].encode(seen[layer][0]) for layer in (1, 2)}]
    survey = survey_all(iter(activities), 2)
    feature = int(survey.best.argmax())
    row, token = divmod(int(survey.where[feature]), ids.shape[1])
    assert float(activities[0][2][row, token, feature]) == pytest.approx(float(survey.best[feature]))
    strength, weights = survey_feature(iter(activities), 2, feature)
    torch.testing.assert_close(strength, activities[0][2][..., feature])
    by_hand = (strength[..., None] * activities[0][1]).sum((0, 1)) / strength.sum()
    torch.testing.assert_close(weights[1], by_hand)
    listed, report = overview_page("all", ids, survey, lambda i: f"zebra{i} ")
    assert report["features"][0] == feature or float(survey.frequency[feature]) > 0.1
    assert "«" in listed
    attribution = Attribution(view, view.trace(ids[row, : token + 1], 3), dictionaries)
    circuit = find_circuit(attribution, attribution.feature_reader(2, feature, token), "root", lambda i: f"zebra{i} ")
    rows = [{"drives it": "a", "by": 1.0}]
    pages = [
        feature_page(
            "one", ids, strength, lambda i: f"zebra{i} ", direct=rows, upstream={"by": weights}, circuit=circuit,
            blind=blind,
        )[0]
        for blind in (False, True)
    ]  # fmt: skip
    assert "<details>" not in pages[0] and "zebra" in pages[0]
    before, _, after = pages[1].partition("<details>")
    assert "zebra" not in before and "zebra" in after
    assert "<svg" in before, "the circuit is there without its words"
    silent, told = feature_page("none", ids, torch.zeros(6, 16), str, direct=rows, upstream={})
    assert "never fires" in silent and told["strongest"] == 0
