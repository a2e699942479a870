"""Batches: the order is a pure function of (seed, epoch), positions are exact, shards make up the global batch."""

import json

import pytest
import torch
from datasets import Dataset, IterableDataset

from encyclo.data import Batches
from encyclo.errors import InputError


def _rows(shards):
    for shard in shards:
        for row in range(10):
            yield {"x": 10 * shard + row}


def _stream(shards=5):
    return IterableDataset.from_generator(_rows, gen_kwargs={"shards": list(range(shards))})


def _take(batches, count):
    return [next(batches) for _ in range(count)]


def _plain(batch):
    return batch["x"] if isinstance(batch, dict) else batch.tolist()


SOURCES = {
    "length": lambda: 23,
    "tensor": lambda: torch.arange(23),
    "dataset": lambda: Dataset.from_dict({"x": list(range(23))}),
    "stream": _stream,
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("drop_last", [True, False])
def test_resume_from_any_position_is_exact(source, drop_last):
    def fresh():
        return Batches(SOURCES[source](), 4, seed=3, drop_last=drop_last, block=16)

    expected = [_plain(batch) for batch in _take(fresh(), 30)]
    running = fresh()
    for position in range(29):
        state = json.loads(json.dumps(running.state_dict()))
        resumed = fresh()
        resumed.load_state_dict(state)
        assert [_plain(batch) for batch in _take(resumed, 30 - position)] == expected[position:], position
        next(running)


@pytest.mark.parametrize("source", SOURCES)
def test_every_epoch_gives_each_sample_once_in_another_order(source):
    size = 50 if source == "stream" else 23
    batches = Batches(SOURCES[source](), 4, seed=0, drop_last=False, block=16)
    per_epoch = -(-size // 4)
    epochs = [[x for batch in _take(batches, per_epoch) for x in _plain(batch)] for _ in range(3)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != list(range(size))


@pytest.mark.parametrize("source", SOURCES)
def test_order_depends_on_seed_alone(source):
    def run(seed, shuffle=True):
        return [_plain(b) for b in _take(Batches(SOURCES[source](), 4, seed=seed, shuffle=shuffle, block=16), 12)]

    assert run(1) == run(1)
    assert run(1) != run(2)
    assert run(1, shuffle=False) == run(2, shuffle=False)
    assert run(1, shuffle=False)[0] == [0, 1, 2, 3]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("world", [2, 3])
def test_shards_make_up_the_global_batch(source, world):
    whole = Batches(SOURCES[source](), 4, seed=5, block=16)
    next(whole)
    ranks = [whole.shard(rank, world) for rank in range(world)]
    for expected in _take(whole, 12):
        parts = [_plain(next(rank)) for rank in ranks]
        assert [x for part in parts for x in part] == _plain(expected)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert ranks[0].state_dict() == whole.state_dict()


def test_a_position_moves_between_numbers_of_ranks():
    two = Batches(23, 4, seed=5).shard(1, 2)
    _take(two, 7)
    one = Batches(23, 4, seed=5)
    one.load_state_dict(two.state_dict())
    reference = Batches(23, 4, seed=5)
    assert torch.equal(next(one), _take(reference, 8)[-1])


def test_dicts_and_tuples_of_tensors_stay_together():
    batches = Batches({"x": torch.arange(20), "y": torch.arange(20) * 2}, 5, seed=0)
    batch = next(batches)
    assert torch.equal(batch["x"] * 2, batch["y"])
    assert batches.batches_per_epoch == 4
    x, y = next(Batches((torch.arange(20), torch.arange(20) * 2), 5, seed=0))
    assert torch.equal(x * 2, y)
    assert next(Batches(["a", "b", "c"], 3, seed=0, shuffle=False)) == ["a", "b", "c"]


def test_collate_and_a_failing_sample_leave_the_position():
    assert next(Batches(8, 4, seed=0, collate=len)) == 4

    class Failing(list):
        broken = True

        def __getitem__(self, index):
            if self.broken and index == 5:
                raise OSError("gone")
            return super().__getitem__(index)

    source = Failing(range(8))
    batches = Batches(source, 4, seed=0, shuffle=False)
    next(batches)
    with pytest.raises(OSError, match="gone"):
        next(batches)
    source.broken = False
    assert next(batches) == [4, 5, 6, 7]


def test_bad_input():
    with pytest.raises(InputError, match="cannot fill a batch of 9: lower batch_size to 8"):
        Batches(8, 9, seed=0)
    with pytest.raises(InputError, match="no samples"):
        Batches(torch.empty(0), 1, seed=0)
    with pytest.raises(InputError, match="batch_size=0"):
        Batches(8, 0, seed=0)
    with pytest.raises(InputError, match="differ in length"):
        Batches({"x": torch.arange(3), "y": torch.arange(4)}, 1, seed=0)
    with pytest.raises(InputError, match="rank 2"):
        Batches(8, 4, seed=0).shard(2, 2)
    with pytest.raises(InputError, match="cannot be shared by 5 ranks"):
        Batches(8, 4, seed=0).shard(0, 5)
    with pytest.raises(InputError, match="not in this data set"):
        Batches(8, 4, seed=0).load_state_dict({"epoch": 0, "index": 9, "seed": 0})
    with pytest.raises(InputError, match="another kind of data set"):
        Batches(_stream(), 4, seed=0).load_state_dict({"epoch": 0, "index": 0, "seed": 0})
    with pytest.raises(InputError, match="do not fill a batch of 64"):
        next(Batches(_stream(), 64, seed=0))
    with pytest.raises(InputError, match="no known length"):
        _ = Batches(_stream(), 4, seed=0).batches_per_epoch
