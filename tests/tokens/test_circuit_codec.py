"""Samples of a circuit to bytes and back."""

import math

import pytest
import torch
from tests.tokens.test_prefix_marginals import model, random_parent

from encyclo.errors import InputError
from encyclo.tokens.circuit_codec import compare_schedules, decode_samples, encode_samples, interval_streams
from encyclo.tokens.prefix_marginals import IntegerCircuit

PART = model(random_parent(60, 1), 4, 20)
CIRCUIT = IntegerCircuit(PART)
DATA = PART.sample(torch.Generator().manual_seed(0), torch.zeros(50, 60, dtype=torch.uint8))


@pytest.mark.parametrize("streams", ["one", "each"])
@pytest.mark.parametrize("group", [1, 7, 50, 1000])
def test_round_trip(streams, group):
    payload = encode_samples(CIRCUIT, DATA, streams=streams, group=group)
    assert torch.equal(decode_samples(CIRCUIT, payload, 50, streams=streams, group=group), DATA)


def test_lengths_are_theory():
    bits = -CIRCUIT.dequantised().log_likelihood(DATA).sum().item() / math.log(2)
    assert 8 * len(encode_samples(CIRCUIT, DATA)) <= 1.001 * bits + 64
    streams = interval_streams(CIRCUIT.swept(DATA))
    assert 8 * sum(map(len, streams)) <= bits + 50 * 40


def test_values_that_never_occur_still_code():
    odd = torch.full((3, 60), 19, dtype=torch.uint8)
    assert torch.equal(decode_samples(CIRCUIT, encode_samples(CIRCUIT, odd), 3), odd)


@pytest.mark.parametrize("streams", ["one", "each"])
def test_nothing_and_damage(streams):
    assert decode_samples(CIRCUIT, encode_samples(CIRCUIT, DATA[:0], streams=streams), 0, streams=streams).shape == (
        0,
        60,
    )
    payload = encode_samples(CIRCUIT, DATA, streams=streams)
    for bad, n in ((payload[:-8], 50), (payload + bytes(8), 50), (payload, 49), (payload, 51), (b"", 50)):
        with pytest.raises(InputError):
            decode_samples(CIRCUIT, bad, n, streams=streams)


@pytest.mark.parametrize("seed", range(12))
def test_one_stream_of_another_length_is_refused(seed):
    data = PART.sample(torch.Generator().manual_seed(seed), torch.zeros(1 + 2 * seed, 60, dtype=torch.uint8))
    n, payload = len(data), encode_samples(CIRCUIT, data)
    assert torch.equal(decode_samples(CIRCUIT, payload, n), data)
    damaged = [(payload[:-size], n) for size in (1, 4, 8)] + [(payload + bytes(size), n) for size in (1, 4, 8)]
    for bad, count in (*damaged, (payload, n - 1), (payload, n + 1)):
        with pytest.raises(InputError):
            decode_samples(CIRCUIT, bad, count)


def test_schedules_side_by_side():
    found = compare_schedules(CIRCUIT, DATA[:4])
    assert found["same_bytes_by_all_schedules"] == 1.0
    assert found["units_per_circuit"] <= found["units_bound"]
    assert found["naive_over_structured_units"] > 5
