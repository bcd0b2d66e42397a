"""Tables as files: what is written is what is read again."""

import pandas as pd
import pytest

from dgg_ray.analysis.table_files import write_csv, write_sorted

MIXED = pd.DataFrame(
    {
        "name": ["a, b", 'say "c"', None],
        "score": [0.1, 1.0, float("nan")],
        "whole": [True, False, True],
        "knob": [16, "auto", None],
    }
)


def test_a_table_reads_as_it_was_and_is_the_same_bytes_again(tmp_path):
    for name in ("one.csv", "two.csv"):
        write_csv(MIXED, tmp_path / name)
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    found = pd.read_csv(tmp_path / "one.csv")
    assert found["name"].tolist()[:2] == ["a, b", 'say "c"']
    assert found["score"].tolist()[:2] == [0.1, 1.0]
    assert found["whole"].tolist() == [True, False, True]
    assert found["knob"].tolist()[:2] == ["16", "auto"]
    assert found.isna().sum().to_dict() == {"name": 1, "score": 1, "whole": 0, "knob": 1}


def test_lines_end_alike_everywhere(tmp_path):
    write_csv(MIXED, tmp_path / "one.csv")
    assert b"\r" not in (tmp_path / "one.csv").read_bytes()


def test_a_sorted_table_is_written_twice_whatever_order_its_rows_came_in(tmp_path):
    table = pd.DataFrame({"b": [2, 1, 1], "a": ["x", "z", "y"]})
    write_sorted(table, ("none", "b", "a"), tmp_path / "one")
    write_sorted(table[::-1], ("none", "b", "a"), tmp_path / "two")
    for kind in (".csv", ".parquet"):
        assert (tmp_path / f"one{kind}").read_bytes() == (tmp_path / f"two{kind}").read_bytes()
    assert pd.read_parquet(tmp_path / "one.parquet").values.tolist() == [[1, "y"], [1, "z"], [2, "x"]]
    assert (tmp_path / "one.csv").read_text().splitlines()[1:] == ['1,"y"', '1,"z"', '2,"x"']


def test_a_disk_that_is_full_leaves_no_half_of_a_table_and_the_other_format(tmp_path, monkeypatch):
    def half(table, path, **_):
        path.write_bytes(b"PAR1")
        raise OSError("no space left")

    (tmp_path / "table.parquet").touch()  # of an earlier time
    monkeypatch.setattr(pd.DataFrame, "to_parquet", half)
    with pytest.raises(OSError, match="no space left"):
        write_sorted(MIXED, ["score"], tmp_path / "table")
    assert [file.name for file in tmp_path.iterdir()] == ["table.csv"]
