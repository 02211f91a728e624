"""``python -m bench`` is the command ``bench``."""

from bench.cli import main

raise SystemExit(main())
