"""Predict in batches from a DataLoader through a float32 model."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks import images, models
from benchmarks.variants.predict_options import read_options, tell


class Photos(Dataset[Tensor]):
    """The images of a folder, transformed."""

    def __init__(self, paths: list[Path], image_size: int) -> None:
        self.paths = paths
        self.transform = transforms.Compose(
            [
                transforms.Resize(image_size * 256 // 224),
                transforms.CenterCrop(image_size),
                transforms.ToTensor(),
                transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image: Tensor = self.transform(Image.open(self.paths[index]).convert("RGB"))
        return image


def main() -> None:
    options = read_options(__doc__)
    model = models.load(options.backbone, options.weights, options.image_size).to(options.device).eval()

    started = time.perf_counter()
    photos = Photos(images.find_photos(options.photos), options.image_size)
    labels: list[int] = []
    with torch.no_grad():
        for batch in DataLoader(photos, options.batch_size, num_workers=options.workers):
            scores = model(batch.to(options.device)).softmax(dim=1)
            labels += scores.argmax(dim=1).tolist()
    tell(labels, time.perf_counter() - started)


if __name__ == "__main__":
    main()
