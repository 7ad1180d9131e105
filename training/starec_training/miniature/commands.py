"""`starec train miniature`: from nothing to a finished table, on two cores."""

from __future__ import annotations

from pathlib import Path

import click

from starec_env.errors import MissingExtra


@click.command(context_settings={"show_default": True})
@click.option("--dataset", default="ml-latest-small", help="A data set with titles: starec data list.")
@click.option("--data-dir", type=click.Path(exists=True), help="Folder of the data set, if it isn't bundled.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), default=60.0, help="For everything.")
@click.option("--seeds", type=click.IntRange(min=1), default=3, help="How often the whole is repeated.")
@click.option("--users", type=click.Choice(["validation", "test"]), default="test", help="Whom to judge by.")
@click.option("--processes", type=click.IntRange(min=1), default=2, help="Jobs at a time, one core each.")
@click.option("--nano", type=click.Path(path_type=Path), help="Instead, train starec-nano anew into this folder.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/miniature"), help="Folder of the results.")
def miniature(
    dataset: str,
    data_dir: str | None,
    minutes: float,
    seeds: int,
    users: str,
    processes: int,
    nano: Path | None,
    out: Path,
) -> None:
    """Train a small language model from nothing, sharpen it in several ways, and print what each was worth.

    Called again with the same folder, it goes on with the jobs that aren't finished.
    Example: starec train miniature --minutes 60
    """
    try:
        import tokenizers  # noqa: F401
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError:
        raise MissingExtra("the miniature", "train") from None
    if nano:
        from starec_training.miniature.nano import make

        return make(nano)
    from starec_training.miniature.experiment import run

    options = {"dataset": dataset, "data_dir": data_dir, "minutes": minutes, "seeds": seeds, "processes": processes}
    try:
        text = run(out, users=users, tell=lambda line: click.echo(line, err=True), **options)  # type: ignore[arg-type]
    except KeyboardInterrupt:
        click.echo(f"finished jobs are kept in {out}: the same command goes on with the others", err=True)
        raise
    click.echo(text)
    click.echo(f"all results: {out}", err=True)
