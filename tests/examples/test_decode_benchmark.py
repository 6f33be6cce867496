"""The decode benchmark on videos so short that only its bookkeeping is seen."""

import json
import shutil
import urllib.error
import urllib.request

import av
import pytest

import quickdecode
from examples.benchmarks import decode, decode_server
from examples.benchmarks.decode_files import FILES, make
from examples.benchmarks.decode_report import write_speed
from examples.benchmarks.decode_rows import GROUPS, wishes

READERS = ["quickdecode", "pyav"]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """With one clip of a second."""
    folder = tmp_path_factory.mktemp("videos")
    make(folder, "h264_360p_2m.mp4", seconds=1)
    return folder


@pytest.fixture
def measured(folder, tmp_path):
    """Measure rows, and give what was stored and the page that was written."""

    def measure(*arguments, group="", readers=READERS):
        options = ["--folder", str(folder), "--results", str(tmp_path), "--length", "1", "--turns", "1"]
        decode.main(["--group", group, "--readers", *readers, *options, *arguments])
        (page,) = tmp_path.glob("*.md")
        return json.loads(page.with_suffix(".json").read_text()), page.read_text()

    return measure


def test_a_row_is_measured_and_written(measured):
    stored, page = measured("--files", "h264_360p_2m.mp4", "--samplings", "fps2")
    (row,) = stored["rows"]
    assert (row["limit"]["of"], len(row["runs"]["quickdecode"])) == (30, 1)
    for (run,) in row["runs"].values():
        assert run["wall"] > 0 and run["cpu"] > 0
    assert page.count("| h264_360p_2m.mp4, fps2 |") == 1
    stored, page = measured("--files", "h264_360p_2m.mp4", "--samplings", "u64", readers=["pyav"])
    assert [row["sampling"] for row in stored["rows"]] == ["fps2", "u64"], "rows of earlier calls stay"


def test_clips_come_from_a_file_that_stays_open_and_from_one_opened_anew(measured):
    stored, page = measured("--files", "h264_360p_2m.mp4", group="clips")
    kept, anew = stored["rows"]
    assert (kept["sampling"], anew["sampling"]) == ("clips", "anew")
    assert all("error" not in run for row in stored["rows"] for (run,) in row["runs"].values())
    assert list(kept["runs"]) == ["quickdecode"], "sequential PyAV keeps nothing open"


def test_a_slow_server_counts_what_it_sends(measured, folder):
    shutil.copy(folder / "h264_360p_2m.mp4", folder / "h264_720p_2m.mp4")
    stored, page = measured("--files", "h264_720p_2m.mp4", group="http", readers=["pyav"])
    (row,) = stored["rows"]
    size = (folder / "h264_720p_2m.mp4").stat().st_size / 1e6
    for (run,) in row["runs"].values():
        assert 0 < run["read_mb"] < 3 * size
        assert run["wall"] > decode_server.DELAY_SECONDS
    assert "by HTTP" in page


def test_a_cold_file_is_read_from_the_disk(measured, folder):
    shutil.copy(folder / "h264_360p_2m.mp4", folder / "h264_1080p_10s.mp4")
    stored, page = measured("--files", "h264_1080p_10s.mp4", group="cold", readers=["pyav"])
    (row,) = stored["rows"]
    assert row["limit"] is None and all("error" not in run for (run,) in row["runs"].values())
    assert "cold cache" in page


def test_the_server_gives_parts(folder):
    content = (folder / "h264_360p_2m.mp4").read_bytes()
    with decode_server.serving(folder) as (address, link):
        for wanted, part in {
            None: content,
            "bytes=5-": content[5:],
            "bytes=5-9": content[5:10],
            "bytes=-7": content[-7:],
        }.items():
            headers = {} if wanted is None else {"Range": wanted}
            sent = link.sent
            with urllib.request.urlopen(
                urllib.request.Request(address + "h264_360p_2m.mp4", headers=headers)
            ) as answer:
                assert answer.read() == part
            assert link.sent - sent == len(part)
        for name, wanted, status in (("absent", "bytes=0-", 404), ("h264_360p_2m.mp4", "bytes=999999999-", 416)):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(urllib.request.Request(address + name, headers={"Range": wanted}))
            assert refused.value.code == status
            refused.value.close()


@pytest.mark.parametrize(
    "name", [name for name in FILES if "360p" in name and not name.endswith(("60m.mp4", "60m.mkv", "10s.mp4"))]
)
def test_every_small_file_has_frames_of_its_own(folder, name):
    info = quickdecode.read_video(make(folder, name, seconds=1), num_frames=2)
    assert len(info.frames) == 2 and not (info.frames[0] == info.frames[1]).all()


def test_a_phone_keeps_to_thirty_frames_a_second_on_average_only(folder, monkeypatch):
    monkeypatch.setitem(FILES["phone_vfr_1080p_30s.mp4"], "size", (90, 160))
    path = make(folder, "phone_vfr_1080p_30s.mp4", seconds=10)
    with av.open(str(path)) as container:
        times = [frame.time for frame in container.decode(video=0)]
    steps = [after - before for before, after in zip(times, times[1:], strict=False)]
    assert len(times) == 300
    assert 0.029 < min(steps) < 0.033 < 0.034 < max(steps) < 0.071
    assert max(steps) > 0.06, "and half as fast in the dark"


def test_every_row_names_a_file_and_readable_frames():
    for rows in GROUPS.values():
        assert len({(row.file, row.sampling) for row in rows}) == len(rows)
        for row in rows:
            assert row.file in FILES
            for indices in wishes(row.sampling, 30):
                assert indices and min(indices) >= 0 and max(indices) < 30
    assert [len(indices) for indices in wishes("clips", 3600)] == [16] * 20
    assert wishes("clips", 3600) == wishes("anew", 3600)


def test_a_row_that_is_not_there_is_refused(capsys):
    with pytest.raises(SystemExit):
        decode.parse(["--group", "short", "--samplings", "u64"])
    assert "no row of group 'short' is left; it has h264_360p_10s.mp4 u8, " in capsys.readouterr().err


def test_losses_and_failures_stand_beside_wins(tmp_path):
    def runs(wall, cpu):
        return [{"wall": wall, "cpu": cpu, "peak_mb": 1.0}] * 3

    limit = {"frames": 1, "of": 2, "seconds": 0.5, "runs": [0.5], "together": 1.0}
    rows = [
        {
            "file": "a.mp4",
            "sampling": "u8",
            "limit": limit,
            "runs": {"quickdecode": runs(1, 2), "decord2": runs(0.5, 4), "pyav": runs(3, 1)},
        },
        {
            "file": "b.mp4",
            "sampling": "u8",
            "source": "http",
            "limit": None,
            "runs": {"quickdecode": runs(1, 1), "decord2": [{"error": "no"}], "pyav": runs(2, 2)},
        },
    ]
    path = tmp_path / "decode_2_cores.json"
    path.write_text(json.dumps({"cores": 2, "machine": "that", "size": [4, 4], "note": "", "rows": rows}))
    write_speed(path)
    page = path.with_suffix(".md").read_text()
    assert "| a.mp4, u8 | 1 | 2 | decord2 | 0.5 | **0.50** (loss) | pyav | 1 | **0.50** (loss) |" in page
    assert "| b.mp4, u8, by HTTP | 1 | 1 | pyav | 2 | **2.00** | pyav | 2 | **2.00** |" in page
    assert "Of these 2 rows quickdecode loses in 1 by wall time and in 1 by CPU time" in page
    assert "| decord2 | failed: no |" in page
    assert path.with_suffix(".png").exists()
