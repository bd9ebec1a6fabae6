"""The figures that people read are those that `make bench` measured."""

import json

from tests.benchmarks.__main__ import README, RESULTS, SHOWN, render, show


def test_page_and_readme_say_what_was_measured() -> None:
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    readme = README.read_text(encoding="utf-8")
    assert RESULTS.with_suffix(".md").read_text(encoding="utf-8") == render(results)
    assert readme == show(readme, results)
    assert {row["number"] for report in results.values() for row in report["rows"]} >= set(SHOWN)


def test_a_new_figure_comes_into_the_table_and_nothing_else_changes() -> None:
    row = {"number": "5", "what": "counts", "against": "another", "value": "7x", "target": ">= 3x"}
    shown = show("before\n<!-- by make bench -->\nold\n<!-- to here -->\nafter\n", {"scoring": {"rows": [row]}})
    assert shown.startswith("before\n<!-- by make bench -->\n\n| what ")
    assert "| counts | another | 7x | >= 3x |\n\n<!-- to here -->\nafter\n" in shown
    assert "old" not in shown
