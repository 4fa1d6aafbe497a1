"""Files of annotation tools: each gives the heads that were marked, or says what is unclear."""

import json
from pathlib import Path
from typing import Any

import pytest

from data.folders import write_image
from headcount.config import Boxes, CustomConfig
from headcount.data.annotations import read_annotation, read_points_table
from headcount.data.audit import audit_dataset
from headcount.data.crowd import CrowdDataset
from headcount.data.open import open_split
from headcount.data.tools import HeadMarks
from headcount.errors import DataError

SIZE = 64
HEADS = {"a": [[10.5, 20.0], [30.0, 40.25]], "b": [[5.0, 6.0]], "c": []}
"""The heads of three images of 64 x 64 pixels, in every file below."""


def labelme(heads: list[list[float]], label: str = "head", shape: str = "point") -> dict[str, Any]:
    shapes = [
        {"label": label, "points": [point], "group_id": None, "shape_type": shape, "flags": {}} for point in heads
    ]
    return {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": "x.jpg", "imageData": None}


def supervisely(heads: list[list[float]]) -> dict[str, Any]:
    objects = [
        {"id": k, "classTitle": "head", "geometryType": "point", "points": {"exterior": [point], "interior": []}}
        for k, point in enumerate(heads)
    ]
    return {"description": "", "tags": [], "size": {"height": SIZE, "width": SIZE}, "objects": objects}


def cclabeler(heads: list[list[float]]) -> dict[str, Any]:
    points = [{"x": x, "y": y} for x, y in heads]
    return {"img_id": "x.jpg", "human_num": len(heads), "boxes": [], "points": points}


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><id>1</id></task></meta>
<image id="0" name="crowd/a.jpg" width="64" height="64">
<points label="head" source="manual" occluded="0" points="10.50,20.00;30.00,40.25" z_order="0"></points></image>
<image id="1" name="crowd/b.jpg" width="64" height="64">
<points label="head" source="manual" occluded="0" points="5.00,6.00" z_order="0"></points>
<tag label="evening" source="manual"></tag></image>
<image id="2" name="crowd/c.jpg" width="64" height="64"></image>
</annotations>
"""
VIA_CSV = """filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes
a.jpg,900,"{}",2,0,"{""name"":""point"",""cx"":10.5,""cy"":20}","{""type"":""head""}"
a.jpg,900,"{}",2,1,"{""name"":""point"",""cx"":30,""cy"":40.25}","{""type"":""head""}"
b.jpg,901,"{}",1,0,"{""name"":""point"",""cx"":5,""cy"":6}","{""type"":""head""}"
c.jpg,902,"{}",0,0,"{}","{}"
"""
# An image without points is not in such a file.
MAKESENSE = "head,10.5,20,a.jpg,64,64\nhead,30,40.25,a.jpg,64,64\nhead,5,6,b.jpg,64,64\n"


def via(*, project: bool) -> dict[str, Any]:
    images = {
        f"{name}.jpg900": {
            "filename": f"{name}.jpg",
            "size": 900,
            "regions": [
                {"shape_attributes": {"name": "point", "cx": x, "cy": y}, "region_attributes": {"type": "head"}}
                for x, y in heads
            ],
            "file_attributes": {},
        }
        for name, heads in HEADS.items()
    }
    return {"_via_settings": {}, "_via_img_metadata": images, "_via_attributes": {}} if project else images


def label_studio(kind: str = "keypointlabels", size: float = 0) -> list[dict[str, Any]]:
    def result(x: float, y: float) -> dict[str, Any]:
        value = {"x": x / SIZE * 100, "y": y / SIZE * 100, "width": size, "height": size, kind: ["head"]}
        return {"type": kind, "value": value, "original_width": SIZE, "original_height": SIZE, "image_rotation": 0}

    return [
        {
            "id": k,
            "data": {"image": f"/data/upload/1/0badcafe-{name}.jpg"},
            "annotations": [{"id": k, "was_cancelled": False, "result": [result(x, y) for x, y in heads]}],
        }
        for k, (name, heads) in enumerate(HEADS.items())
    ]


def coco(*, boxes: bool = False) -> dict[str, Any]:
    category = {"id": 1, "name": "head"} if boxes else {"id": 1, "name": "head", "keypoints": ["head"], "skeleton": []}
    images = [{"id": k, "file_name": f"{name}.jpg", "width": SIZE, "height": SIZE} for k, name in enumerate(HEADS)]
    marks = [
        {"id": 9, "image_id": k, "category_id": 1, "bbox": [x - 2, y - 3, 4, 6]}
        | ({} if boxes else {"keypoints": [x, y, 2], "num_keypoints": 1})
        for k, heads in enumerate(HEADS.values())
        for x, y in heads
    ]
    return {"images": images, "annotations": marks, "categories": [category]}


OF_EACH_IMAGE = {"LabelMe": labelme, "Supervisely": supervisely, "cclabeler": cclabeler}
OF_ALL_IMAGES = {
    "CVAT": ("cvat.xml", CVAT),
    "VIA csv": ("via.csv", VIA_CSV),
    "VIA project": ("via.json", json.dumps(via(project=True))),
    "VIA annotations": ("via.json", json.dumps(via(project=False))),
    "Label Studio": ("project-1.json", json.dumps(label_studio())),
    "COCO": ("coco.json", json.dumps(coco())),
    "makesense.ai": ("labels.csv", MAKESENSE),
}


@pytest.fixture
def config(tmp_path: Path) -> CustomConfig:
    """Three images in the folder ``mine``, all of which train."""
    for name in HEADS:
        write_image(tmp_path / "mine" / f"{name}.jpg", width=SIZE, height=SIZE)
    return CustomConfig(
        root=str(tmp_path / "mine"),
        cache_dir=str(tmp_path / "cache"),
        min_side=SIZE,
        val_fraction=0.0,
        test_fraction=0.0,
    )


def heads_of(dataset: CrowdDataset) -> dict[str, list[list[float]]]:
    return {name: dataset[k].points.tolist() for k, name in enumerate(dataset.names)}


@pytest.mark.parametrize("tool", OF_EACH_IMAGE)
def test_a_file_of_each_image(tool: str, config: CustomConfig, tmp_path: Path) -> None:
    ending = ".jpg.json" if tool == "Supervisely" else ".json"
    for name, heads in HEADS.items():
        (tmp_path / "mine" / f"{name}{ending}").write_text(json.dumps(OF_EACH_IMAGE[tool](heads)))
    assert heads_of(open_split(config, "train")) == HEADS
    audited = audit_dataset(config)
    assert [len(image.points) for image in audited.splits[0].usable] == [2, 1, 0]


@pytest.mark.parametrize("tool", OF_ALL_IMAGES)
def test_a_file_of_all_images(tool: str, config: CustomConfig, tmp_path: Path) -> None:
    name, text = OF_ALL_IMAGES[tool]
    file = tmp_path / "mine" / name
    file.write_text(text)
    with pytest.raises(DataError, match=f"dataset.points={file}"):  # it is named, and how to read it
        open_split(config, "train")
    config.points = str(file)
    if tool == "makesense.ai":
        (tmp_path / "mine" / "c.jpg").unlink()
        assert heads_of(open_split(config, "train")) == {name: HEADS[name] for name in ("a", "b")}
    else:
        found = heads_of(open_split(config, "train"))
        assert found.keys() == HEADS.keys()
        for image, heads in HEADS.items():
            assert [[pytest.approx(v, abs=1e-4) for v in head] for head in heads] == found[image]


@pytest.mark.parametrize("content", [coco(boxes=True), label_studio("rectanglelabels", size=0)], ids=["COCO", "Studio"])
def test_boxes_are_counted_only_if_told_so(content: Any, tmp_path: Path) -> None:
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"it has 3 boxes; .* dataset\.boxes=centers"):
        read_points_table(file)
    found = read_points_table(file, marks=HeadMarks(boxes=Boxes.centers))
    assert [len(heads) for heads in found.values()] == [2, 1, 0]
    (first, *_) = found.values()
    assert first.tolist() == [[pytest.approx(v, abs=1e-4) for v in head] for head in HEADS["a"]]


def test_several_labels_need_a_choice(tmp_path: Path) -> None:
    content = labelme(HEADS["a"])
    content["shapes"] += labelme([[1, 1]], label="car", shape="polygon")["shapes"]
    file = tmp_path / "a.json"
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"labels head \(2\), car \(1\); choose .* dataset\.label=head"):
        read_annotation(file)
    assert read_annotation(file, HeadMarks(label="head")).tolist() == HEADS["a"]
    with pytest.raises(DataError, match="1 of shape polygon cannot be heads"):
        read_annotation(file, HeadMarks(label="car"))
    with pytest.raises(DataError, match=r"dataset\.label=Head: no mark has this label"):
        read_annotation(file, HeadMarks(label="Head"))


def test_points_and_boxes_of_one_label_are_refused(tmp_path: Path) -> None:
    content = labelme(HEADS["a"])
    content["shapes"] += labelme([[1, 1]], shape="rectangle")["shapes"]
    file = tmp_path / "a.json"
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match="2 points and 1 box, which may mark the same heads"):
        read_annotation(file, HeadMarks(boxes=Boxes.centers))


def test_a_body_of_17_keypoints_is_no_point(tmp_path: Path) -> None:
    content = coco()
    content["categories"][0]["keypoints"] = ["nose", "left_eye", "right_eye"]
    file = tmp_path / "coco.json"
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match="3 boxes"):
        read_points_table(file)


WRONG = {
    "VOC": (
        "a.xml",
        "<annotation><filename>a.jpg</filename><object/></annotation>",
        "XML file with annotation holding",
    ),
    "entities": ("a.xml", '<!DOCTYPE a [<!ENTITY b "c">]><annotations><version/></annotations>', "declares entities"),
    "no XML": ("a.xml", "<annotations>", "not a readable XML file"),
    "CVAT, a word": ("a.xml", CVAT.replace("10.50", "ten"), "'ten' is not a number"),
    "CVAT, an image twice": ("a.xml", CVAT.replace("crowd/b", "crowd/a"), "crowd/a.jpg comes twice"),
    "CVAT, polygon": ("a.xml", CVAT.replace("<points", "<polygon").replace("</points", "</polygon"), "shape polygon"),
    "COCO, unknown image": (
        "a.json",
        json.dumps(coco() | {"annotations": [{"image_id": 7, "bbox": [1, 1, 1, 1]}]}),
        "is a damaged file of COCO: KeyError: 7",
    ),
    "Studio, two annotators": (
        "a.json",
        json.dumps([label_studio()[0] | {"annotations": 2 * label_studio()[0]["annotations"]}]),
        "2 annotations, of several annotators",
    ),
    "Studio, turned": ("a.json", json.dumps(label_studio()).replace('rotation": 0', 'rotation": 90'), "by 90 degrees"),
    "VIA, a shape": ("a.csv", VIA_CSV.replace('""name"":""point""', '""name"":""circle""'), "shape circle"),
    "VIA, no json": ("a.csv", VIA_CSV.replace("{}", "{"), "cannot be read"),
    "makesense, infinite": ("a.csv", MAKESENSE.replace("10.5", "inf"), "not finite"),
    "one image": ("a.json", json.dumps(labelme(HEADS["a"])), "LabelMe about one image, but dataset.points names"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_head_is_named(case: str, tmp_path: Path) -> None:
    name, text, message = WRONG[case]
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message) as error:
        read_points_table(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


def test_a_name_with_control_characters_is_escaped(tmp_path: Path) -> None:
    content = labelme(HEADS["a"], label="\x1b[31mhead")
    content["shapes"] += labelme([[1, 1]], label="car")["shapes"]
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(DataError) as error:
        read_annotation(tmp_path / "a.json")
    assert "\x1b" not in str(error.value)
