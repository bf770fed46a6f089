"""Predict as tutorials write it: one image after another through a float32 model."""

from __future__ import annotations

import time

import torch
from PIL import Image
from torchvision import transforms

from benchmarks import images, models
from benchmarks.variants.predict_options import read_options, tell


def main() -> None:
    options = read_options(__doc__)
    transform = transforms.Compose(
        [
            transforms.Resize(options.image_size * 256 // 224),
            transforms.CenterCrop(options.image_size),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    model = models.load(options.backbone, options.weights, options.image_size).to(options.device).eval()

    started = time.perf_counter()
    labels = []
    with torch.no_grad():
        for path in images.find_photos(options.photos):
            image = transform(Image.open(path).convert("RGB")).unsqueeze(0).to(options.device)
            scores = model(image).softmax(dim=1)
            labels.append(scores.argmax(dim=1).item())
    tell(labels, time.perf_counter() - started)


if __name__ == "__main__":
    main()
