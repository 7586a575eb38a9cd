#!/usr/bin/env python3
"""The table of values in the chart's README, made from the comments in values.yaml.

    tests/chart/values_table.py            prints the table
    tests/chart/values_table.py --write    puts it into README.md

A value is a key with something behind the colon; the comment lines right above it are its text. One without any is an
error, so that no value is left undocumented. A key with nothing behind the colon is a group.
"""

import re
import sys
from pathlib import Path

CHART = Path(__file__).resolve().parents[2] / "charts/larder"
BEGIN = "<!-- values: begin (made by tests/chart/values_table.py --write) -->\n"
END = "<!-- values: end -->\n"
LINE = re.compile(r"(?P<indent> *)(?P<key>[A-Za-z0-9_]+):(?: (?P<value>\S.*))?")


class Unreadable(Exception):
    """A value has no comment, or a line is none that this reader knows."""


def documented(text):
    """(path, default, what the comment says) of every value in `text`, which is YAML with one key a line."""
    values, groups, comment = [], [], []
    for number, line in enumerate(text.splitlines(), 1):
        match = LINE.fullmatch(line)
        if not line.strip():
            comment = []
        elif line.lstrip().startswith("# "):
            comment.append(line.strip()[2:])
        elif match is None:
            raise Unreadable(f"values.yaml:{number}: write one value a line: key: value")
        else:
            groups = [group for group in groups if group[0] < len(match["indent"])]
            path = ".".join([key for _, key in groups] + [match["key"]])
            if match["value"] is None:
                groups.append((len(match["indent"]), match["key"]))
            elif not comment:
                raise Unreadable(f"values.yaml:{number}: {path} has no comment above it")
            else:
                values.append((path, match["value"], " ".join(comment)))
            comment = []
    return values


def table(values):
    """Markdown of the values."""
    rows = [f"| `{path}` | `{default}` | {text.replace('|', chr(92) + '|')} |\n" for path, default, text in values]
    return "".join(["| value | default | |\n", "|---|---|---|\n", *rows])


def with_table(readme, made):
    """`readme` with the table that was made in the place of the one it has."""
    before, rest = readme.split(BEGIN)
    return before + BEGIN + made + END + rest.split(END)[1]


def main():
    made = table(documented((CHART / "values.yaml").read_text()))
    if sys.argv[1:] == ["--write"]:
        readme = CHART / "README.md"
        readme.write_text(with_table(readme.read_text(), made))
    elif sys.argv[1:]:
        sys.exit(__doc__)
    else:
        print(made, end="")


if __name__ == "__main__":
    main()
