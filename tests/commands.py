"""The command line in the tests' own process."""

import sys

from birdtpu import cli


def command(capsys, *args: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `birdtpu ARGS`."""
    before, sys.argv = sys.argv, ["birdtpu", *map(str, args)]
    try:
        cli.main()
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        sys.argv = before
    out = capsys.readouterr()
    return code, out.out, out.err
