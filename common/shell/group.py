"""Classes of the command line: commands under headings, errors as sentences, `--traceback`."""

from __future__ import annotations

import os
import traceback
from contextlib import suppress
from typing import Any

import click

from common.config.module import own_frames
from common.errors import UserError
from common.shell import failure, options, package, public
from common.stopping import exit_code
from common.talk import misspelt, note

WHOLE_TRACEBACK = "common.shell.whole_traceback"
"""Key in the context of click, which group and commands share."""


ENVIRONMENT = ("CELLMAP_DATA", "CELLMAP_CACHE", "CSC_TEST_CROP_MANIFEST_URL")
"""Variables of the environment by which commands find things; others of such names are told."""


def _ask_for_traceback(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.meta[WHOLE_TRACEBACK] = True


def _traceback_option(hidden: bool) -> click.Option:
    return click.Option(
        ["--traceback"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        hidden=hidden,
        callback=_ask_for_traceback,
        help="Show the whole traceback of an error. Goes before or after the command.",
    )


def _show_version(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"{package.NAME} {package.version()}")
        context.exit()


def _version_option() -> click.Option:
    return click.Option(
        ["--version"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_show_version,
        help="Show the version.",
    )


class Command(click.Command):
    """A command that stands under a heading and takes --traceback."""

    def __init__(self, *args: Any, heading: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self.heading = heading
        # one line in the overview is enough for an option that every command takes
        self.params.append(_traceback_option(hidden=True))
        public.add_options(self)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the words; values along axes may be separated by spaces, as in the toolbox."""
        words = options.joined_axes(self.params, args)
        # click takes away from what it is given
        rest = super().parse_args(ctx, list(words))
        options.refuse_empty(ctx)
        options.refuse_repeated(ctx, words)
        return rest

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, with options of the public toolbox translated into ours."""
        public.translate(ctx)
        return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write our options, then those of the public toolbox that are translated."""
        super().format_options(ctx, formatter)
        rows = []
        for param in self.params:
            if param.name and param.name.startswith(public.PREFIX):
                assert isinstance(param, click.Option)
                rows.append((", ".join(param.opts), param.help or ""))
        if rows:
            with formatter.section("Options of the public toolbox"):
                formatter.write_dl(rows)

    def summary(self) -> str:
        """Return the first paragraph of the help, uncut: click's own ends with '...'."""
        paragraph = (self.help or "").strip().partition("\n\n")[0]
        return " ".join(paragraph.split())


class Commands(click.Group):
    """The commands, listed as they are declared, under their headings."""

    command_class = Command

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.params += [_version_option(), _traceback_option(hidden=False)]

    def list_commands(self, _: click.Context) -> list[str]:
        """Return the names of the commands in the order of their declaration."""
        return list(self.commands)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands heading by heading."""
        rows: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            assert isinstance(command, Command)
            rows.setdefault(command.heading, []).append((name, command.summary()))
        for heading, commands in rows.items():
            with formatter.section(heading):
                formatter.write_dl(commands)

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write how to get the help of a command."""
        formatter.write_paragraph()
        formatter.write_text(
            f"Type `{context.command_path} COMMAND --help` for a command's options."
        )

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command. Raises UserError for one that only the public toolbox has."""
        if args and args[0] in public.ANSWERS:
            raise UserError(public.ANSWERS[args[0]])
        return super().resolve_command(ctx, args)

    def invoke(self, context: click.Context) -> Any:
        """Run a command; an error that is no bug ends it with a sentence."""
        ours = [name for name in os.environ if name.startswith(("CELLMAP", "CSC_"))]
        for name, meant in misspelt(ours, ENVIRONMENT).items():
            note(f"nothing reads the variable {name} of the environment; did you mean {meant}?")
        try:
            return super().invoke(context)
        except KeyboardInterrupt as stopped:
            if str(stopped):
                click.echo(stopped, err=True)
            context.exit(exit_code(stopped))
        except SystemExit as ended:
            # a command of ours ends so; a network or loss that does would look like success
            if not own_frames(ended):
                raise
            click.echo(failure.own_lines(ended), err=True)
            context.exit(1)
        except Exception as error:
            whole = context.meta.get(WHOLE_TRACEBACK, False)
            answer = failure.answer(error, whole)
            if answer is None:
                unmet = _unmet()
                if not unmet:
                    raise
                lines = [*traceback.format_exception(error), *unmet]
                click.echo("".join(lines).rstrip(), err=True)
                context.exit(1)
            click.echo(answer.text, err=True)
            context.exit(answer.exit_code)


def _unmet() -> list[str]:
    """Return a line for each package that is another than this one asks for, behind a traceback."""
    lines = []
    with suppress(ImportError):
        lines += [f"{text}, which may be why; install that\n" for text in package.unmet()]
    return lines
