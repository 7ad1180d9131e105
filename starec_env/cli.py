"""The `starec` command: a table of sub-commands, each imported only when it is called."""

import sys
import warnings
from importlib import import_module
from typing import Any

import click

from starec_env.errors import StarecError, unknown

COMMANDS = {
    "demo": ("starec_eval.demo:demo", "The whole cycle on this machine, in a few minutes."),
    "data": ("starec_env.data.commands:data", "List, fetch and check data sets."),
    "serve": ("starec_agents.serving.serve:serve_command", "Serve a model on this machine, OpenAI-compatible."),
    "simulate": ("starec_agents.commands:simulate", "Run a population of user agents through their streams."),
    "show": ("starec_agents.commands:show", "Print one user's trace from a run."),
    "train": ("starec_training.commands:train", "Train the agent: teacher's rows, SFT, GRPO in rounds."),
    "eval": ("starec_eval.commands:eval_command", "Compare rankers on the same saved candidates."),
    "fidelity": (
        "starec_eval.fidelity.commands:fidelity_command",
        "A report card of simulated users on held-out real data.",
    ),
    "loop": ("starec_eval.loop.commands:loop_command", "Recommenders act, simulated users answer, over rounds."),
    "report": ("starec_eval.report:report", "One HTML file on runs: tables, figures and users' timelines."),
}
"""Sub-command -> ("module:function", one line of help)."""

INTERRUPTED = 130
"""Exit status after Ctrl-C."""


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            ctx.fail(str(unknown("command", cmd_name, COMMANDS)))
        module, function = COMMANDS[cmd_name][0].split(":")
        command = getattr(import_module(module), function)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # click's own version imports every command for its help line.
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.command(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="starec")
def starec() -> None:
    """Simulate recommender-system users with LLM agents that learn, and evaluate and train those agents.

    Example: starec simulate --dataset ml-latest-small --users 8 --turns 3 --base-url http://localhost:8000/v1
    --model smollm2 --out runs/first
    """


def _show_warning(message: Warning | str, *args: Any) -> None:
    click.echo(f"starec: {message}", err=True)


def main(args: list[str] | None = None) -> None:
    """Run the command line: exit 0 when complete, 130 on Ctrl-C, else another number with a reason on stderr."""
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    try:
        sys.exit(starec.main(args=args, prog_name="starec", standalone_mode=False) or 0)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.exceptions.Abort):
        given = sys.argv[1:] if args is None else args
        kept = given[:1] in (["simulate"], ["eval"], ["fidelity"], ["loop"]) and "--out" in given
        hint = ": what was done is kept, and the same command with --resume goes on from there" if kept else ""
        click.echo(f"interrupted{hint}", err=True)
        sys.exit(INTERRUPTED)
    except StarecError as error:
        click.echo(f"starec: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
