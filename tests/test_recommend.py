"""The settings that are nearest to the best in all distances are chosen, and written where they are found."""

import json

import pytest

from sd_tf.checkpoints.sources import resolve, weights_sha256
from sd_tf.errors import InputError
from sd_tf.gan.settings import read_settings as read_settings_of_gan
from sd_tf.generation.settings import FILE, Settings, read_settings
from sd_tf.recommend import excess_over_best, main


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model.save(folder)
    return folder


def report(folder, settings, distances, /, **changes):
    protocol = {"samples": 100, "sampler": settings.get("sampler"), "steps": settings.get("steps")}
    scores = {
        name: {
            **{"value": value, "better": "lower", "protocol": protocol, "low": None, "high": None},
            **{"real": 0.1, "reservation": "", "details": {}},
        }
        for name, value in distances.items()
    }
    found = {"model": "mine", "label": "mine", "command": "python -m sd_tf.evaluate", "skipped": {}}
    return found | {"weights": weights_sha256(folder), "settings": settings, "scores": scores} | changes


DDIM = {"sampler": "ddim", "steps": 20, "guidance_scale": 3.0, "guidance_interval": [0.0, 1.0], "seed": 0}
UNIPC = DDIM | {"sampler": "unipc", "steps": 8, "karras": True, "guidance_interval": [0.35, 1.0]}


def write(file, reports):
    file.write_text(json.dumps({"reports": reports}))
    return str(file)


def test_the_best_in_both_distances_is_written(folder, tmp_path, capsys):
    file = write(
        tmp_path / "report.json",
        [
            report(folder, DDIM, {"frechet_distance": 2.0, "tinted_frechet_distance": 4.0, "recall": 0.1}),
            report(folder, UNIPC, {"frechet_distance": 2.2, "tinted_frechet_distance": 2.1, "recall": 0.9}),
            report(
                folder,
                DDIM | {"steps": 9},
                {"frechet_distance": 3, "tinted_frechet_distance": 2, "recall": 0},
            ),
        ],
    )
    main(["--model", str(folder), "--report", file])
    chosen = Settings(
        steps=8, guidance_scale=3.0, guidance_interval=(0.35, 1.0), sampler="unipc", karras=True
    )
    assert read_settings(folder, Settings()) == chosen
    values = json.loads((folder / FILE).read_text())
    assert values["found_by"] == "python -m sd_tf.evaluate"
    assert values["distances"] == {"frechet_distance": 2.2, "tinted_frechet_distance": 2.1}
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(" 1.10 times the best: 2.2, 2.1") and printed[2].startswith(" 2.00 times")


def test_of_a_gan_the_truncation_is_written(folder, tmp_path):
    reports = [
        report(folder, {"truncation": truncation, "seed": 0}, {"frechet_distance": distance})
        for truncation, distance in ((0.5, 3.0), (0.8, 2.0), (1.0, 2.5))
    ]
    file, output = write(tmp_path / "report.json", reports), tmp_path / "gan"
    output.mkdir()
    main(["--model", str(folder), "--report", file, "--output", str(output)])
    assert read_settings_of_gan(output).truncation == 0.8


def test_the_excess_is_that_of_the_worst_distance():
    found = excess_over_best([{"a": 1.0, "b": 3.0}, {"a": 2.0, "b": 2.0}, {"a": 1.2, "b": 2.2}])
    assert found == pytest.approx([1.5, 2.0, 1.2])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weights": "0" * 64}, "the report of mine is of other weights than those of --model"),
        ({"settings": None}, "names no settings: evaluate it again"),
        ({"settings": UNIPC | {"sampler": "unipcc"}}, "--report: unknown sampler 'unipcc'"),
        ({"settings": {"exec": 1}}, "--report: unknown setting 'exec'"),
    ],
    ids=str,
)
def test_reports_that_do_not_fit_change_nothing(folder, tmp_path, changes, said):
    before = (folder / FILE).read_bytes()
    best = report(folder, UNIPC, {"frechet_distance": 1.0}, **changes)
    file = write(tmp_path / "report.json", [best, report(folder, DDIM, {"frechet_distance": 2.0})])
    with pytest.raises(InputError, match=said):
        main(["--model", str(folder), "--report", file])
    assert (folder / FILE).read_bytes() == before


def test_one_setting_or_no_distance_is_no_choice(folder, tmp_path):
    one = report(folder, DDIM, {"frechet_distance": 1.0})
    with pytest.raises(InputError, match="--report has one setting: let sd_tf.evaluate try several"):
        main(["--model", str(folder), "--report", write(tmp_path / "a.json", [one])])
    without = [report(folder, each, {"copies": 0.0}) for each in (DDIM, UNIPC)]
    with pytest.raises(InputError, match=f"has no Fréchet distance to choose by: write {FILE}"):
        main(["--model", str(folder), "--report", write(tmp_path / "b.json", without)])
    other = report(folder, UNIPC, {"inception_frechet_distance": 1.0})
    with pytest.raises(InputError, match="--report has reports by different judges"):
        main(["--model", str(folder), "--report", write(tmp_path / "c.json", [one, other])])


@pytest.mark.parametrize("name", ["fashion-mnist", "team/model"])
def test_a_model_that_is_not_the_users_own_stays_as_it_is(name, folder, tmp_path, monkeypatch, capsys):
    bundled = resolve("fashion-mnist")
    shared = bundled if name == "fashion-mnist" else folder
    monkeypatch.setattr("sd_tf.recommend.resolve", lambda _: shared)
    before = (shared / FILE).read_bytes()
    reports = [
        report(shared, DDIM, {"frechet_distance": 2.0}),
        report(shared, UNIPC, {"frechet_distance": 1.0}),
    ]
    flags = ["--model", name, "--report", write(tmp_path / "report.json", reports)]
    with pytest.raises(InputError, match=f"--model {name} is not your own folder.*: copy .*--output"):
        main(flags)
    with pytest.raises(InputError, match="--output .*nowhere is no folder: make it first"):
        main([*flags, "--output", str(tmp_path / "nowhere")])
    main([*flags, "--output", str(tmp_path)])
    assert read_settings(tmp_path, Settings()).sampler == "unipc"
    assert f"written: {tmp_path / FILE}" in capsys.readouterr().out
    assert (shared / FILE).read_bytes() == before
