"""`python -m torch_caption evaluate`: every image captioned blindly, scored against all that people wrote."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

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
from torch_caption.metrics import java
from torch_caption.metrics import scores as metrics
from torch_caption.training import trainer
from torch_caption.training.trainer import fit

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
    """A folder with data in it, and a run that has learnt more (tiny-lstm-1) and one that has learnt less (2)."""
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
    """Captions in COCO's format, the images in another order than the data's, with ids of their own."""
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
    assert found.first.scores.overall == metrics.score(captions, references, ["BLEU", "ROUGE-L", "CIDEr"])
    out, err = capsys.readouterr()
    assert err == ""  # no bar of progress where nobody looks
    lines = out.splitlines()
    assert lines[0].endswith("best.safetensors, greedy")
    assert lines[2].endswith("24, 2.0 an image, from " + str(split_file(config)) + ", as the model learns them")
    for name, value in found.first.scores.overall.items():
        low, high = dataclasses.astuple(found.first.intervals[name])
        assert low <= value <= high
        assert any(re.fullmatch(rf"{name} +{value:.4f} +{low:.4f} to {high:.4f}", line) for line in lines)
    best, worst = lines.index("best by CIDEr"), lines.index("worst by CIDEr")
    shown = [float(line.split()[0]) for line in lines[best + 1 : worst] + lines[worst + 1 :]]
    each = sorted(found.first.scores.each["CIDEr"])
    assert shown == pytest.approx([*each[:-4:-1], *each[:3]], abs=6e-4)


APART = r"--against .*: .*tiny and .*data, the data of the two models, differ in the images of val$"


def split_file(config: EvaluateConfig) -> Path:
    return config.checkpoint.parent.parent / "tiny" / "coco2014_captions.h5"


def test_no_reference_word_is_seen_while_decoding(config: EvaluateConfig, folder: Path, tmp_path: Path) -> None:
    """Captions of other images, of nonsense, in the file and beside it: what the model says stays the same."""
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


def test_references_of_an_annotation_file_are_found_by_name(
    config: EvaluateConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captions = annotations(tmp_path / "people.json")
    found = run(dataclasses.replace(config, references=tmp_path / "people.json"))
    texts = {idx: caption.text for idx, caption in found.first.captions.items()}
    by_row = {idx: captions[name] for idx, name in enumerate(NAMES)}
    assert found.references.captions == by_row
    assert found.first.scores.overall == metrics.score(texts, by_row, ["BLEU", "ROUGE-L", "CIDEr"])
    assert f"36, 3.0 an image, from {tmp_path / 'people.json'}" in capsys.readouterr().out


def karpathys(captions: dict[str, list[str]]) -> str:
    """The named images in val, and the same with other captions in test, which are not asked for."""
    images = [
        {
            "filename": name,
            "split": split,
            "cocoid": k,
            "imgid": k,
            "sentences": [{"raw": text, "sentid": 0} for text in said],
        }
        for k, (split, name, said) in enumerate(
            [("val", name, said) for name, said in captions.items()] + [("test", "other.png", ["no"])]
        )
    ]
    return json.dumps({"images": images, "dataset": "mine"})


@pytest.mark.parametrize("kind", ["karpathy", "token", "csv"])
def test_references_in_any_format(kind: str, config: EvaluateConfig, tmp_path: Path) -> None:
    captions = annotations(tmp_path / "people.json")
    lines = [(name, n, text) for name, said in captions.items() for n, text in enumerate(said)]
    content = {
        "karpathy": karpathys(captions),
        "token": "".join(f"{name}#{n}\t{text}\n" for name, n, text in lines),
        "csv": "image,caption\n" + "".join(f'{name},"{text}"\n' for name, _, text in lines),
    }[kind]
    (tmp_path / "references").write_text(content, encoding="utf-8")
    found = run(dataclasses.replace(config, references=tmp_path / "references"))
    assert found.references.captions == {idx: captions[name] for idx, name in enumerate(NAMES)}
    if kind == "karpathy":
        with pytest.raises(ValueError, match="references: has no photograph of the split train; it has val, test"):
            run(dataclasses.replace(config, references=tmp_path / "references", split="train"))


def test_the_datas_own_annotations_come_before_what_the_model_learns(
    config: EvaluateConfig, folder: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(folder / "tiny", data)
    captions = annotations(data / "captions_val2014.json")
    found = run(dataclasses.replace(config, data=str(data)))
    assert found.references.source == str(data / "captions_val2014.json")
    assert found.references.captions[0] == captions[NAMES[0]]


def test_images_without_captions_are_left_out_and_counted(
    config: EvaluateConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations(tmp_path / "people.json", leave_out=3)
    found = run(dataclasses.replace(config, references=tmp_path / "people.json"))
    assert [*found.first.captions] == [*range(3, 12)]
    assert "images      9 of 12 of val" in capsys.readouterr().out


def test_cider_of_one_image_alone_is_a_line_and_no_score(
    config: EvaluateConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations(tmp_path / "people.json", leave_out=11)
    one = dataclasses.replace(config, references=tmp_path / "people.json")
    found = run(dataclasses.replace(one, gallery=tmp_path / "gallery.png"))
    assert "CIDEr" not in found.first.scores.overall
    lines = [line for line in capsys.readouterr().out.splitlines() if "CIDEr" in line]
    assert len(lines) == 1
    assert lines[0].startswith("CIDEr      is 0 of one image alone, whatever the captions: ")
    assert (tmp_path / "gallery.png").is_file()
    run(dataclasses.replace(one, format="json"))
    assert json.loads(capsys.readouterr().out)["scores"]["CIDEr"] is None


def test_captions_in_cocos_result_format(
    config: EvaluateConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """pycocotools itself reads them beside the annotations."""
    annotations(tmp_path / "people.json")
    found = run(dataclasses.replace(config, references=tmp_path / "people.json", json=tmp_path / "results.json"))
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert results[0] == {"image_id": 111, "caption": found.first.captions[0].text}
    loaded = COCO(str(tmp_path / "people.json")).loadRes(str(tmp_path / "results.json"))
    assert sorted(loaded.getImgIds()) == [*range(100, 112)]
    run(dataclasses.replace(config, json=tmp_path / "results.json"))
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [result["image_id"] for result in results] == [*range(12)]  # without annotations the rows


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


def test_two_models_of_other_images_are_not_compared(config: EvaluateConfig, tmp_path: Path) -> None:
    with h5py.File(write_tiny(tmp_path / "data") / "val2014_vgg16_fc7.h5", "r+") as file:
        features = file["features"][()]
        del file["features"]
        file["features"] = np.concatenate([features, features])
    with contextlib.redirect_stdout(io.StringIO()):
        other = train(tmp_path / "data", 1)
    with pytest.raises(ValueError, match=APART):
        run(dataclasses.replace(config, against=other))


@pytest.mark.parametrize("named", [True, False])
def test_two_models_of_as_many_other_images_are_not_compared(
    config: EvaluateConfig, folder: Path, tmp_path: Path, named: bool
) -> None:
    """Told by the images' names, or without names by what people wrote of them."""
    models = []
    for name in ("tiny", "data"):
        shutil.copytree(folder / "tiny", tmp_path / name)
        if not named:
            (tmp_path / name / "val2014_images.txt").unlink()
        with contextlib.redirect_stdout(io.StringIO()):
            models.append(train(tmp_path / name, 1))
    config = dataclasses.replace(config, checkpoint=models[0], against=models[1])
    run(config)
    if named:
        (tmp_path / "data" / "val2014_images.txt").write_text("\n".join(reversed(NAMES)) + "\n", encoding="utf-8")
    else:
        with h5py.File(tmp_path / "data" / "coco2014_captions.h5", "r+") as file:
            file["val_image_idxs"][...] = file["val_image_idxs"][()][::-1]
    with pytest.raises(ValueError, match=APART):
        run(config)


def test_references_without_words_are_left_out(
    config: EvaluateConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captions = annotations(tmp_path / "people.json")
    content = json.loads((tmp_path / "people.json").read_text(encoding="utf-8"))
    ids = {image["file_name"]: image["id"] for image in content["images"]}
    for entry in content["annotations"]:
        if entry["image_id"] == ids[NAMES[0]] or entry["caption"] == captions[NAMES[1]][0]:
            entry["caption"] = "!!!"
    (tmp_path / "people.json").write_text(json.dumps(content), encoding="utf-8")
    found = run(dataclasses.replace(config, references=tmp_path / "people.json"))
    assert found.references.captions == {idx: captions[name][idx == 1 :] for idx, name in enumerate(NAMES) if idx}
    out = capsys.readouterr().out
    assert "images      11 of 12 of val" in out
    assert "32, 2.9 an image" in out
    assert ", 4 without words left out" in out
    for entry in content["annotations"]:
        entry["caption"] = "..."
    (tmp_path / "people.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=r"people\.json: no caption holds a word$"):
        run(dataclasses.replace(config, references=tmp_path / "people.json"))


def test_references_by_the_last_part_of_a_name(config: EvaluateConfig, folder: Path, tmp_path: Path) -> None:
    """COCO's own annotations have the names alone, a directory made of val2014/ the folder too; or the other way."""
    data, people = tmp_path / "data", tmp_path / "people.json"
    shutil.copytree(folder / "tiny", data)
    names = data / "val2014_images.txt"
    names.write_text("".join(f"val2014/{name}\n" for name in NAMES), encoding="utf-8")
    captions = annotations(people)
    config = dataclasses.replace(config, data=str(data), references=people)
    assert run(config).references.captions == {idx: captions[name] for idx, name in enumerate(NAMES)}
    content = json.loads(people.read_text(encoding="utf-8"))
    for image in content["images"]:
        image["file_name"] = f"train2014/{image['file_name']}"
    people.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=r"people\.json: has no caption of any image of val, .* 'val2014/red_circle"):
        run(config)  # those of one folder say nothing of another's
    names.write_text("".join(f"{name}\n" for name in NAMES), encoding="utf-8")
    content["images"].append({"id": 7, "file_name": f"val2014/{NAMES[0]}"})  # now two have this name
    people.write_text(json.dumps(content), encoding="utf-8")
    assert run(config).references.captions == {idx: captions[name] for idx, name in enumerate(NAMES) if idx}


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
def test_no_two_images_share_the_captions_of_one(
    images: list[str], annotated: list[str], pairs: dict[int, str]
) -> None:
    photographs = [Photograph(name, name) for name in annotated]
    found = evaluate._paired(dict(enumerate(images)), photographs)
    assert {idx: photograph.file_name for idx, photograph in found.items()} == pairs


def test_the_datas_own_annotations_are_those_that_were_written(
    config: EvaluateConfig, folder: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(folder / "tiny", data)
    own = data / "captions_val2014.json"
    annotations(own)
    manifest = {"files": manifests.marks({own.name: own})}
    (data / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    run(dataclasses.replace(config, data=str(data)))
    own.write_text(own.read_text(encoding="utf-8").replace("unspeakably", "unspeakable"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"captions_val2014\.json: another SHA-256 than manifest\.json"):
        run(dataclasses.replace(config, data=str(data)))


def test_the_gallery_shows_the_best_and_the_worst(
    config: EvaluateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[plots.GalleryItem] = []
    draw = plots.gallery
    monkeypatch.setattr(plots, "gallery", lambda items, path: (drawn.extend(items), draw(items, path)))
    monkeypatch.setattr(evaluate, "DRAWN", 2)
    found = run(dataclasses.replace(config, gallery=tmp_path / "gallery.png"))
    with Image.open(tmp_path / "gallery.png") as picture:
        assert picture.format == "PNG"
    order = [idx for idx, _ in found.first.ranked]
    chosen = [*order[:2], *order[-2:]]
    assert [Path(item.picture).name for item in drawn] == [NAMES[idx] for idx in chosen]
    assert [item.caption for item in drawn] == [found.first.captions[idx].text for idx in chosen]
    assert [item.references for item in drawn] == [tuple(found.references.captions[idx]) for idx in chosen]
    best, worst = max(found.first.scores.each["CIDEr"]), min(found.first.scores.each["CIDEr"])
    assert (drawn[0].note, drawn[-1].note) == (f"CIDEr {best:.2f}", f"CIDEr {worst:.2f}")


def test_photographs_may_lie_elsewhere(config: EvaluateConfig, folder: Path, tmp_path: Path) -> None:
    """A folder that has some of them: the others are not drawn."""
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for name in NAMES[:3]:
        shutil.copy(folder / "tiny" / "images" / name, photographs)
    wanted = dataclasses.replace(config, gallery=tmp_path / "gallery.png", images=photographs)
    drawn: list[plots.GalleryItem] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "gallery", lambda items, path: drawn.extend(items))
        run(wanted)
    assert {Path(item.picture) for item in drawn} == {photographs / name for name in NAMES[:3]}
    with pytest.raises(ValueError, match=r"--gallery: .*runs holds no pictures of val; --images names their folder"):
        run(dataclasses.replace(wanted, images=folder / "runs"))


def test_scores_as_json(config: EvaluateConfig, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(dataclasses.replace(config, format="json", against=folder / "runs" / "tiny-lstm-2"))
    plain = json.loads(capsys.readouterr().out)
    assert plain["scores"] == found.first.scores.overall
    assert plain["intervals"]["CIDEr"] == [*dataclasses.astuple(found.first.intervals["CIDEr"])]
    assert plain["against"]["scores"] == found.second.scores.overall
    assert plain["images"] == 12
    assert plain["reference_count"] == 24


# Of every script

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
    """As they are written, and what they are by row."""
    texts = ["个" + "".join(HAN[word] for word in name[:-4].split("_")) + "。" for name in NAMES]
    images = [{"id": row, "file_name": name} for row, name in enumerate(NAMES)]
    entries = [{"id": row, "image_id": row, "caption": text} for row, text in enumerate(texts)]
    path.write_text(json.dumps({"images": images, "annotations": entries}), encoding="utf-8")
    return {row: [text] for row, text in enumerate(texts)}


def test_references_are_split_as_the_data_was(
    han: EvaluateConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Into characters, so that a sentence without blanks has words in common with a caption."""
    references = han_references(tmp_path / "people.json")
    config = dataclasses.replace(han, references=tmp_path / "people.json", json=tmp_path / "results.json")
    found = run(config)
    texts = {idx: caption.text for idx, caption in found.first.captions.items()}
    assert found.first.scores.overall == metrics.score(texts, references, ["BLEU", "ROUGE-L", "CIDEr"], "characters")
    assert found.first.scores.overall["BLEU-1"] > 0.5
    out = capsys.readouterr().out
    assert "tokens      by torch_caption, characters" in out
    best = texts[found.first.ranked[0][0]]
    assert " " in best
    assert best.replace(" ", "") in out  # as a reader expects it
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [result["caption"] for result in results] == [*texts.values()]  # as a scorer does


def test_a_sample_is_as_a_reader_expects_it(han: EvaluateConfig, capsys: pytest.CaptureFixture[str]) -> None:
    """In the table and in JSON; what is computed with are the tokens."""
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


def test_characters_are_not_scored_as_words(han: EvaluateConfig) -> None:
    for tokenizer in ("words", "whitespace"):
        with pytest.raises(ValueError, match=f"--tokenizer {tokenizer}: the captions of .*han are of characters"):
            run(dataclasses.replace(han, tokenizer=tokenizer))


def test_another_tokenizer_may_be_asked_for(config: EvaluateConfig, tmp_path: Path) -> None:
    annotations(tmp_path / "people.json")
    config = dataclasses.replace(config, references=tmp_path / "people.json")
    by_words, asked = run(config), run(dataclasses.replace(config, tokenizer="words"))
    assert asked.first.scores.overall == by_words.first.scores.overall
    assert run(dataclasses.replace(config, tokenizer="characters")).first.scores.overall == asked.first.scores.overall
    as_they_are = run(dataclasses.replace(config, tokenizer="whitespace"))  # "A" is not "a" then
    assert as_they_are.first.scores.overall["BLEU-1"] < asked.first.scores.overall["BLEU-1"]


def test_training_scores_with_the_datas_tokenizer(han: EvaluateConfig) -> None:
    """Here the full stop is a token, which the other tokenizers leave out."""
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


@pytest.mark.skipif(not java.available(), reason="there is no Java")
def test_java_is_used_where_it_is(config: EvaluateConfig, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(dataclasses.replace(config, meteor="auto", tokenizer="ptb"))
    assert 0.3 < found.first.scores.overall["METEOR"] <= 1
    out = capsys.readouterr().out
    assert "tokens      by Stanford PTB" in out
    assert re.search(r"BLEU-4 .*\nMETEOR .*\nROUGE-L ", out)


def test_without_java(config: EvaluateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "METEOR" not in run(dataclasses.replace(config, meteor="auto")).first.scores.overall
    for changes, flag in (({"meteor": "yes"}, "--meteor yes"), ({"tokenizer": "ptb"}, "--tokenizer ptb")):
        with pytest.raises(ValueError, match=f"{flag} needs Java, which is not here; install"):
            run(dataclasses.replace(config, **changes))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--beam-size", "0"], "--beam-size must be an integer of at least 1, not 0"),
        (["--length-penalty", "-1"], "--length-penalty must be 0, a positive number or mean, not -1.0"),
        (["--samples", "3", "--beam-size", "1"], "--samples 3: one caption an image is scored, so it must be 1"),
        (["--n-best", "2"], "--n-best 2: one caption an image is scored, so it must be 1"),
        (["--top-k", "3"], "--top-k 3 is an option of sampling, but --beam-size 5 of beam: use one of them"),
        (["--draws", "1"], "--draws must be at least 2, not 1"),
        (["--seed", "-1"], "--seed must be at least 0, not -1"),
        (["--max-length", "0"], "--max-length must be an integer of at least 1, not 0"),
        (["--json", "nowhere/x.json"], "--json nowhere/x.json: there is no folder nowhere"),
        (["--gallery", "nowhere/x.png"], "--gallery nowhere/x.png: there is no folder nowhere"),
        (["--split", "dev"], "no split 'dev'; choose one of train, val, test"),
        (["--references", "nowhere.json"], "nowhere.json: cannot be read: No such file or directory"),
        (["--references", "empty.json"], "empty.json: has no caption of any image of val, the first of which is 'red_"),
        (["--data", "nowhere"], "nowhere: no such folder"),
        (["--against", "nowhere.safetensors"], "nowhere.safetensors: no such checkpoint"),
    ],
)
def test_a_mistake_is_one_line(
    args: list[str], words: str, config: EvaluateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.json").write_text('{"images": [], "annotations": []}', encoding="utf-8")
    assert main(["evaluate", str(config.checkpoint), "--meteor", "no", *args]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err


def test_captions_are_found_as_the_flags_say(
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
        ValueError, match=r"val2014_images.txt: no such file; the captions of .*people.json are found by"
    ):
        run(dataclasses.replace(config, data=str(data), references=tmp_path / "people.json"))


def test_the_program(folder: Path) -> None:
    """As its user calls it, with the last run found by itself."""
    command = [sys.executable, "-W", "error", "-m", "torch_caption", "evaluate", "--meteor", "no"]
    root = Path(evaluate.__file__).parents[2]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True,
        encoding="utf-8", check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("model       runs")
