"""Tables as files: they read as they were written."""

import pandas as pd
import pytest

from dgg_ray.analysis.table_files import write_csv, write_sorted

MIXED = pd.DataFrame(
    {
        "name": ["a, b", 'say "c"', None],
        "score": [0.1, 1.0, float("nan")],
        "whole": [True, False, True],
        "parameter": [16, "auto", None],
    }
)


def test_a_table_reads_as_it_was_and_is_written_with_the_same_bytes(tmp_path):
    for name in ("one.csv", "two.csv"):
        write_csv(MIXED, tmp_path / name)
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    table = pd.read_csv(tmp_path / "one.csv")
    assert table["name"].tolist()[:2] == ["a, b", 'say "c"']
    assert table["score"].tolist()[:2] == [0.1, 1.0]
    assert table["whole"].tolist() == [True, False, True]
    assert table["parameter"].tolist()[:2] == ["16", "auto"]
    assert table.isna().sum().to_dict() == {"name": 1, "score": 1, "whole": 0, "parameter": 1}


def test_lines_end_without_carriage_returns(tmp_path):
    write_csv(MIXED, tmp_path / "one.csv")
    assert b"\r" not in (tmp_path / "one.csv").read_bytes()


def test_a_sorted_table_has_the_same_bytes_whatever_the_order_of_its_rows(tmp_path):
    table = pd.DataFrame({"b": [2, 1, 1], "a": ["x", "z", "y"]})
    write_sorted(table, ("none", "b", "a"), tmp_path / "one")
    write_sorted(table[::-1], ("none", "b", "a"), tmp_path / "two")
    for kind in (".csv", ".parquet"):
        assert (tmp_path / f"one{kind}").read_bytes() == (tmp_path / f"two{kind}").read_bytes()
    assert pd.read_parquet(tmp_path / "one.parquet").values.tolist() == [[1, "y"], [1, "z"], [2, "x"]]
    assert (tmp_path / "one.csv").read_text().splitlines()[1:] == ['1,"y"', '1,"z"', '2,"x"']


def test_a_full_disk_leaves_no_incomplete_table_and_still_the_other_format(tmp_path, monkeypatch):
    def half(table, path, **_):
        path.write_bytes(b"PAR1")
        raise OSError("no space left")

    (tmp_path / "table.parquet").touch()  # from an earlier time
    monkeypatch.setattr(pd.DataFrame, "to_parquet", half)
    with pytest.raises(OSError, match="no space left"):
        write_sorted(MIXED, ["score"], tmp_path / "table")
    assert [file.name for file in tmp_path.iterdir()] == ["table.csv"]
