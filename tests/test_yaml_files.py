"""YAML files: what is none, or what would mean gigabytes, is refused with its line."""

import pytest

from pipeline.errors import InputError
from pipeline.yaml_files import read_yaml


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [1\nb: 2", "line 2: expected ',' or ']', but got ':'"),
        ("a:\n - b\n  c: d", "line 3: mapping values are not allowed here"),
        ("a: \0", "special characters are not allowed"),
        ("a: 1\na: 2", "the key a twice, on line 1 or below"),
        ("a: !!python/object:os.system {}", "an anchor, a tag, 20 levels"),
    ],
)
def test_what_is_no_yaml_is_refused_with_its_line_and_the_cure(tmp_path, text, reason):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError, match=r"a\.yaml: cannot be read as YAML \(.*\); mend it, or restore it") as refusal:
        read_yaml(tmp_path / "a.yaml")
    assert reason in str(refusal.value)
    assert "\n" not in str(refusal.value)
