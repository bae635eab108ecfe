"""Photos, pairs about them, and small question files for Object HalBench and POPE."""

import base64
import io
import json
from pathlib import Path

from PIL import Image, ImageDraw

from rlhfv_ray.data import write_pairs
from rlhfv_ray.records import PreferencePair

PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "photos"  # beside the repository
OBJECTS = ("person", "dog", "chair", "car", "cat", "bench")


def photos(count: int) -> list[bytes]:
    """Real photos as JPEG files where they are to be had, else drawn ones of photo size."""
    files = sorted(PHOTOS.glob("*.jpg"))[:count]
    return [file.read_bytes() for file in files] if len(files) == count else drawn(count)


def drawn(count: int) -> list[bytes]:
    """JPEG files of 640 x 480 pixels, each another colour and shape."""
    images = []
    for number in range(count):
        image = Image.new("RGB", (640, 480), (20 * number % 256, 120, 200))
        box = (40 + 10 * number, 60, 240 + 10 * number, 300)
        ImageDraw.Draw(image).ellipse(box, fill=(200, 30 * number % 256, 40))
        stream = io.BytesIO()
        image.save(stream, "JPEG")
        images.append(stream.getvalue())
    return images


def write_photo_pairs(path: Path, count: int = 16) -> Path:
    """Write pairs whose rejected answer names an object that the chosen one does not."""
    pairs = []
    for number, photo in enumerate(photos(count)):
        named, added = OBJECTS[number % 6], OBJECTS[(number + 1) % 6]
        chosen = f"There is a {named} in the picture."
        rejected = f"There is a {named} and a {added} in the picture."
        question = "Describe the picture."
        pairs.append(PreferencePair(f"photo:{number}", photo, question, chosen, rejected))
    write_pairs(pairs, path)
    return path


def write_benchmarks(folder: Path, count: int = 6) -> list[str]:
    """Write both benchmarks' files; returns the flags that name them."""
    images, annotations = folder / "images", folder / "annotations"
    images.mkdir(parents=True)
    annotations.mkdir()
    names = {number + 1: f"COCO_val2014_{number + 1:012d}.jpg" for number in range(count)}
    objects = {image: OBJECTS[image % 6] for image in names}
    lines = []
    for image, photo in zip(names, photos(count), strict=True):
        (images / names[image]).write_bytes(photo)
        row = {"image_id": image, "question": "Describe this image in detail."}
        lines.append(json.dumps({**row, "image": base64.b64encode(photo).decode()}))
    (folder / "halbench.jsonl").write_text("\n".join(lines) + "\n")
    categories = [{"id": number, "name": name} for number, name in enumerate(OBJECTS)]
    instances = [
        {"id": image, "image_id": image, "category_id": OBJECTS.index(name)}
        for image, name in objects.items()
    ]
    captions = [
        {"id": image, "image_id": image, "caption": f"A {name}."} for image, name in objects.items()
    ]
    for split, some in (("val2014", True), ("train2014", False)):
        content = {"categories": categories, "annotations": instances if some else []}
        (annotations / f"instances_{split}.json").write_text(json.dumps(content))
        content = {"annotations": captions if some else []}
        (annotations / f"captions_{split}.json").write_text(json.dumps(content))
    questions = [
        {
            "question_id": number,
            "image": names[image],
            "text": f"Is there a {OBJECTS[(image + number) % 6]} in the image?",
            "label": "yes" if number % 6 == 0 else "no",
        }
        for number, image in enumerate(names)
    ]
    pope = "".join(json.dumps(question) + "\n" for question in questions)
    (folder / "coco_pope_random.json").write_text(pope)
    return [
        *("--object-halbench.mode", "rule"),
        *("--object-halbench.questions", str(folder / "halbench.jsonl")),
        *("--object-halbench.annotations", str(annotations)),
        *("--pope.questions", str(folder), "--pope.images", str(images)),
    ]
