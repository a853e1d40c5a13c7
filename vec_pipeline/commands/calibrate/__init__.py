"""Fit the thresholds of flags, and a probability that a row is wrong, to rows that people have marked."""

import argparse
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from vec_pipeline.calibration import Calibration, calibration_path
from vec_pipeline.commands import add_csv_argument, path, writing
from vec_pipeline.record import UserError
from vec_pipeline.terminal import plural

if TYPE_CHECKING:
    from vec_pipeline.commands.calibrate.fitting import Model, Threshold
    from vec_pipeline.commands.calibrate.labels import Marked

LEAST_ROWS, LEAST_OF_EACH = 50, 10
MOST_CHOSEN = 0.65  # ROC AUC of confidence, by which marked rows are told from the others; about 0.5 at random
PICTURES = {"reliability.svg": "reliability", "roc.svg": "roc"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_csv_argument(parser)
    parser.add_argument(
        "--false-alarms",
        type=share,
        default=0.05,
        metavar="SHARE",
        help="of the right rows, how many each flag may be raised for (default: %(default)s)",
    )
    parser.add_argument(
        "--out", type=path, metavar="DIR", help="draw the reliability diagram and the ROC curve, as SVG files"
    )


def share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share, from 0 to below 1")
    return value


def run(options: argparse.Namespace) -> int:
    from vec_pipeline.commands.calibrate.fitting import fitted_model, fitted_thresholds
    from vec_pipeline.commands.calibrate.labels import marked_rows

    if options.out:
        check_drawing(options.out)
    rows = marked_rows(options.csv)
    print(counts(rows))
    check(rows, options.csv)
    model = fitted_model(rows.features(), rows.is_wrong)
    thresholds = fitted_thresholds(rows, options.false_alarms)
    if note := choice(rows):
        print(f"\n{note}")
    print("", table_of_thresholds(thresholds, rows), "", table_of_figures(model), "", sep="\n")
    if not model.tells:
        raise UserError(
            f"the signals do not tell right from wrong (ROC AUC {model.figures['roc_auc']}), and nothing was written: "
            "mark more rows, or add read_text and embed_image, which find more"
        )
    found = Calibration(
        thresholds={each.option: each.value for each in thresholds if each.tells},
        intercept=model.intercept,
        terms=model.terms,
        made=datetime.now().isoformat(timespec="seconds"),
        labels={"right": rows.right, "wrong": rows.wrong},
        figures={name: [round(each, 3) for each in figure] for name, figure in model.figures.items()},
        stages=rows.stages,
    )
    with writing(calibration_path(options.csv)) as file:
        file.write(found.text().encode())
    print(f"{calibration_path(options.csv)}: set it as `calibration` of flag, then `run --refresh` updates the rows")
    if options.out:
        draw(options.out, model, rows)
    return 0


def check_drawing(out: Path) -> None:
    """Raise UserError where pictures cannot be drawn."""
    from vec_pipeline.commands.stats.drawing import require

    require("calibrate --out")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: name a folder with --out")


def draw(out: Path, model: "Model", rows: "Marked") -> None:
    from vec_pipeline.commands.calibrate import pictures

    for name, function in PICTURES.items():
        with writing(out / name) as file:
            file.write(getattr(pictures, function)(model.out_of_fold, rows.is_wrong))
    print(f"{' and '.join(PICTURES)} in {out}")


def counts(rows: "Marked") -> str:
    """How many rows are marked, and which marks do not count."""
    lines = [f"{plural(rows.right + rows.wrong, 'marked row')}: {rows.right:,} right, {rows.wrong:,} wrong"]
    lines += [f"{plural(rows.gone, 'mark')} of pictures that have no row any more"] if rows.gone else []
    lines += (
        [f"{plural(rows.doubles, 'row')} with the same values as another one: counted once"] if rows.doubles else []
    )
    lines += [f"{plural(rows.empty, 'marked row')} without any signal: not used"] if rows.empty else []
    lines += (
        [f"{plural(rows.refreshed, 'marked row')} refreshed after a correction: not used"] if rows.refreshed else []
    )
    return "\n".join(lines)


def choice(rows: "Marked") -> str:
    """That the marked rows are other ones than a choice at random would have given; empty where they are not."""
    import numpy as np

    from vec_pipeline.commands.calibrate.fitting import roc_auc

    own = rows.signals["text_confidence"]
    own = own[~np.isnan(own)]
    if min(len(own), len(rows.others)) < LEAST_ROWS:
        return ""
    is_marked = np.arange(len(own) + len(rows.others)) < len(own)
    if roc_auc(-np.concatenate([own, rows.others]), is_marked) < MOST_CHOSEN:
        return ""
    return (
        f"The marked rows have a lower text_confidence than the others (medians {np.median(own):.4f} and "
        f"{np.median(rows.others):.4f}): all figures are of rows like these; mark some at random, too."
    )


def check(rows: "Marked", csv_path: Path) -> None:
    """Raise UserError where there are too few marks, which says how many are missing."""
    missing = {"right": LEAST_OF_EACH - rows.right, "wrong": LEAST_OF_EACH - rows.wrong}
    of_each = {name: number for name, number in missing.items() if number > 0}
    more = max(LEAST_ROWS - rows.right - rows.wrong, sum(of_each.values()))
    if more > 0:
        parts = ", ".join(f"at least {number} of them {name}" for name, number in of_each.items())
        raise UserError(
            f"calibrate needs {LEAST_ROWS} marked rows, with {LEAST_OF_EACH} right and {LEAST_OF_EACH} wrong ones: "
            f"mark {more} more{', ' + parts if parts else ''}, on /review of `vec-pipeline serve --csv {csv_path}`"
        )


def table_of_thresholds(thresholds: "list[Threshold]", rows: "Marked") -> str:
    lines = [f"{'threshold':<22}{'now':>8}{'fitted':>9}{'wrong rows caught':>19}{'right rows flagged':>20}"]
    for each in thresholds:
        shares = f"{each.value:>9.4g}{each.caught:>19.0%}{each.alarms:>20.0%}"
        lines.append(
            f"{each.option:<22}{getattr(rows.flag, each.option):>8.4g}"
            + (shares if each.tells else f"{'-':>9}   it does not tell right from wrong, and is left as it is")
        )
    return "\n".join(lines)


def table_of_figures(model: "Model") -> str:
    names = {"roc_auc": "ROC AUC", "brier": "Brier score", "calibration_error": "expected calibration error"}
    lines = [f"{'p_wrong of rows that it was not fitted to':<50}   95 % interval"]
    for name, (value, low, high) in model.figures.items():
        lines.append(f"  {names[name]:<40}{value:>8.3f}   {low:.3f} to {high:.3f}")
    lines.append(f"  {'... of a perfectly calibrated one':<40}{model.least_error:>8.3f}")
    lines += ["", f"{'signal':<22}{'weight':>8}"]
    lines += [f"  {name:<20}{term.weight:>8.2f}" for name, term in model.terms.items()]
    return "\n".join(lines)
