"""The benchmark of resizes on small clips."""

from pathlib import Path

from examples.benchmarks import resize


def test_every_clip_is_measured(tmp_path: Path) -> None:
    page = resize.main(["--folder", str(tmp_path), "--height", "144", "--results", str(tmp_path)])
    assert (tmp_path / "resize.md").read_text() == page
    header, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if "|" in line]
    assert {row[0] for row in rows} >= set(resize.PAINTERS)
    for row in rows:
        cells = dict(zip(header, row, strict=True))
        assert cells["exact"] == "0.00 / 0 / 0" != cells["fast"]
        if not row[0].startswith("detailed"):  # enlarged, as here, black and white detail is clipped half-way
            fast, antialiased = (float(cells[name].split(" / ")[0]) for name in ("fast", "antialiased"))
            assert antialiased < fast
