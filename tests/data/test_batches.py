"""Order, captions, augmentation, faults and sharing over ranks, by value."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import grain
import numpy as np
import pytest

from clip_core.data.augmentation import Augmentation
from clip_core.data.loader import Batch
from clip_core.data.order import shuffled
from clip_core.data.shapes import TrainingSet
from clip_core.errors import ClipError
from clip_core.preprocess import pixels, preprocess
from tests.data.numbered import SMALL, TOKENIZER, Numbered, loader, numbers, open_source, picture, texts, write_picture


def fingerprint(batch: Batch) -> str:
    return hashlib.sha256(
        b"".join(array.tobytes() for array in (batch.pixels, batch.tokens, batch.examples))
    ).hexdigest()


def taken(batches, count: int) -> list[str]:
    return [fingerprint(next(batches)) for _ in range(count)]


# Order


def test_the_order_of_the_shipped_recipe_is_as_it_was():
    """A change here changes the embedded model: seed 0 and a million examples, in the first and the second epoch."""
    order = shuffled(1_000_000, 0)
    assert [order[place] for place in range(6)] == [767142, 716123, 534173, 618329, 898951, 830494]
    assert [order[1_000_000 + place] for place in range(6)] == [882585, 851157, 161182, 970750, 545354, 629522]


def test_batches_are_those_of_a_plain_grain_pipeline():
    source = TrainingSet(3, 20)

    def collate(examples):
        tokens = TOKENIZER.tokenize([example.caption for example in examples], 48, truncate=True)
        return pixels([example.picture for example in examples], 16), tokens

    plain = grain.MapDataset.source(source).seed(7).shuffle().batch(8, drop_remainder=True, batch_fn=collate).repeat()
    batches = loader(source, 8, seed=7)
    for step in range(5):  # two batches an epoch
        batch, (expected_pixels, expected_tokens) = next(batches), plain[step]
        assert np.array_equal(batch.pixels, expected_pixels)
        assert np.array_equal(batch.tokens, expected_tokens)


def test_a_batch_says_which_examples_it_holds():
    batch = next(loader(Numbered(20), 6))
    assert batch.examples.tolist() == numbers(batch) == [shuffled(20, 1)[place] for place in range(6)]
    assert texts(batch) == [f"{number}-0" for number in numbers(batch)]


def test_examples_of_a_last_part_batch_come_up_in_other_epochs():
    batches = loader(Numbered(11), 4)
    assert batches.steps_per_epoch == 2
    epochs = [[number for _ in range(2) for number in numbers(next(batches))] for _ in range(6)]
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert set().union(*epochs) == set(range(11))


def test_a_single_example_is_an_epoch():
    batches = loader(Numbered(1), 1)
    assert [numbers(next(batches)) for _ in range(3)] == [[0], [0], [0]]


def test_no_examples_are_refused():
    with pytest.raises(ClipError, match="has 0 examples, fewer than one batch of 1"):
        loader(Numbered(0), 1)


# Captions


def test_each_epoch_chooses_captions_anew_and_no_picture_meets_itself():
    batches = loader(Numbered(12, captions=5), 12)
    epochs = []
    for _ in range(20):
        batch = next(batches)
        assert sorted(numbers(batch)) == list(range(12))
        chosen = dict(text.split("-") for text in texts(batch))
        assert sorted(map(int, chosen)) == list(range(12))  # with their own pictures
        epochs.append([int(chosen[str(number)]) for number in range(12)])
    assert len({tuple(epoch) for epoch in epochs}) == 20
    counts = np.bincount(np.array(epochs).ravel(), minlength=5)
    assert counts.sum() == 240
    assert counts.min() > 30  # 48 expected of each of the five


def test_the_choice_of_captions_follows_the_seed_alone():
    def choices(seed: int, workers: int = 0) -> list[list[str]]:
        batches = loader(Numbered(12, captions=5), 4, seed=seed, workers=workers)
        found = [texts(next(batches)) for _ in range(5)]
        batches.close()
        return found

    assert choices(1) == choices(1) == choices(1, workers=2)
    assert choices(1) != choices(2)


def test_captions_may_be_equal_within_a_batch():
    class Alike(Numbered):
        def __getitem__(self, index: int):
            return type(found := super().__getitem__(index))(found.picture, ("a plate",))

    batch = next(loader(Alike(6), 6))
    assert texts(batch) == ["aplate"] * 6
    assert sorted(numbers(batch)) == list(range(6))


# Augmentation

RANDOM = Augmentation(crop="resized", scale=(0.2, 1.0), flip=0.5, brightness=0.4, hue=0.1)


class Gradients:
    """Pictures in which every crop differs."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int):
        return type("Example", (), {"picture": gradient(index), "caption": "a gradient"})()


def gradient(index: int):
    from PIL import Image

    y, x = np.mgrid[:40, :60]
    return Image.fromarray(np.stack([4 * x, 6 * y, x + y + 20 * index], -1).astype(np.uint8))


def test_augmentation_differs_by_example_and_epoch_and_repeats_with_the_seed():
    def epochs(seed: int) -> list[dict[int, bytes]]:
        batches = loader(Gradients(), 6, seed=seed, augmentation=RANDOM)
        found = [next(batches) for _ in range(2)]
        return [dict(zip(batch.examples.tolist(), map(np.ndarray.tobytes, batch.pixels))) for batch in found]

    first, second = epochs(1)
    assert [first, second] == epochs(1)
    assert all(first[number] != second[number] for number in range(6))
    assert all(first[number] != epochs(2)[0][number] for number in range(6))


def test_without_augmentation_pixels_are_the_official_ones():
    batch = next(loader(Gradients(), 6))
    for number, found in zip(batch.examples, batch.pixels):
        assert np.array_equal(found, preprocess(gradient(number), 16))


# Faults

BROKEN = (3, 8, 20)


def test_a_fault_is_skipped_and_the_next_example_takes_its_place(tmp_path):
    report = tmp_path / "faults.jsonl"
    order = [shuffled(40, 1)[place] for place in range(80)]
    kept = [number for number in order if number not in BROKEN]
    batches = loader(Numbered(40, broken=BROKEN), 8, fault_share=0.1, fault_report=report)
    found = [number for _ in range(9) for number in numbers(next(batches))]
    assert found == kept[:72]
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    met = [(row, number) for row, number in enumerate(order) if number in BROKEN and number in order]
    assert [(line["row"], line["example"]) for line in lines] == met[: len(lines)]
    assert all(line["fault"] == f"picture-{line['example']}.png is damaged." for line in lines)
    assert batches.state() == {"position": 9, "skipped": len(lines)}
    assert len(lines) >= 5  # three in each epoch, of which the second is not through


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_after_faults_is_exact_at_every_step(workers, tmp_path):
    report = tmp_path / "faults.jsonl"

    def started():
        return loader(Numbered(40, captions=3, broken=BROKEN), 8, workers=workers, fault_share=0.1, fault_report=report)

    whole = started()
    states, expected = [], []
    for _ in range(12):
        states.append(json.loads(json.dumps(whole.state())))
        expected.append(fingerprint(next(whole)))
    whole.close()
    listed = report.read_text()
    for step in range(12) if not workers else (5,):
        resumed = started()
        resumed.restore(states[step])
        assert taken(resumed, 12 - step) == expected[step:]
        assert report.read_text() == listed
        resumed.close()


def test_a_run_that_starts_anew_forgets_the_faults_of_an_older_one(tmp_path):
    (tmp_path / "faults.jsonl").write_text('{"row": 1}\n{"row": 2')
    next(loader(Numbered(10), 5, fault_report=tmp_path / "faults.jsonl"))
    assert (tmp_path / "faults.jsonl").read_text() == ""


def test_too_many_faults_end_the_run_with_their_number_and_the_last_one(tmp_path):
    batches = loader(Numbered(50, broken=range(0, 50, 2)), 4, fault_share=0.1, fault_report=tmp_path / "faults.jsonl")
    with pytest.raises(ClipError) as caught:
        taken(batches, 50)
    assert "5 examples could not be used, and data.fault_share = 0.1 allows at most 4 in 48; all are" in str(
        caught.value
    )
    lines = (tmp_path / "faults.jsonl").read_text().splitlines()
    assert len(lines) == 5
    assert json.loads(lines[-1])["fault"] in str(caught.value)


def test_by_default_one_in_a_hundred_may_be_faulty():
    batches = loader(Numbered(100, broken=[5]), 50, seed=1)
    assert 5 not in next(batches).examples
    taken(loader(Numbered(100, broken=[5]), 10), 35)  # once in each epoch
    with pytest.raises(ClipError, match=r"2 examples could not be used.* allows at most 1 in 100;"):
        taken(loader(Numbered(100, broken=[5, 6]), 10), 10)


def test_when_nothing_can_be_used_the_run_ends():
    with pytest.raises(ClipError, match=r"5 examples could not be used.* allows at most 4 in 8;"):
        next(loader(Numbered(10, broken=range(10)), 4, fault_share=0.6))


def test_a_caption_that_is_no_text_is_a_fault_of_its_example_alone():
    class Surrogate(Numbered):
        def __getitem__(self, index: int):
            example = super().__getitem__(index)
            return example if index != 2 else type(example)(example.picture, ("\ud800",))

    batches = loader(Surrogate(10), 5, fault_share=0.1)
    assert sorted(numbers(next(batches)) + numbers(next(batches))[:4]) == [0, 1, 3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_vanishes_during_an_epoch_is_a_fault_with_its_name(workers, tmp_path):
    for number in range(40):
        write_picture(tmp_path / f"{number:02}.png", number)
    (tmp_path / "t.tsv").write_text("filepath\ttitle\n" + "".join(f"{n:02}.png\t{n}\n" for n in range(40)))
    source = open_source("table", {"file": str(tmp_path / "t.tsv")}, 0)
    report = tmp_path / "faults.jsonl"
    batches = loader(source, 4, workers=workers, fault_share=0.05, fault_report=report)
    next(batches)
    order = [shuffled(40, 1)[place] for place in range(40)]
    gone = order[37]  # later than any worker has read ahead
    (tmp_path / f"{gone:02}.png").unlink()
    found = [number for _ in range(9) for number in numbers(next(batches))]
    batches.close()
    assert found[:35] == order[4:37] + order[38:40]
    line = json.loads(report.read_text().splitlines()[0])
    assert (line["row"], line["example"]) == (37, gone)
    assert line["fault"].startswith(f"{tmp_path}/{gone:02}.png cannot be read: No such file or directory")


# Workers


@pytest.mark.parametrize("victims", [1, 2])
def test_a_worker_that_is_killed_ends_the_run_with_a_sentence(victims):
    before = set(multiprocessing.active_children())
    batches = loader(Numbered(40), 4, workers=2)
    next(batches)
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    for worker in list(workers)[:victims]:
        worker.kill()
    with pytest.raises(ClipError, match=r"process that makes batches has died.*exit code -9.*data\.workers"):
        taken(batches, 20)


ORPHANS = """
import multiprocessing, os, signal
from tests.data.numbered import Numbered, loader

if __name__ == "__main__":
    batches = loader(Numbered(40), 4, workers=2)
    for _ in range(2):  # one of each worker, so both have begun
        next(batches)
    workers = [worker.pid for worker in multiprocessing.active_children()]
    for worker in workers:
        os.kill(worker, signal.SIGINT)
        os.kill(worker, signal.SIGTERM)
    for _ in range(20):
        next(batches)
    print(*workers, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_outlive_signals_and_end_with_the_training_process(tmp_path):
    (tmp_path / "run.py").write_text(ORPHANS)
    root = Path(__file__).parents[2]
    env = os.environ | {"PYTHONPATH": str(root)}
    process = subprocess.Popen([sys.executable, "run.py"], env=env, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    with process:
        workers = [int(word) for word in process.stdout.readline().split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline, "the workers are still there"
        time.sleep(0.1)


# Ranks


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_share_each_batch_without_overlap_or_loss(ranks):
    whole = loader(Numbered(24, captions=3), 12)
    shares = [loader(Numbered(24, captions=3), 12, rank=rank, ranks=ranks) for rank in range(ranks)]
    for _ in range(5):
        expected = next(whole)
        parts = [next(share) for share in shares]
        assert {len(part.pixels) for part in parts} == {12 // ranks}
        for field in ("pixels", "tokens", "examples"):
            assert np.array_equal(np.concatenate([getattr(part, field) for part in parts]), getattr(expected, field))
    assert shares[0].steps_per_epoch == 2


def test_a_fault_shifts_its_own_rank_alone():
    sources = [Numbered(24, broken=[next(loader(Numbered(24), 8)).examples[0]]), Numbered(24)]
    first, plain = (loader(source, 8, rank=0, ranks=2, fault_share=0.2) for source in sources)
    second = loader(sources[0], 8, rank=1, ranks=2, fault_share=0.2)
    rows = [number for _ in range(3) for number in numbers(next(plain))]
    assert numbers(next(first)) == rows[1:5]
    assert numbers(next(second)) == [shuffled(24, 1)[place] for place in range(4, 8)]


def test_a_batch_that_cannot_be_shared_equally_is_refused():
    with pytest.raises(ClipError, match="batch of 10 cannot be cut into 3 equal parts"):
        loader(Numbered(24), 10, rank=0, ranks=3)


PROGRAM = """
import json, sys
from tests.data.numbered import loader, numbers, open_source

source = open_source("paired", {"folder": sys.argv[1]}, 0)
print(json.dumps({ranks: [
    [numbers(next(batches)) for _ in range(2)]
    for batches in (loader(source, 6, rank=rank, ranks=ranks) for rank in range(ranks))
] for ranks in (1, 2, 3)}))
"""


def test_shares_are_the_same_whatever_the_hash_seed(tmp_path):
    for number in range(12):
        path = tmp_path / f"{'abc'[number % 3]}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        picture(number).save(path)
        path.with_suffix(".txt").write_text(str(number))
    root = Path(__file__).parents[2]
    found = []
    for seed in ("0", "1", "4242"):
        env = os.environ | {"PYTHONPATH": str(root), "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
        found.append(json.loads(subprocess.run(command, env=env, check=True, capture_output=True, cwd=root).stdout))
    assert found[0] == found[1] == found[2]
    for ranks, shares in found[0].items():
        everything = [number for share in shares for batch in share for number in batch]
        assert sorted(everything) == list(range(12)), f"{ranks} ranks"


def test_a_rank_needs_no_more_than_its_part_of_a_batch():
    assert next(loader(Numbered(24), 12, rank=1, ranks=3)).pixels.shape == (4, 3, SMALL.image.resolution, 16)
