"""The command line of an OCI runtime: `RUNTIME [global options] SUBCOMMAND [options] [CONTAINER-ID] [more]`.

runc (urfave/cli) and crun (argp) agree on what matters here: `--opt value` and `--opt=value` mean the same, options of
the runtime itself stand before the subcommand, and for the subcommands that we work on the container's ID is the first
word that is neither an option nor an option's value. What we don't know is kept verbatim and in its place.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

# Options that take their value from the next word, from runc's and crun's man pages; a name means the same in both.
GLOBAL_VALUES = frozenset(
    {"--log", "--log-format", "--log-level", "--root", "--criu", "--rootless", "--cgroup-manager"}
)
_COMMAND_VALUES = frozenset({
    "--bundle", "--console-socket", "--pid-file", "--preserve-fds", "--config",  # create, run, restore
    "--image-path", "--work-path", "--parent-path", "--status-fd", "--page-server",  # checkpoint, restore
    "--manage-cgroups-mode", "--empty-ns", "--network-lock",
    "--lsm-profile", "--lsm-mount-context", "--user",
})  # fmt: skip
# One letter with a value, and the long name that it stands for.
_SHORT_VALUES = {"-b": "--bundle", "-f": "--config"}
_SHORT_FLAGS = {"-d": "--detach", "-h": "--help", "-v": "--version"}


class Word(NamedTuple):
    """One option as it stood on the command line: its long name, its value (None: a flag), its words verbatim."""

    name: str
    value: str | None
    words: tuple[str, ...]


class Call(NamedTuple):
    """One command line, taken apart. `options` stand before the subcommand, `arguments` after it, both verbatim."""

    options: tuple[str, ...]
    subcommand: str
    arguments: tuple[str, ...]

    @property
    def root(self) -> str | None:
        """`--root`: the folder where the next runtime keeps its state; None: its own default."""
        return _last(_words(self.options, GLOBAL_VALUES), "--root")

    @property
    def log(self) -> str | None:
        """`--log`: the file that gets error lines beside stderr."""
        return _last(_words(self.options, GLOBAL_VALUES), "--log")

    @property
    def log_format(self) -> str:
        """`--log-format`: "text", runc's default, or "json"."""
        return _last(_words(self.options, GLOBAL_VALUES), "--log-format") or "text"

    @property
    def id(self) -> str:
        """The container's ID, or "" where the call names none."""
        return next((word.words[0] for word in _words(self.arguments, _COMMAND_VALUES) if word.name == ""), "")

    def option(self, name: str) -> str | None:
        """The value of the subcommand's option `name` (long form, like "--bundle"), the last one if it stands twice."""
        return _last(_words(self.arguments, _COMMAND_VALUES), name)

    def flag(self, name: str) -> bool:
        """Whether the subcommand's switch `name` is on: `--name`, or `--name=true` as Go's flag package reads it."""
        answer = False
        for word in _words(self.arguments, _COMMAND_VALUES):
            if word.name == name:
                answer = word.value is None or word.value in ("1", "t", "T", "true", "TRUE", "True")
        return answer

    def rebuilt(
        self,
        *,
        add: Sequence[str] = (),
        remove: Collection[str] = (),
        replace: Mapping[str, str] | None = None,
        subcommand: str | None = None,
    ) -> list[str]:
        """This call's words (without a program's name) with the subcommand's options changed.

        `add`: words put right after the subcommand. `remove`: long names of options that go, with their values.
        `replace`: long name to new value, put where the option stood, or added where there was none.
        """
        new = dict(replace or {})
        left: list[str] = []
        for word in _words(self.arguments, _COMMAND_VALUES):
            if word.name and word.name in new:
                continue
            if not word.name or word.name not in remove:
                left += word.words
        changed = [part for pair in new.items() for part in pair]
        name = subcommand or self.subcommand
        return [*self.options, *([name] if name else []), *changed, *add, *left]


def parse(words: Sequence[str]) -> Call:
    """Take `words` (sys.argv without the program's name) apart; a call without a subcommand has "" for it."""
    at = 0
    while at < len(words):
        word = words[at]
        if word == "--":
            at += 1
            break
        if not word.startswith("-") or word == "-":
            break
        at += 2 if word in GLOBAL_VALUES or "-" + word in GLOBAL_VALUES else 1
    if at >= len(words):
        return Call(tuple(words), "", ())
    return Call(tuple(words[:at]), words[at], tuple(words[at + 1 :]))


def _words(words: Sequence[str], valued: Collection[str]) -> Iterator[Word]:
    """The options among `words` under their long names, and every other word with the name ""."""
    at = 0
    only_words = False
    while at < len(words):
        word = words[at]
        at += 1
        if only_words or not word.startswith("-") or word == "-":
            yield Word("", None, (word,))
            continue
        if word == "--":
            only_words = True
            yield Word("--", None, (word,))
            continue
        name, equals, value = word.partition("=")
        if not name.startswith("--") and "-" + name in valued:
            name = "-" + name  # Go's flag package takes one dash for two
        name = _SHORT_VALUES.get(name, _SHORT_FLAGS.get(name, name))
        if equals:
            yield Word(name, value, (word,))
        elif name in valued and at < len(words):
            yield Word(name, words[at], (word, words[at]))
            at += 1
        elif word[:2] in _SHORT_VALUES and len(word) > 2:
            yield Word(_SHORT_VALUES[word[:2]], word[2:], (word,))  # crun: -bDIR
        else:
            yield Word(name, None, (word,))


def _last(words: Iterator[Word], name: str) -> str | None:
    answer = None
    for word in words:
        if word.name == name:
            answer = word.value
    return answer
