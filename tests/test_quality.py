"""The benchmark of pictures for the same minutes: what it compares is what it says."""

import json

import numpy as np
import pytest

from benchmarks import quality
from sd_tf.evaluation.scores import CLASS_PROMPTS, PAIRS, TINTED_PROMPTS


def searched(*of_starts):
    """What a search finds where pictures have these distances, by start and scale, in their orders."""
    distances = {
        (scale, start): distance
        for start, distances in zip(quality.STARTS, of_starts, strict=True)
        for scale, distance in zip(quality.SCALES, distances, strict=False)
    }
    return quality.search(lambda guidance: {"scores": {"frechet_distance": {"value": distances[guidance]}}})


def test_the_search_goes_on_until_a_scale_is_worse_and_then_from_the_best_with_a_later_start():
    early, late = quality.STARTS
    reports, best = searched([9.0, 8.0, 7.0, 7.5], [0.0, 0.0, 6.5, 6.0, 6.1])
    assert best == (quality.SCALES[3], late)
    assert list(reports) == [(scale, early) for scale in quality.SCALES[:4]] + [
        (scale, late) for scale in quality.SCALES[2:5]
    ]


def test_guidance_in_all_steps_is_kept_where_a_later_start_is_worse():
    _, best = searched([9.0, 8.0, 8.5], [9.0, 8.1, 8.2])
    assert best == (quality.SCALES[1], quality.STARTS[0])


def test_the_search_ends_with_the_last_scale_where_distances_only_fall():
    falling = range(len(quality.SCALES), 0, -1)
    reports, best = searched(falling, [9.0] * len(quality.SCALES))
    assert best == (quality.SCALES[-1], quality.STARTS[0]) and len(reports) == len(quality.SCALES) + 1


def test_both_are_trained_once_and_ours_for_less_by_what_its_frozen_networks_took(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(quality, "_run", lambda *words: started.append(words))
    took = quality.train(tmp_path, 28.0, ["--seed", "1"])
    theirs, ours = started
    assert theirs[:3] == (quality.PEER, "--minutes", 28.0)
    assert ours[0] == "sd_tf.train" and ours[ours.index("--max-minutes") + 1] == 28.0 - 7 - 1
    assert ours[ours.index("--seed") + 1] == "1"
    assert quality.train(tmp_path, 28.0, ["--seed", "1"]) == took and len(started) == 2


@pytest.mark.parametrize("minutes, flags", [(20.0, []), (28.0, ["--seed", "1"])])
def test_weights_of_another_training_are_not_judged_as_this_one(tmp_path, monkeypatch, minutes, flags):
    monkeypatch.setattr(quality, "_run", lambda *words: None)
    quality.train(tmp_path, 28.0, [])
    with pytest.raises(ValueError, match="name another --output"):
        quality.train(tmp_path, minutes, flags)


def test_a_stopped_training_is_not_taken_for_a_short_one(tmp_path):
    (tmp_path / quality.OURS).mkdir()
    with pytest.raises(ValueError, match="of a run that was stopped"):
        quality.train(tmp_path, 28.0, [])


def test_the_table_has_ratios_to_the_first():
    reports = [
        {"model": name, "scores": {"distance": {"value": value, "real": 0.5}}}
        for name, value in (("theirs", 8.0), ("ours", 2.0))
    ]
    last = quality.table(json.loads(json.dumps(reports))).splitlines()[-1]
    assert last.split() == ["distance", "8", "2", "(0.250)", "0.5"]


def test_the_peers_pictures_are_of_the_prompts_that_they_are_judged_by():
    pytest.importorskip("diffusers")
    from benchmarks.peers import trained_diffusers as peer

    grey, tinted = peer.prompts(2 * len(CLASS_PROMPTS), 3 * len(TINTED_PROMPTS))
    np.testing.assert_array_equal(grey, np.repeat(np.arange(10), 2) * peer.COLOURS)
    labels, colours = np.divmod(tinted, peer.COLOURS)
    np.testing.assert_array_equal(np.stack([labels, colours - 1], axis=1), np.repeat(PAIRS, 3, axis=0))
