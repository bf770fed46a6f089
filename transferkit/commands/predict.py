"""Label images with the model of a run."""

from __future__ import annotations

from pathlib import Path

from transferkit.commands.common import Options, run_options, show, skip_hinted
from transferkit.errors import DataError
from transferkit.files import write_text


def predict(options: Options) -> None:
    """Label images with the model of a run."""
    from transferkit.predictor import Predictor, find_images, predictions_csv
    from transferkit.run_outputs import check_writable, prediction_grid, save_figure, spread
    from transferkit.saved_model import load_model

    paths: list[Path] = []
    for name in options.images:
        path = Path(name).expanduser()
        if path.suffix.lower() == ".zip" and path.is_file():
            raise DataError(f"predict takes image files and folders; unpack '{path}' and name the folder.")
        paths.extend([path] if path.is_file() else find_images(path))
    if options.out:
        check_writable(Path(options.out))
    if options.grid:
        check_writable(Path(options.grid), figure=True)
    model = load_model(options.run)
    predictor = Predictor(model, on_error=options.on_error, **run_options(options, model))
    with skip_hinted(options):
        predictions = predictor.predict_many(paths, top_k=options.top_k)
    names = [str(path) for path in paths]
    table = predictions_csv(names, predictions)
    if options.out:
        write_text(Path(options.out), table)
    if options.grid:
        labelled = [place for place, prediction in enumerate(predictions) if prediction]
        shown = [labelled[place] for place in spread(len(labelled), 16)]
        save_figure(
            Path(options.grid),
            lambda: prediction_grid(
                [paths[place] for place in shown], [predictions[place] for place in shown]
            ),
            required=True,
        )
    result = {"images": len(paths), "out": options.out}
    if options.json:
        rows = [{"path": name, "predictions": found} for name, found in zip(names, predictions, strict=True)]
        show(options, "", result | {"predictions": rows})
    else:
        show(
            options,
            f"{sum(map(bool, predictions))} images labelled in {options.out}"
            if options.out
            else table.rstrip("\n"),
            {},
        )
