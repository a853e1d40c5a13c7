"""Near-duplicates: which are found, at any number; what is kept of them; the command; splits that part none of them."""

import csv
import io
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import EXAMPLES, PROJECT, run_worker
from tests.rows import failed, finished, unit_vectors, write
from vec_pipeline import similarity
from vec_pipeline.__main__ import main
from vec_pipeline.commands.duplicates import ranking
from vec_pipeline.corrections import ACCEPTED, REJECTED, VERIFIED, Change, Corrections
from vec_pipeline.pictures import full_size
from vec_pipeline.record import Record
from vec_pipeline.similarity import group, kept, splits
from vec_pipeline.sources.folder import LocalFile, key_of

Array = np.ndarray[Any, Any]
COSINE = 0.97


def near_duplicates(sizes: Sequence[int], seed: int = 0) -> tuple[Array, list[int]]:
    """Vectors of groups of the given sizes, shuffled, and the group each belongs to."""
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    centres = rng.standard_normal((len(sizes), 64))
    return (centres[truth] + 0.02 * rng.standard_normal((len(truth), 64))).astype(np.float32), truth.tolist()


# --- Groups


@pytest.mark.parametrize("cells", [1, 500, similarity.CELLS])
@pytest.mark.parametrize("exact_below", [0, similarity.EXACT_BELOW])
def test_near_duplicates_are_grouped_the_largest_first(
    cells: int, exact_below: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(similarity, "CELLS", cells)
    monkeypatch.setattr(similarity, "EXACT_BELOW", exact_below)
    vectors, truth = near_duplicates([1, 1, 2, 7, 1, 4])
    expected = {0: 0, 1: 0, 2: 3, 3: 1, 4: 0, 5: 2}
    assert group(vectors, COSINE).tolist() == [expected[label] for label in truth]


def test_a_chain_of_near_duplicates_is_one_group() -> None:
    angles = np.deg2rad(np.array([0, 10, 20, 30, 90]))
    vectors = 7 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert group(vectors, 0.98).tolist() == [1, 1, 1, 1, 0]


def test_equal_vectors_are_near_duplicates_at_a_cosine_of_one_and_zeros_are_none() -> None:
    vectors = np.array([[0.1, 0.7], [0, 0], [0.1, 0.7], [0, 0], [0.2, 1.4], [0.7, 0.1]], np.float32)
    assert group(vectors, 1.0).tolist() == [1, 0, 1, 0, 1, 0]
    assert group(np.array([[1, 0], [0, 0], [-1, 0]], np.float32), 1e-7).tolist() == [0, 0, 0]
    assert group(np.array([[1, 0], [0, 1], [1, 0], [0, 1]], np.float32), 1.0).tolist() == [1, 2, 1, 2]
    assert group(np.zeros((0, 2), np.float32), 0.5).tolist() == []


@pytest.fixture(scope="module")
def planted() -> tuple[Array, Array]:
    """6,000 vectors in 40 clusters, and pairs, (600, 2): at each tenth place one is near or equal to that before it."""
    rng = np.random.default_rng(3)
    vectors = unit_vectors(40, 64, seed=1)[rng.integers(40, size=6_000)] + 0.15 * rng.standard_normal((6_000, 64))
    second = np.arange(1, 6_000, 10)
    vectors[second] = vectors[second - 1] + 0.02 * rng.standard_normal((600, 64))
    vectors[second[:2]] = vectors[second[:2] - 1]
    vectors[second[-2:] + 4] = 0
    return vectors.astype(np.float32), np.stack([second - 1, second], axis=1)


def test_lists_find_what_comparing_all_pairs_finds(
    planted: tuple[Array, Array], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    vectors, pairs = planted
    exact = group(vectors, COSINE)
    assert (exact[pairs[:, 0]] == exact[pairs[:, 1]]).all()
    assert np.count_nonzero(exact) == 1_200
    monkeypatch.setattr(similarity, "EXACT_BELOW", 1)
    monkeypatch.setattr(similarity, "ROWS", 1_000)
    compared: list[int] = []
    original = similarity.compared

    def counted(directions: Array, own: int, cosine: float) -> Array:
        compared.append(len(directions) * own)
        return original(directions, own, cosine)

    monkeypatch.setattr(similarity, "compared", counted)
    np.testing.assert_array_equal(group(vectors, COSINE), exact)
    assert sum(compared) < 0.25 * len(vectors) ** 2
    assert len(compared) == similarity.LISTS_PER_ROOT * 77
    vectors.tofile(tmp_path / "vectors")
    mapped = np.memmap(tmp_path / "vectors", np.float32, "r", shape=vectors.shape)
    np.testing.assert_array_equal(group(mapped, COSINE), exact)


def test_a_memory_map_is_not_kept_in_memory(tmp_path: Path) -> None:
    np.zeros(1 << 24, np.uint8).tofile(tmp_path / "file")
    mapped = np.memmap(tmp_path / "file", np.float32, "r", shape=(1 << 16, 64))

    def resident_kb() -> int:
        lines = Path("/proc/self/smaps").read_text().partition(str(tmp_path / "file"))[2].splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))

    assert mapped.sum() == 0
    assert resident_kb() > 8_000
    similarity.let_go(mapped)
    assert resident_kb() < 1_000


def sizes_given(name: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of what a function of similarity.py is given, from now on."""
    sizes: list[int] = []
    original = getattr(similarity, name)

    def counted(first: Array, *others: Any) -> Any:
        sizes.append(len(first))
        return original(first, *others)

    monkeypatch.setattr(similarity, name, counted)
    return sizes


def test_of_many_equal_vectors_one_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.repeat(unit_vectors(3, 16), [30_000, 2, 1], axis=0)
    sizes = sizes_given("compared", monkeypatch)
    assert np.bincount(group(vectors, COSINE)).tolist() == [1, 30_000, 2]
    assert sizes == [3]


def test_of_many_vectors_that_are_nearly_equal_few_pairs_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    vectors = (unit_vectors(1, 16) + 0.001 * rng.standard_normal((8_000, 16))).astype(np.float32)
    links = sizes_given("components", monkeypatch)
    assert group(vectors, COSINE).tolist() == [1] * 8_000
    assert sum(links) < 4 * len(vectors)


# --- What is kept


def greedy(vectors: Array, order: Sequence[int], cosine: float) -> dict[int, tuple[int, float]]:
    """One by one: each goes to the nearest of those that are kept before it, or is kept."""
    cosines = vectors @ vectors.T
    leaders: list[int] = []
    found = {}
    for row in order:
        nearest = max(leaders, key=lambda leader: cosines[row, leader], default=row)
        if nearest == row or cosines[row, nearest] < cosine:
            leaders.append(row)
            nearest = row
        found[row] = (nearest, float(cosines[row, nearest]))
    return found


@pytest.mark.parametrize("at_once", [1, 7, similarity.LEADERS_AT_ONCE])
def test_what_is_left_out_is_near_to_what_is_kept(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "LEADERS_AT_ONCE", at_once)
    angles = np.deg2rad(np.random.default_rng(0).uniform(0, 90, 200))
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    vectors = np.concatenate([vectors, -vectors[:100]])  # two chains
    groups = group(vectors, 0.99)
    assert groups.max() == 2
    order = np.random.default_rng(1).permutation(len(vectors))
    stand_ins, cosines = kept(vectors, groups, order, 0.99)
    for number in (1, 2):
        for row, (leader, cosine) in greedy(vectors, order[groups[order] == number].tolist(), 0.99).items():
            assert (stand_ins[row], cosines[row]) == (leader, pytest.approx(cosine, abs=1e-5))
    assert 5 < len(set(stand_ins[groups == 1])) < 30
    assert cosines.min() >= 0.99 - 1e-6


def test_a_vector_that_is_alone_or_left_out_of_the_order_stands_for_itself() -> None:
    vectors = np.array([[1, 0], [1, 0.01], [0, 1], [1, 0.02]], np.float32)
    stand_ins, cosines = kept(vectors, group(vectors, COSINE), np.array([3, 0]), COSINE)
    assert stand_ins.tolist() == [3, 1, 2, 3]
    assert cosines[1:].tolist() == [1, 1, 1]
    assert 0.99 < cosines[0] < 1


def test_of_equal_vectors_one_is_kept_at_a_cosine_of_one() -> None:
    vectors = np.repeat(unit_vectors(20, 512), 2, axis=0)
    stand_ins, _ = kept(vectors, group(vectors, 1.0), np.arange(40), 1.0)
    assert stand_ins.tolist() == np.repeat(np.arange(0, 40, 2), 2).tolist()


# --- Splits


def test_a_split_has_its_share_and_parts_no_group() -> None:
    rng = np.random.default_rng(0)
    groups = np.where(rng.random(10_000) < 0.3, rng.integers(1, 800, 10_000), 0)
    keys = [f"/photos/{number}.jpg" for number in range(10_000)]
    for share in (0.5, 0.9):
        sides = splits(groups, share, keys)
        assert (sides == "train").mean() == pytest.approx(share, abs=0.02)
        assert set(sides) == {"train", "validation"}
        for number in range(1, 800):
            assert len(set(sides[groups == number])) <= 1
    assert set(splits(groups, 1.0, keys)) == {"train"}
    assert set(splits(groups, 0.0, keys)) == {"validation"}
    assert splits(groups[:0], 0.5, []).tolist() == []


def test_rows_that_are_added_move_no_others() -> None:
    groups = np.array([0, 1, 1, 2, 2, 0] * 50) + np.repeat(np.arange(0, 100, 2), 6) * np.array([0, 1, 1, 1, 1, 0] * 50)
    keys = [f"/photos/{number:03}é.jpg" for number in range(300)]
    before = splits(groups, 0.5, keys)
    renumbered = np.where(groups > 0, 200 - groups, 0)  # as groups are when a larger one has come
    later = splits(np.append(renumbered, [0, 199]), 0.5, [*keys, "/photos/new.jpg", "/photos/zzz.jpg"])
    assert later[:300].tolist() == before.tolist()
    order = np.random.default_rng(0).permutation(300)
    assert splits(groups[order], 0.5, [keys[row] for row in order]).tolist() == before[order].tolist()
    assert later[301] == before[keys.index(min(key for key, number in zip(keys, groups, strict=True) if number == 1))]


# --- The command


def listed(*arguments: object, capfd: pytest.CaptureFixture[str]) -> list[tuple[int, str, str, float]]:
    """Run it; the rows that it writes to stdout: group, name of the picture, keep, cosine."""
    assert main(["duplicates", *map(str, arguments)]) == 0
    rows = csv.DictReader(io.StringIO(capfd.readouterr().out))
    return [(int(row["group"]), Path(row["image_path"]).name, row["keep"], float(row["cosine"])) for row in rows]


def names_kept(*arguments: object, capfd: pytest.CaptureFixture[str]) -> list[str]:
    return [name for _, name, keep, _ in listed(*arguments, capfd=capfd) if keep == "yes"]


@pytest.fixture(scope="module")
def resaved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CSV of a run over three example pictures and copies of two of them: smaller, as JPEG, and as they are."""
    folder = tmp_path_factory.mktemp("resaved")
    for name in ("red-flower", "yellow-moon", "purple-cat"):
        with Image.open(EXAMPLES / f"{name}.png") as image:
            image.save(folder / f"{name}.png")
    with Image.open(EXAMPLES / "red-flower.png") as image:
        image.convert("RGB").save(folder / "a-red-flower.jpg", quality=90)
        image.convert("RGB").resize((224, 224)).save(folder / "a-small-red-flower.jpg")
    (folder / "yellow-moon copy.png").write_bytes((folder / "yellow-moon.png").read_bytes())
    assert run_worker(folder, "--output", folder / "annotations.csv").returncode == 0
    return folder / "annotations.csv"


def test_pictures_that_were_saved_again_are_found(resaved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = sorted(os.listdir(resaved.parent))
    assert main(["duplicates", "--csv", str(resaved)]) == 0
    out, said = capfd.readouterr()
    assert said == "6 pictures, of which 5 are near-duplicates in 2 groups: 3 need not be kept\n"
    rows = list(csv.DictReader(io.StringIO(out)))
    assert rows[0].keys() == {"group", "image_path", "keep", "cosine"}
    assert [(row["group"], row["keep"]) for row in rows] == [*zip("11122", "yes no no yes no".split(), strict=True)]
    assert {Path(row["image_path"]).name for row in rows[:3]} == {
        *("red-flower.png", "a-red-flower.jpg", "a-small-red-flower.jpg")
    }
    assert rows[2]["image_path"] == str(resaved.parent / "a-small-red-flower.jpg"), "the farthest is the last"
    assert [row["cosine"] for row in rows[3:]] == ["1.0000", "1.0000"]
    assert all(0.97 <= float(row["cosine"]) <= 1 for row in rows)
    assert sorted(os.listdir(resaved.parent)) == before


def test_the_list_goes_to_files_and_paths_to_xargs(
    resaved: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, paths = tmp_path / "duplicates.csv", tmp_path / "paths"
    assert main(["duplicates", "--csv", str(resaved), "--out", str(out), "--list", str(paths)]) == 0
    said, errors = capfd.readouterr()
    assert (said, errors) == ("6 pictures, of which 5 are near-duplicates in 2 groups: 3 need not be kept\n", "")
    dropped = [row["image_path"] for row in csv.DictReader(out.open(newline="")) if row["keep"] == "no"]
    assert paths.read_bytes() == b"".join(path.encode() + b"\0" for path in dropped)
    assert main(["duplicates", "--csv", str(resaved), "--out", str(out), "--list", "-"]) == 0
    said, errors = capfd.readouterr()
    assert said.split("\0") == [*dropped, ""]
    assert "need not be kept" in errors


@pytest.mark.parametrize("option", ["--out", "--list"])
def test_the_csv_and_what_belongs_to_it_are_not_overwritten(
    option: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "a.csv", [finished(0), finished(0)])
    before = path.read_bytes()
    (tmp_path / "link").symlink_to(path)
    (tmp_path / "hard link").hardlink_to(path)
    for name in ("a.csv", "link", "hard link"):
        assert main(["duplicates", "--csv", str(path), option, str(tmp_path / name)]) == 2
        assert "is the CSV itself: name another file" in capfd.readouterr().err
    for csv_path in (path, tmp_path / "link"):
        assert main(["duplicates", "--csv", str(csv_path), option, str(tmp_path / "a.settings.yaml")]) == 2
        assert "a.settings.yaml is for a file that belongs to" in capfd.readouterr().err
    assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["a.csv", "a.lock", "hard link", "link"]


def test_the_list_and_the_paths_are_two_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.csv", [finished(0), finished(0)])
    (tmp_path / "link").symlink_to(tmp_path / "out")
    pipe = os.pipe()
    for out in (tmp_path / "out", tmp_path / "link", Path("/dev/fd/2"), Path(f"/dev/fd/{pipe[1]}")):
        second = out if out.parent != tmp_path else tmp_path / "out"
        assert main(["duplicates", "--csv", str(path), "--out", str(out), "--list", str(second)]) == 2
        assert f"--out and --list are both {second}: name two files" in capfd.readouterr().err
    for end in pipe:
        os.close(end)
    assert main(["duplicates", "--csv", str(path), "--out", os.devnull, "--list", os.devnull]) == 0
    command = [sys.executable, "-m", "vec_pipeline", "duplicates", "--csv", path, "--list", tmp_path / "out"]
    with (tmp_path / "out").open("w") as file:
        assert subprocess.run(command, cwd=PROJECT, stdout=file, stderr=subprocess.DEVNULL).returncode == 2


def test_paths_are_those_of_files_byte_for_byte(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first, odd = picture(tmp_path / "a.png"), Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
    odd.write_bytes(first.read_bytes())
    odd_link = odd.with_suffix(".jpg")
    odd_link.symlink_to(odd)
    (tmp_path / "b.zip").write_bytes(b"PK")
    keys = [str(first), key_of(str(odd)), key_of(str(odd_link)), f"{tmp_path}/b.zip/c.png", f"{tmp_path}/gone.png"]
    path = write(tmp_path / "a.csv", [same(Path(key)) for key in keys])
    paths = tmp_path / "paths"
    arguments = ["--csv", str(path), "--keep", "first", "--list", str(paths), "--out", str(tmp_path / "out")]
    assert main(["duplicates", *arguments]) == 0
    assert "4 are near-duplicates in 1 group: 3 need not be kept; not listed: 2 in archives" in capfd.readouterr().out
    assert paths.read_bytes() == os.fsencode(odd) + b"\0"


def test_rows_are_chosen_by_a_query(resaved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert {name for _, name, _, _ in listed("--csv", resaved, "--where", "path~moon", capfd=capfd)} == {
        *("yellow-moon.png", "yellow-moon copy.png")
    }
    assert listed("--csv", resaved, "--where", "path~cat", capfd=capfd) == []


# --- What is kept, by the command


def picture(path: Path, px: int = 8, noise: bool = False) -> Path:
    pixels = (
        np.random.default_rng(0).integers(0, 256, (px, px, 3), np.uint8) if noise else np.zeros((px, px, 3), np.uint8)
    )
    Image.fromarray(pixels).save(path)
    return path


def same(path: Path, **values: Any) -> Record:
    """A row of a picture that is a near-duplicate of all others of this function."""
    found = finished(0, **{"image_vector": unit_vectors(1, 8)[0], **values})
    found.key = str(path)
    return found


def test_the_best_is_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    small, large = picture(tmp_path / "small.png", 8), picture(tmp_path / "large.png", 9)
    flagged, wrong = picture(tmp_path / "flagged.png", 20), picture(tmp_path / "wrong.png", 30)
    accepted, rejected = picture(tmp_path / "accepted.png", 4), picture(tmp_path / "rejected.png", 40)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    error = same(wrong)
    error.error = "describe: ValueError: no"
    rows = [same(tmp_path / "gone.png"), same(tmp_path / "broken.png"), same(rejected), error]
    rows += [same(flagged, flags="low_confidence"), same(small), same(large, clip_score=0.1)]
    path = write(
        tmp_path / "a.csv", [*rows, same(picture(tmp_path / "as-large.png", 9), clip_score=0.3), same(accepted)]
    )

    def kept_of(*arguments: str) -> list[str]:
        return names_kept("--csv", path, *arguments, capfd=capfd)

    assert kept_of() == ["rejected.png"]
    with closing(Corrections(path)) as corrections:
        corrections.correct(
            [Change(str(rejected), VERIFIED, REJECTED), Change(str(tmp_path / "gone.png"), VERIFIED, ACCEPTED)]
        )
        assert kept_of() == ["as-large.png"]
        corrections.correct([Change(str(accepted), VERIFIED, ACCEPTED)])
    assert kept_of() == ["accepted.png"]
    assert kept_of("--machine") == ["rejected.png"]
    assert kept_of("--machine", "--where", "-path~rejected -path~accepted") == ["as-large.png"]
    assert kept_of("--where", "path:" + ",".join(f'"{each}"' for each in (flagged, wrong))) == ["flagged.png"]
    assert kept_of("--where", f'path:"{small}","{flagged}"') == ["small.png"]
    assert kept_of("--where", f'path:"{small}","{large}"') == ["large.png"]
    assert kept_of("--where", f'path:"{tmp_path / "gone.png"}","{tmp_path / "broken.png"}"') == ["gone.png"]


def test_scores_decide_between_pictures_of_one_size(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    paths = [picture(tmp_path / f"{name}.png") for name in "abc"]
    rows = [same(path, clip_score="", text_confidence=score) for path, score in zip(paths, (0.5, 0.9, ""), strict=True)]
    assert names_kept("--csv", write(tmp_path / "a.csv", rows), capfd=capfd) == ["b.png"]


def test_the_first_the_largest_and_the_newest_are_kept_if_they_are_there(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first, largest = picture(tmp_path / "first.png", 60), picture(tmp_path / "largest.png", 30, noise=True)
    newest = picture(tmp_path / "newest.png")
    for path, time_s in ((first, 1), (largest, 2), (newest, 3)):
        os.utime(path, (time_s, time_s))
    other = finished(9, image_vector=unit_vectors(2, 8)[1])
    rows = [other, same(tmp_path / "gone.png"), *map(same, (first, largest, newest))]
    path = write(tmp_path / "a.csv", rows)
    for keep in ("first", "largest", "newest"):
        assert names_kept("--csv", path, "--keep", keep, capfd=capfd) == [f"{keep}.png"]
    names = [name for _, name, _, _ in listed("--csv", path, capfd=capfd)]
    assert names == ["first.png", "gone.png", "largest.png", "newest.png"], "which has the most pixels, then the others"
    address = write(tmp_path / "b.csv", [same(tmp_path / "gone.png"), same(Path("x"))])
    address.write_bytes(address.read_bytes().replace(b"\nx,", b"\nhttps://localhost:9/x.png,"))
    for keep in ("first", "largest", "newest"):
        assert names_kept("--csv", address, "--keep", keep, capfd=capfd) == ["x.png"]


def test_pixels_are_counted_without_decoding_where_the_head_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    original = full_size.opened

    def counted(data: bytes, *others: Any) -> Any:
        decoded.append(len(data))
        return original(data, *others)

    monkeypatch.setattr(ranking, "opened", counted)
    assert ranking.pixels_of(LocalFile(str(picture(tmp_path / "a.png", 300)))) == 90_000
    assert not decoded
    assert ranking.pixels_of(LocalFile(str(picture(tmp_path / "a.bmp", 300)))) == 90_000
    assert len(decoded) == 1


def test_two_names_of_one_file_are_not_duplicates_of_each_other(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    original, other = picture(tmp_path / "b.png"), picture(tmp_path / "c.png", 9)
    (tmp_path / "a.png").symlink_to(original)
    path = write(tmp_path / "a.csv", [same(tmp_path / "a.png"), same(original), same(original)])
    assert listed("--csv", path, "--keep", "first", capfd=capfd) == []
    write(path, [same(other)])
    found = listed("--csv", path, "--keep", "first", capfd=capfd)
    assert [(name, keep) for _, name, keep, _ in found] == [("a.png", "yes"), ("c.png", "no")]


def test_a_chain_keeps_several(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    angles = np.deg2rad([20, 10, 0, 30, 40, 85])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    rows = [same(tmp_path / f"{number}.png", image_vector=vector) for number, vector in enumerate(vectors)]
    found = listed("--csv", write(tmp_path / "a.csv", rows), "--keep", "first", "--cosine", "0.98", capfd=capfd)
    near = round(float(np.cos(np.deg2rad(10))), 4)
    assert found == [(1, "0.png", "yes", 1), (1, "1.png", "no", near), (1, "3.png", "no", near)]


def test_other_vectors_and_rows_without_any(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = [finished(number, text_vector=unit_vectors(1, 5)[0]) for number in range(2)]
    rows += [failed(2), finished(3, image_vector=np.zeros(0, np.float32))]
    path = write(tmp_path / "a.csv", rows)
    assert main(["duplicates", "--csv", str(path)]) == 0
    assert capfd.readouterr() == (
        "group,image_path,keep,cosine\n",
        "2 pictures, of which 0 are near-duplicates in 0 groups: 0 need not be kept; 2 rows without image_vector\n",
    )
    assert names_kept("--csv", path, "--by", "text_vector", capfd=capfd) == ["000000.jpg"]


MISTAKES = {
    "has no image_vector in any row: there is nothing to compare": ([failed(0)], []),
    "image_vector has the shapes (3,) and (4,), not one length": (
        [finished(0), finished(1, image_vector=np.ones(4))],
        [],
    ),
    "image_vector has the shapes (2, 2), not one length": ([finished(0, image_vector=np.ones((2, 2)))], []),
    "--by words: ": ([finished(0)], ["--by", "words"]),
    "no row that matches --where": ([finished(0)], ["--where", "category:none"]),
    "--out and --list cannot both go to stdout": ([finished(0)], ["--list", "-"]),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_named(message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows, arguments = MISTAKES[message]
    assert main(["duplicates", "--csv", str(write(tmp_path / "a.csv", rows)), *arguments]) == 2
    out, said = capfd.readouterr()
    assert message in said
    assert not out


def test_a_full_disk_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "a.csv", [finished(0)])
    monkeypatch.setattr("tempfile.TemporaryFile", lambda: Path("/dev/full").open("r+b"))  # noqa: SIM115
    assert main(["duplicates", "--csv", str(path)]) == 2
    assert "free some disk space, or set TMPDIR" in capfd.readouterr().err
