"""Recording rules and alerts as a table: `python -m alerts` writes alerts/rules/*.yml, and the tests of promtool."""
