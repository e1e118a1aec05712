"""`evaluate`: every image captioned, and scored against all its reference captions."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from pycocotools.coco import COCO

from tests.helpers.command import refusal
from tests.helpers.tiny_data import write_tiny
from torch_caption import plots
from torch_caption.__main__ import main
from torch_caption.checkpoints import format as checkpoints
from torch_caption.cli import evaluate
from torch_caption.cli import sample as sampling
from torch_caption.cli.evaluate import EvaluateConfig, run
from torch_caption.cli.sample import SampleConfig
from torch_caption.config import TrainConfig
from torch_caption.data import manifest as manifests
from torch_caption.data.caption_files import Photograph
from torch_caption.data.dataset import open_data
from torch_caption.data.vocabulary import Vocabulary
from torch_caption.decoding import DecodingOptions
from torch_caption.inference.captions import caption_images
from torch_caption.inference.load import load
from torch_caption.metrics import java
from torch_caption.metrics import scores as metrics
from torch_caption.training import trainer
from torch_caption.training.trainer import fit

SCORES = [name for name in metrics.METRICS if name != "METEOR"]  # which needs Java

NAMES = [
    f"{colour}_{shape}.png" for colour in ("red", "green", "blue", "grey") for shape in ("circle", "square", "star")
]


def train(data: Path, epochs: int) -> Path:
    config = TrainConfig(
        data=str(data), out=data.parent / "runs", cell_type="lstm", hidden_dim=16, wordvec_dim=8, batch_size=5, lr=0.01,
        dropout=0, feature_dropout=0, epochs=epochs, score_images=0, max_length=6, tensorboard=False,
    )  # fmt: skip
    return fit(config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and two runs: tiny-lstm-1 of 40 epochs, and tiny-lstm-2 of one."""
    folder = tmp_path_factory.mktemp("work")
    write_tiny(folder / "tiny", pictures=True)
    with contextlib.redirect_stdout(io.StringIO()):
        train(folder / "tiny", 40)
        train(folder / "tiny", 1)
    return folder


@pytest.fixture
def config(folder: Path) -> EvaluateConfig:
    return EvaluateConfig(folder / "runs" / "tiny-lstm-1", meteor="no", decoding=DecodingOptions(n_best=1))


def annotations(path: Path, *, leave_out: int = 0) -> dict[str, list[str]]:
    """Write captions in COCO's format, with the images in reverse order and other ids; they are returned by name."""
    captions = {
        name: [
            f"A {name[:-4].replace('_', ' ')}.",
            f"One very {name[:-4].replace('_', ', unspeakably ')}!",
            "a shape here",
        ]
        for name in NAMES[leave_out:]
    }
    images = [{"id": 100 + place, "file_name": name} for place, name in enumerate(reversed([*captions]))]
    texts = [(image["id"], text) for image in images for text in captions[image["file_name"]]]
    entries = [{"id": row, "image_id": image, "caption": text} for row, (image, text) in enumerate(texts)]
    path.write_text(json.dumps({"info": {}, "images": images, "annotations": entries}), encoding="utf-8")
    return captions


def test_scores_of_every_image_against_all_its_references(
    config: EvaluateConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(config)
    captions = {idx: caption.text for idx, caption in found.first.captions.items()}
    split = open_data(config.checkpoint.parent.parent / "tiny")["val"]
    assert [*captions] == [*range(12)]
    references = {idx: split.references(idx) for idx in captions}
    assert all(len(texts) == 2 for texts in references.values())
    assert found.first.scores.overall == metrics.score(captions, references, SCORES)
    out, err = capsys.readouterr()
    assert err == ""  # no progress bar without a terminal
    lines = out.splitlines()
    assert lines[0].endswith("best.safetensors, greedy")
    source = config.checkpoint.parent.parent / "tiny" / "coco2014_captions.h5"
    assert lines[2].endswith(f"24, 2.0 an image, from {source}, the captions of the data")
    for name, value in found.first.scores.overall.items():
        low, high = dataclasses.astuple(found.first.intervals[name])
        assert low <= value <= high
        assert any(re.fullmatch(rf"{name} +{value:.4f} +{low:.4f} to {high:.4f}", line) for line in lines)
    best, worst = lines.index("best by CIDEr"), lines.index("worst by CIDEr")
    shown = [float(line.split()[0]) for line in lines[best + 1 : worst] + lines[worst + 1 :]]
    each = sorted(found.first.scores.each["CIDEr"])
    assert shown == pytest.approx([*each[:-4:-1], *each[:3]], abs=6e-4)


def test_captions_do_not_depend_on_the_references(config: EvaluateConfig, folder: Path, tmp_path: Path) -> None:
    before = run(config)
    other = tmp_path / "other"
    shutil.copytree(folder / "tiny", other)
    with h5py.File(other / "coco2014_captions.h5", "r+") as file:
        rows = file["val_captions"][()]
        inside = rows > 3
        rows[inside] = np.random.default_rng(0).permutation(rows[inside])
        file["val_captions"][...] = rows[::-1]
    scrambled = run(dataclasses.replace(config, data=str(other)))
    annotations(tmp_path / "annotations.json")
    beside = run(dataclasses.replace(config, references=tmp_path / "annotations.json"))
    assert scrambled.first.captions == beside.first.captions == before.first.captions
    assert scrambled.first.scores.overall["BLEU-1"] < before.first.scores.overall["BLEU-1"]
    assert beside.first.scores.overall != before.first.scores.overall


def test_references_and_results_are_in_cocos_formats(
    config: EvaluateConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The images of annotations are found by name; pycocotools reads the results beside the annotations."""
    people, results = tmp_path / "people.json", tmp_path / "results.json"
    captions = annotations(people)
    found = run(dataclasses.replace(config, references=people, json=results))
    by_row = {idx: captions[name] for idx, name in enumerate(NAMES)}
    assert found.references.captions == by_row
    texts = {idx: caption.text for idx, caption in found.first.captions.items()}
    assert found.first.scores.overall == metrics.score(texts, by_row, SCORES)
    assert f"36, 3.0 an image, from {people}" in capsys.readouterr().out
    assert json.loads(results.read_text(encoding="utf-8"))[0] == {"image_id": 111, "caption": texts[0]}
    loaded = COCO(str(people)).loadRes(str(results))
    assert sorted(loaded.getImgIds()) == [*range(100, 112)]
    run(dataclasses.replace(config, json=results))
    written = json.loads(results.read_text(encoding="utf-8"))
    assert [result["image_id"] for result in written] == [*range(12)]  # without annotations the rows


def test_references_are_those_of_the_split(config: EvaluateConfig, tmp_path: Path) -> None:
    """In Karpathy's format, in which one file has all splits."""
    captions = annotations(tmp_path / "people.json")
    entries = [("val", name, texts) for name, texts in captions.items()] + [("test", "other.png", ["no"])]
    images = [
        {
            "filename": name,
            "split": split,
            "cocoid": k,
            "imgid": k,
            "sentences": [{"raw": text, "sentid": 0} for text in texts],
        }
        for k, (split, name, texts) in enumerate(entries)
    ]
    references = tmp_path / "references"
    references.write_text(json.dumps({"images": images, "dataset": "mine"}), encoding="utf-8")
    found = run(dataclasses.replace(config, references=references))
    assert found.references.captions == {idx: captions[name] for idx, name in enumerate(NAMES)}
    with pytest.raises(ValueError, match="references: has no photograph of the split train; it has val, test"):
        run(dataclasses.replace(config, references=references, split="train"))


def test_annotations_in_the_data_directory_are_the_references(
    config: EvaluateConfig, folder: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(folder / "tiny", data)
    own = data / "captions_val2014.json"
    captions = annotations(own)
    manifest = {"files": manifests.marks({own.name: own})}
    (data / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    found = run(dataclasses.replace(config, data=str(data)))
    assert found.references.source == str(own)
    assert found.references.captions[0] == captions[NAMES[0]]
    own.write_text(own.read_text(encoding="utf-8").replace("unspeakably", "unspeakable"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"captions_val2014\.json: another SHA-256 than manifest\.json"):
        run(dataclasses.replace(config, data=str(data)))


def test_images_without_references_are_left_out_and_counted(
    config: EvaluateConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also those whose references hold no word."""
    people = tmp_path / "people.json"
    captions = annotations(people, leave_out=3)
    content = json.loads(people.read_text(encoding="utf-8"))
    ids = {image["file_name"]: image["id"] for image in content["images"]}
    for entry in content["annotations"]:
        if entry["image_id"] == ids[NAMES[3]] or entry["caption"] == captions[NAMES[4]][0]:
            entry["caption"] = "!!!"
    people.write_text(json.dumps(content), encoding="utf-8")
    found = run(dataclasses.replace(config, references=people))
    assert found.references.captions == {idx: captions[NAMES[idx]][idx == 4 :] for idx in range(4, 12)}
    out = capsys.readouterr().out
    assert "images      8 of 12 of val" in out
    assert ", 4 without words omitted" in out
    for entry in content["annotations"]:
        entry["caption"] = "..."
    people.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=r"people\.json: no caption has a word$"):
        run(dataclasses.replace(config, references=people))


def test_cider_of_one_image_alone_is_a_line_and_no_score(
    config: EvaluateConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations(tmp_path / "people.json", leave_out=11)
    one = dataclasses.replace(config, references=tmp_path / "people.json")
    found = run(dataclasses.replace(one, gallery=tmp_path / "gallery.png"))
    assert "CIDEr" not in found.first.scores.overall
    lines = [line for line in capsys.readouterr().out.splitlines() if "CIDEr" in line]
    assert len(lines) == 1
    assert lines[0].startswith("CIDEr      is 0 for only one image: ")
    assert (tmp_path / "gallery.png").is_file()
    run(dataclasses.replace(one, format="json"))
    assert json.loads(capsys.readouterr().out)["scores"]["CIDEr"] is None


def test_two_models_on_the_same_images(
    config: EvaluateConfig, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(dataclasses.replace(config, against=folder / "runs" / "tiny-lstm-2"))
    first, second = found.first.scores.overall, found.second.scores.overall
    assert second == run(dataclasses.replace(config, checkpoint=folder / "runs" / "tiny-lstm-2")).first.scores.overall
    assert found.differences["CIDEr"].low > 0
    gain, interval = first["CIDEr"] - second["CIDEr"], found.differences["CIDEr"]
    row = rf"CIDEr .* {second['CIDEr']:.4f} +\+{gain:.4f} +\+{interval.low:.4f} to \+{interval.high:.4f}"
    assert re.search(row, capsys.readouterr().out)
    same = run(dataclasses.replace(config, against=config.checkpoint))
    assert {dataclasses.astuple(gain) for gain in same.differences.values()} == {(0.0, 0.0)}


def test_several_models_are_an_ensemble(
    config: EvaluateConfig, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (str(folder / "runs" / f"tiny-lstm-{k}") for k in (1, 2))
    args = ["--meteor", "no", "--beam-size", "1", "--against"]
    assert main(["evaluate", first, first, *args, first]) == 0
    same = capsys.readouterr().out
    paths = [Path(run, "best.safetensors") for run in (first, second)]
    assert same.startswith(f"model       {paths[0]} + {paths[0]}, greedy\n")
    assert "+0.0000  +0.0000 to +0.0000" in same
    assert main(["evaluate", first, second, *args, first, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["checkpoint"] == f"{paths[0]} + {paths[1]}"
    ensemble = load([first, second], device="cpu")
    captions = caption_images(ensemble.model, ensemble.open_data()["val"], range(12))
    references = run(config).references.captions
    expected = metrics.score({idx: texts[0].text for idx, texts in captions.items()}, references, SCORES)
    assert found["scores"] == pytest.approx(expected)


@pytest.mark.parametrize("change", ["names", "captions", "count"])
def test_two_models_of_other_images_are_not_compared(
    config: EvaluateConfig, folder: Path, tmp_path: Path, change: str
) -> None:
    """Images differ by name or, without names, by their captions."""
    models = []
    for name in ("tiny", "data"):
        shutil.copytree(folder / "tiny", tmp_path / name)
        if change != "names":
            (tmp_path / name / "val2014_images.txt").unlink()
        with contextlib.redirect_stdout(io.StringIO()):
            models.append(train(tmp_path / name, 1))
    config = dataclasses.replace(config, checkpoint=models[0], against=models[1])
    run(config)
    if change == "names":
        (tmp_path / "data" / "val2014_images.txt").write_text("\n".join(reversed(NAMES)) + "\n", encoding="utf-8")
    elif change == "captions":
        with h5py.File(tmp_path / "data" / "coco2014_captions.h5", "r+") as file:
            file["val_image_idxs"][...] = file["val_image_idxs"][()][::-1]
    else:
        with h5py.File(tmp_path / "data" / "val2014_vgg16_fc7.h5", "r+") as file:
            features = file["features"][()]
            del file["features"]
            file["features"] = np.concatenate([features, features])
    with pytest.raises(ValueError, match=r"--against .*: .*tiny and .*data, .* differ in the images of val$"):
        run(config)


@pytest.mark.parametrize(
    ("images", "annotated", "pairs"),
    [
        (["a.jpg", "b.jpg"], ["x/b.jpg", "x/a.jpg"], {0: "x/a.jpg", 1: "x/b.jpg"}),
        (["val/a.jpg"], ["images/val/a.jpg", "images/train/a.jpg"], {0: "images/val/a.jpg"}),
        (["val/a.jpg", "train/a.jpg"], ["a.jpg"], {}),
        (["a.jpg", "val/a.jpg"], ["x/val/a.jpg"], {}),
        (["a.jpg", "val/a.jpg"], ["val/a.jpg"], {1: "val/a.jpg"}),
        (["caf\u00e9.jpg"], ["x/cafe\u0301.jpg"], {0: "x/cafe\u0301.jpg"}),
    ],
)
def test_images_are_found_by_the_last_part_of_their_name_if_it_is_unique(
    images: list[str], annotated: list[str], pairs: dict[int, str]
) -> None:
    photographs = [Photograph(name, name) for name in annotated]
    found = evaluate._paired(dict(enumerate(images)), photographs)
    assert {idx: photograph.file_name for idx, photograph in found.items()} == pairs


def test_the_gallery_shows_the_best_and_the_worst(
    config: EvaluateConfig, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the pictures that there are: --images may name a folder with some of them."""
    drawn: list[plots.GalleryItem] = []
    monkeypatch.setattr(plots, "gallery", lambda items, path: drawn.extend(items))
    monkeypatch.setattr(evaluate, "SHOWN", 2)
    wanted = dataclasses.replace(config, gallery=tmp_path / "gallery.png")
    found = run(wanted)
    order = [idx for idx, _ in found.first.ranked]
    chosen = [*order[:2], *order[-2:]]
    assert [Path(item.picture).name for item in drawn] == [NAMES[idx] for idx in chosen]
    assert [item.caption for item in drawn] == [found.first.captions[idx].text for idx in chosen]
    assert [item.references for item in drawn] == [tuple(found.references.captions[idx]) for idx in chosen]
    best, worst = max(found.first.scores.each["CIDEr"]), min(found.first.scores.each["CIDEr"])
    assert (drawn[0].note, drawn[-1].note) == (f"CIDEr {best:.2f}", f"CIDEr {worst:.2f}")
    (photographs := tmp_path / "photographs").mkdir()
    for name in NAMES[:3]:
        shutil.copy(folder / "tiny" / "images" / name, photographs)
    drawn.clear()
    run(dataclasses.replace(wanted, images=photographs))
    assert {Path(item.picture) for item in drawn} == {photographs / name for name in NAMES[:3]}
    with pytest.raises(ValueError, match=r"--gallery: .*runs has no pictures of val; --images names their folder"):
        run(dataclasses.replace(wanted, images=folder / "runs"))


def test_scores_as_json(config: EvaluateConfig, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(dataclasses.replace(config, format="json", against=folder / "runs" / "tiny-lstm-2"))
    plain = json.loads(capsys.readouterr().out)
    assert plain["scores"] == found.first.scores.overall
    assert plain["intervals"]["CIDEr"] == [*dataclasses.astuple(found.first.intervals["CIDEr"])]
    assert plain["against"]["scores"] == found.second.scores.overall
    assert plain["images"] == 12
    assert plain["reference_count"] == 24


# Languages without blanks between words

HAN = dict(
    zip(
        ["a", "one", "is", "here", "red", "green", "blue", "grey", "circle", "square", "star"],
        "个一。这红绿蓝灰圆方星",
        strict=True,
    )
)


@pytest.fixture(scope="module")
def han(folder: Path) -> EvaluateConfig:
    """A model of the same captions with a character for each word, prepared as characters."""
    data = folder / "han"
    shutil.copytree(folder / "tiny", data)
    words = json.loads((data / "coco2014_vocab.json").read_text(encoding="utf-8"))["idx_to_word"]
    Vocabulary(tuple(HAN.get(word, word) for word in words)).save(data / "coco2014_vocab.json")
    (data / "manifest.json").write_text('{"tokenizer": "characters"}', encoding="utf-8")
    with contextlib.redirect_stdout(io.StringIO()):
        run = train(data, 40)
    return EvaluateConfig(run, meteor="no", decoding=DecodingOptions(n_best=1))


def han_references(path: Path) -> dict[int, list[str]]:
    """Write captions without blanks; they are returned by row."""
    texts = ["个" + "".join(HAN[word] for word in name[:-4].split("_")) + "。" for name in NAMES]
    images = [{"id": row, "file_name": name} for row, name in enumerate(NAMES)]
    entries = [{"id": row, "image_id": row, "caption": text} for row, text in enumerate(texts)]
    path.write_text(json.dumps({"images": images, "annotations": entries}), encoding="utf-8")
    return {row: [text] for row, text in enumerate(texts)}


def test_references_are_split_as_the_data_was(
    han: EvaluateConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    references = han_references(tmp_path / "people.json")
    config = dataclasses.replace(han, references=tmp_path / "people.json", json=tmp_path / "results.json")
    found = run(config)
    texts = {idx: caption.text for idx, caption in found.first.captions.items()}
    assert found.first.scores.overall == metrics.score(texts, references, SCORES, "characters")
    assert found.first.scores.overall["BLEU-1"] > 0.5
    out = capsys.readouterr().out
    assert "tokens      by torch_caption, characters" in out
    best = texts[found.first.ranked[0][0]]
    assert " " in best
    assert best.replace(" ", "") in out  # without blanks for a reader
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [result["caption"] for result in results] == [*texts.values()]  # with blanks for a scorer
    for tokenizer in ("words", "whitespace"):
        with pytest.raises(ValueError, match=f"--tokenizer {tokenizer}: the captions of .*han consist of characters"):
            run(dataclasses.replace(han, tokenizer=tokenizer))


def test_sample_prints_captions_of_characters_without_blanks(
    han: EvaluateConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config = SampleConfig(checkpoint=han.checkpoint, split="val", images=(0,), references=True)
    (image,) = sampling.run(config)
    table = capsys.readouterr().out
    sampling.run(dataclasses.replace(config, format="json"))
    (plain,) = json.loads(capsys.readouterr().out)["images"]
    assert " " in image.captions[0].text
    for text in (image.captions[0].text, *image.references):
        assert text.replace(" ", "") in table
    assert plain["captions"][0]["caption"] == image.captions[0].text.replace(" ", "")
    assert plain["references"] == [text.replace(" ", "") for text in image.references]


def test_another_tokenizer_gives_other_scores(config: EvaluateConfig, tmp_path: Path) -> None:
    annotations(tmp_path / "people.json")
    config = dataclasses.replace(config, references=tmp_path / "people.json")
    words, blanks = (run(dataclasses.replace(config, tokenizer=name)).first.scores for name in ("words", "whitespace"))
    assert run(config).first.scores.overall == words.overall
    assert blanks.overall["BLEU-1"] < words.overall["BLEU-1"]  # "A" is not "a"


def test_training_scores_with_the_datas_tokenizer(han: EvaluateConfig) -> None:
    """The full stop is a token, which the other tokenizers leave out."""
    split = open_data(han.checkpoint.parent.parent / "han")["val"]
    model = checkpoints.build_model(checkpoints.load(han.checkpoint / "best.safetensors"))
    images = [*range(split.num_images)]
    captions = caption_images(model.eval(), split, images, DecodingOptions(max_length=6))
    texts = {idx: caption.text for idx, (caption,) in captions.items()}
    references = {idx: split.references(idx) for idx in images}
    split.tokenizer = "whitespace"
    by_all = metrics.score(texts, references, tokenizer="whitespace")
    assert trainer.score(model, split, images, max_length=6) == {name: by_all[name] for name in ("BLEU-4", "CIDEr")}
    assert by_all != metrics.score(texts, references, tokenizer="words")


@pytest.mark.exhaustive
@pytest.mark.skipif(not java.available(), reason="there is no Java")
def test_java_is_used_if_installed(config: EvaluateConfig, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(dataclasses.replace(config, meteor="auto", tokenizer="ptb"))
    assert 0.3 < found.first.scores.overall["METEOR"] <= 1
    out = capsys.readouterr().out
    assert "tokens      by Stanford PTB" in out
    assert re.search(r"BLEU-4 .*\nMETEOR .*\nROUGE-L ", out)


def test_without_java(config: EvaluateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "METEOR" not in run(dataclasses.replace(config, meteor="auto")).first.scores.overall
    for changes, flag in (({"meteor": "yes"}, "--meteor yes"), ({"tokenizer": "ptb"}, "--tokenizer ptb")):
        with pytest.raises(ValueError, match=f"{flag} needs Java, which is not installed; install"):
            run(dataclasses.replace(config, **changes))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--samples", "3", "--beam-size", "1"], "--samples 3: one caption per image is scored, so it must be 1"),
        (["--top-k", "3"], "--top-k 3 is an option of sampling, but --beam-size 5 of beam: use one of them"),
        (["--draws", "1"], "--draws must be at least 2, not 1"),
        (["--seed", "-1"], "--seed must be at least 0, not -1"),
        (["--gallery", "nowhere/x.png"], "--gallery nowhere/x.png: there is no folder nowhere"),
        (["--split", "dev"], "no split 'dev'; choose one of train, val, test"),
        (["--references", "nowhere.json"], "nowhere.json: cannot be read: No such file or directory"),
        (["--references", "empty.json"], "empty.json: has no captions of images of val, such as 'red_"),
    ],
)
def test_invalid_arguments_are_one_line(
    args: list[str], words: str, config: EvaluateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.json").write_text('{"images": [], "annotations": []}', encoding="utf-8")
    assert words in refusal(["evaluate", str(config.checkpoint), "--meteor", "no", *args], capsys)


def test_the_last_run_of_the_current_folder_is_evaluated(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert main(["evaluate", "--meteor", "no"]) == 0
    assert capsys.readouterr().out.startswith("model       runs")


def test_captions_are_those_of_the_decoding_options(
    config: EvaluateConfig, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = DecodingOptions(beam_size=3, length_penalty=0.0, n_best=1, no_unk=True, max_length=2)
    found = run(dataclasses.replace(config, decoding=options))
    data = open_data(folder / "tiny")
    saved = checkpoints.load(config.checkpoint / "best.safetensors")
    beams = caption_images(checkpoints.build_model(saved).eval(), data["val"], range(12), options)
    assert found.first.captions == {idx: captions[0] for idx, captions in beams.items()}
    assert "best.safetensors, beam search, 3 wide" in capsys.readouterr().out


def test_references_need_the_images_names(config: EvaluateConfig, folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(folder / "tiny", data)
    (data / "val2014_images.txt").unlink()
    annotations(tmp_path / "people.json")
    with pytest.raises(
        ValueError, match=r"val2014_images.txt: no such file; the captions of .*people.json are matched by"
    ):
        run(dataclasses.replace(config, data=str(data), references=tmp_path / "people.json"))
