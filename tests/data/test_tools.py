"""Files of annotation tools: each gives the heads that were marked, or says what is unclear."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data.folders import write_image
from data.oriented import oriented
from headcount.config import Boxes, CustomConfig
from headcount.data.annotations import read_annotation, read_points_table
from headcount.data.audit import audit_dataset
from headcount.data.crowd import CrowdDataset
from headcount.data.marks import HeadMarks
from headcount.data.open import open_split
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
        corner = {"x": x / SIZE * 100 - size / 2, "y": y / SIZE * 100 - size / 2}
        value = corner | {"width": size, "height": size, kind: ["head"]}
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


@pytest.mark.parametrize("content", [coco(boxes=True), label_studio("rectanglelabels", size=5)], ids=["COCO", "Studio"])
def test_boxes_are_counted_only_if_told_so(content: Any, tmp_path: Path) -> None:
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"it has 3 boxes; .* dataset\.boxes=centers"):
        read_points_table(file)
    found = read_points_table(file, marks=HeadMarks(boxes=Boxes.centers))
    assert [len(image.heads) for image in found.values()] == [2, 1, 0]
    (first, *_) = found.values()
    assert first.heads.tolist() == [[pytest.approx(v, abs=1e-4) for v in head] for head in HEADS["a"]]


def test_several_labels_need_a_choice(tmp_path: Path) -> None:
    content = labelme(HEADS["a"])
    content["shapes"] += labelme([[1, 1]], label="car", shape="polygon")["shapes"]
    file = tmp_path / "a.json"
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"labels head \(2\), car \(1\); choose .* dataset\.label=head"):
        read_annotation(file)
    assert read_annotation(file, HeadMarks(label="head")).heads.tolist() == HEADS["a"]
    with pytest.raises(DataError, match="1 of shape polygon cannot be heads"):
        read_annotation(file, HeadMarks(label="car"))
    with pytest.raises(DataError, match=r"dataset\.label=Head: no mark has this label"):
        read_annotation(file, HeadMarks(label="Head"))


def test_points_and_boxes_of_one_label_are_refused(tmp_path: Path) -> None:
    content = labelme(HEADS["a"])
    content["shapes"] += labelme([[1, 1]], shape="rectangle")["shapes"]
    content["shapes"][-1]["points"] = [[1, 1], [3, 4]]
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


def write_each(folder: Path, files: dict[str, Any]) -> None:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def supervisely_cars(heads: list[list[float]]) -> dict[str, Any]:
    return json.loads(json.dumps(supervisely(heads)).replace('"head"', '"car"'))


@pytest.mark.parametrize("tool", ["LabelMe", "Supervisely"])
def test_labels_are_those_of_the_whole_folder(tool: str, config: CustomConfig, tmp_path: Path) -> None:
    read, cars = OF_EACH_IMAGE[tool], {"LabelMe": labelme, "Supervisely": supervisely_cars}[tool]
    other = {"label": "car"} if tool == "LabelMe" else {}
    # No file has both labels, and that of c has none.
    files = {"a": read(HEADS["a"]), "b": cars(HEADS["b"], **other), "c": read([])}
    write_each(tmp_path / "mine", files)
    with pytest.raises(DataError, match=r"labels head \(2\), car \(1\); choose .* dataset\.label=head") as error:
        open_split(config, "train")
    assert str(error.value).count("choose the one") == 1, "one reason for all images"
    config.label = "head"
    assert heads_of(open_split(config, "train")) == {"a": HEADS["a"], "b": [], "c": []}
    config.label = "Head"
    with pytest.raises(DataError, match=r"dataset\.label=Head: no mark has this label; there are head \(2\), car"):
        open_split(config, "train")


@pytest.mark.parametrize("in_one", [True, False], ids=["one folder", "a folder of each split"])
def test_labels_are_those_of_all_splits(in_one: bool, tmp_path: Path) -> None:
    for split, content in (("train", labelme(HEADS["a"])), ("val", labelme(HEADS["b"], label="car"))):
        write_image(tmp_path / split / f"{split}.jpg", width=SIZE, height=SIZE, seed=len(split))
        folder = tmp_path / "points" if in_one else tmp_path / split
        folder.mkdir(exist_ok=True)
        write_each(folder, {split: content})
    config = CustomConfig(
        train=str(tmp_path / "train"),
        val=str(tmp_path / "val"),
        points=str(tmp_path / "points") if in_one else None,
        cache_dir=str(tmp_path / "cache"),
        min_side=SIZE,
    )
    for split in ("train", "val"):
        with pytest.raises(DataError, match=r"labels .*head \(2\)"):
            open_split(config, split)
    config.label = "head"
    assert heads_of(open_split(config, "train")) == {"train": HEADS["a"]}
    assert heads_of(open_split(config, "val")) == {"val": []}


def test_a_damaged_file_is_named_and_does_not_hide_the_labels_of_others(config: CustomConfig, tmp_path: Path) -> None:
    write_each(tmp_path / "mine", {"a": labelme(HEADS["a"]), "b": {"shapes": [{}], "imagePath": ""}, "c": labelme([])})
    with pytest.raises(DataError, match=r"1 of 3 .*\n.*b\.json is a damaged file of LabelMe: KeyError: 'label'"):
        open_split(config, "train")


VIA_ATTRIBUTES = {
    "checkbox": ({"type": {"head": True, "car": False}}, {"type": {"car": True}}),
    "a note": ({"type": "head", "note": "blurred"}, {"type": "car", "note": "sharp"}),
    "an empty note": ({"type": "head", "note": ""}, {"type": "car"}),
}


@pytest.mark.parametrize("table", [False, True], ids=["json", "csv"])
@pytest.mark.parametrize("case", VIA_ATTRIBUTES)
def test_every_attribute_of_via_is_a_label(case: str, table: bool, tmp_path: Path) -> None:
    head, car = VIA_ATTRIBUTES[case]
    shape = {"name": "point", "cx": 3, "cy": 4}
    file = tmp_path / ("via.csv" if table else "via.json")
    if table:
        cells = [json.dumps(value).replace('"', '""') for value in (shape, head, car)]
        lines = "".join(f'a.jpg,"{cells[0]}","{attributes}"\n' for attributes in cells[1:])
        file.write_text(f"filename,region_shape_attributes,region_attributes\n{lines}")
    else:
        regions = [{"shape_attributes": shape, "region_attributes": attributes} for attributes in (head, car)]
        file.write_text(json.dumps({"a.jpg9": {"filename": "a.jpg", "regions": regions}}))
    with pytest.raises(DataError, match=r"labels .*car \(1\), head \(1\).*; choose"):
        read_points_table(file)
    assert read_points_table(file, marks=HeadMarks(label="head"))["a.jpg"].heads.tolist() == [[3, 4]]


def test_one_mark_with_two_labels_needs_a_choice(tmp_path: Path) -> None:
    (tmp_path / "via.csv").write_text(VIA_CSV.replace('""type"":""head""', '""type"":""head"",""seen"":""yes""'))
    with pytest.raises(DataError, match=r"labels head \(3\), yes \(3\); choose"):
        read_points_table(tmp_path / "via.csv")


def test_an_empty_label_is_shown(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(CVAT.replace('label="head"', 'label=""', 1))
    with pytest.raises(DataError, match=r"labels \(no label\) \(2\), head \(1\); choose .* dataset\.label=head"):
        read_points_table(tmp_path / "a.xml")


OTHER_SIZE = {
    "LabelMe": ("a.json", json.dumps(labelme(HEADS["a"]) | {"imageWidth": 640, "imageHeight": 480})),
    "Supervisely": ("a.json", json.dumps(supervisely(HEADS["a"]) | {"size": {"width": 640, "height": 480}})),
    "CVAT": ("t.xml", CVAT.replace('width="64" height="64"', 'width="640" height="480"', 1)),
    "Label Studio": (
        "t.json",
        json.dumps(label_studio()).replace('width": 64', 'width": 640').replace('t": 64', 't": 480'),
    ),
    "COCO": ("t.json", json.dumps(coco()).replace('width": 64, "height": 64', 'width": 640, "height": 480', 1)),
    "makesense.ai": ("t.csv", MAKESENSE.replace("a.jpg,64,64", "a.jpg,640,480")),
}


@pytest.mark.parametrize("tool", OTHER_SIZE)
def test_positions_in_an_image_of_another_size_are_refused(tool: str, config: CustomConfig, tmp_path: Path) -> None:
    name, text = OTHER_SIZE[tool]
    (tmp_path / "mine" / name).write_text(text)
    config.points = None if tool in OF_EACH_IMAGE else str(tmp_path / "mine" / name)
    with pytest.raises(DataError, match=r"a\.jpg has 64 x 64 pixels, but .* was made on 640 x 480 pixels; annotate"):
        open_split(config, "train")


@pytest.mark.parametrize("size", [{}, {"imageWidth": None, "imageHeight": None}, {"imageWidth": 0, "imageHeight": 0}])
def test_a_file_may_hold_no_size(size: dict[str, Any], tmp_path: Path) -> None:
    write_each(tmp_path, {"a": labelme(HEADS["a"]) | size})
    found = read_annotation(tmp_path / "a.json")
    assert (found.size, found.heads.tolist()) == (None, HEADS["a"])


@pytest.mark.parametrize("upright", [True, False])
def test_the_size_is_that_of_the_image_as_it_is_read(upright: bool, config: CustomConfig, tmp_path: Path) -> None:
    folder = tmp_path / "turned"
    folder.mkdir()
    oriented(folder / "a.jpg", Image.new("RGB", (96, 64)), 6)  # 64 x 96 if turned upright
    config.root, config.exif_orientation = str(folder), upright
    right, wrong = ((64, 96), (96, 64)) if upright else ((96, 64), (64, 96))
    write_each(folder, {"a": labelme(HEADS["a"]) | dict(zip(("imageWidth", "imageHeight"), wrong, strict=True))})
    with pytest.raises(DataError, match=f"set dataset.exif_orientation={str(not upright).lower()}"):
        open_split(config, "train")
    write_each(folder, {"a": labelme(HEADS["a"]) | dict(zip(("imageWidth", "imageHeight"), right, strict=True))})
    assert heads_of(open_split(config, "train")) == {"a": HEADS["a"]}


def test_a_task_that_is_not_annotated_is_no_image_without_people(config: CustomConfig, tmp_path: Path) -> None:
    tasks = label_studio()
    tasks[1]["annotations"] = []
    file = tmp_path / "t.json"
    config.points = str(file)
    for undone in ([], [tasks[0]["annotations"][0] | {"was_cancelled": True}]):
        tasks[1]["annotations"] = undone
        file.write_text(json.dumps(tasks))
        with pytest.raises(
            DataError, match=r"1 of 3 .*\n.*b\.jpg has no annotation in .* file of Label Studio, without"
        ):
            open_split(config, "train")
    tasks[1]["annotations"] = [{"result": []}, {"was_cancelled": True, "result": [{}]}]
    file.write_text(json.dumps(tasks))
    assert heads_of(open_split(config, "train")) == HEADS | {"b": []}


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("/data/upload/1/0badcafe-my%20pic.jpg", "0badcafe-my pic.jpg"),
        ("https://bucket.s3.amazonaws.com/in/a.jpg?X-Amz-Expires=60&X-Amz-Signature=0af", "a.jpg"),
        ("/data/local-files/?d=in%2Ftwo%20words/a%2Bb.png", "a+b.png"),
        ("s3://bucket/in/50%25 #1.JPG", "50% #1.JPG"),
        ("in\\a.tif", "a.tif"),
    ],
)
def test_the_image_of_a_task_is_that_of_its_address(address: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps([label_studio()[0] | {"data": {"image": address, "note": "see it"}}]))
    assert list(read_points_table(tmp_path / "t.json")) == [name]


@pytest.mark.parametrize("ending", [".csv", ".json"])
def test_a_label_has_no_effect_on_plain_files(ending: str, config: CustomConfig, tmp_path: Path) -> None:
    config.label = "head"
    for name in HEADS:
        (tmp_path / "mine" / f"{name}{ending}").write_text("1,2\n" if ending == ".csv" else "[[1, 2]]")
    with pytest.raises(DataError, match=rf"dataset\.label=head has no effect: .*a\{ending} is no file of"):
        open_split(config, "train")
    table = tmp_path / f"t{ending}"
    table.write_text("image,x,y\na,1,2\n" if ending == ".csv" else '{"a": [[1, 2]]}')
    config.points = str(table)
    with pytest.raises(DataError, match=rf"dataset\.label=head has no effect: .*t\{ending} is no file of"):
        open_split(config, "train")


def labelme_points(positions: Any, shape: str = "point") -> str:
    return json.dumps(labelme([]) | {"shapes": [{"label": "head", "points": positions, "shape_type": shape}]})


DAMAGED = {
    "no position": (labelme_points([]), "a point has 0 positions, expected 1"),
    "two positions": (labelme_points([[1, 2], [3, 4]]), "a point has 2 positions, expected 1"),
    "no list": (labelme_points(3), "a point has no list of positions"),
    "three numbers": (labelme_points([[1, 2, 3]]), r"'\[1, 2, 3\]' is not a position"),
    "one corner": (labelme_points([[1, 2]], "rectangle"), "a rectangle has 1 positions, expected 2 or 4"),
    "flat": (labelme_points([[1, 2], [1, 5]], "rectangle"), "1 of shape box without area"),
    "beyond float32": (labelme_points([[1e308, 2]]), "not finite"),
    "beyond float64": (labelme_points([[-1e308, 2], [1e308, 3]], "rectangle"), "not finite"),
    "an integer": (labelme_points([[10**400, 2]]), "damaged file of LabelMe: OverflowError"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_of_one_image(case: str, tmp_path: Path) -> None:
    text, message = DAMAGED[case]
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_annotation(tmp_path / "a.json", HeadMarks(boxes=Boxes.centers))


@pytest.mark.parametrize("corners", [[[3, 9], [1, 5]], [[1, 5], [3, 5], [3, 9], [1, 9]]])
def test_a_rectangle_has_two_or_four_corners(corners: list[list[int]], tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(labelme_points(corners, "rectangle"))
    assert read_annotation(tmp_path / "a.json", HeadMarks(boxes=Boxes.centers)).heads.tolist() == [[2, 7]]


def coco_of(**changes: Any) -> str:
    content = coco(boxes=True)
    content["annotations"][0] |= changes
    return json.dumps(content)


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
        "is a damaged file of COCO: an annotation has image_id 7, which no image has",
    ),
    "COCO, a crowd": ("a.json", coco_of(iscrowd=1), "1 mark with iscrowd=1 can stand for any number of heads"),
    "COCO, negative width": ("a.json", coco_of(bbox=[9, 9, -2, 4]), "1 of shape box without area cannot be heads"),
    "COCO, zero height": ("a.json", coco_of(bbox=[9, 9, 2, 0]), "1 of shape box without area cannot be heads"),
    "CVAT, two corners the same": (
        "a.xml",
        "<annotations><image name='a.jpg'><box label='head' xtl='1' ytl='2' xbr='1' ybr='5'/></image></annotations>",
        "1 of shape box without area",
    ),
    "CVAT for video": (
        "a.xml",
        "<annotations><version>1.1</version><track id='0' label='head'><points frame='0' points='1,2'/></track>"
        "</annotations>",
        "CVAT for video, which is not read; export it as 'CVAT for images 1.1'",
    ),
    "Studio, two images": (
        "a.json",
        json.dumps([label_studio()[0] | {"data": {"left": "/d/a.jpg", "right": "/d/b.jpg?x=1"}}]),
        r"a task has 2 images \(a\.jpg, b\.jpg\); export tasks of one image",
    ),
    "Studio, no image": (
        "a.json",
        json.dumps([label_studio()[0] | {"data": {"text": "good morning"}}]),
        "a task has no image; export tasks of one image",
    ),
    "Studio, two sizes": (
        "a.json",
        json.dumps(label_studio()).replace('width": 64', 'width": 65', 1),
        "a.jpg has two sizes, 65 x 64 and 64 x 64 pixels",
    ),
    "makesense, two sizes": ("a.csv", MAKESENSE.replace("a.jpg,64", "a.jpg,65", 1), "a.jpg has two sizes"),
    "makesense, half a pixel": ("a.csv", MAKESENSE.replace("64,64", "64,64.5", 1), "not the size of an image"),
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
