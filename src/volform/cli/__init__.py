"""The command line: `volform evidence model.py:function --data data.json`."""

from volform.cli.command import main as main
