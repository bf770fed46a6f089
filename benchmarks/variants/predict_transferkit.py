"""Predict a folder with transferkit's Predictor."""

from __future__ import annotations

import time

import transferkit as tk
from benchmarks import images
from benchmarks.variants.predict_options import read_options, tell


def main() -> None:
    options = read_options(__doc__)
    model = tk.load_backbone(options.backbone, weights=options.weights, image_size=options.image_size)
    predictor = tk.Predictor(
        model, device=options.device, precision=options.precision, batch_size=options.batch_size
    )
    started = time.perf_counter()
    predictions = predictor.predict_many(images.find_photos(options.photos), top_k=1)
    tell([prediction[0]["label"] for prediction in predictions], time.perf_counter() - started)


if __name__ == "__main__":
    main()
