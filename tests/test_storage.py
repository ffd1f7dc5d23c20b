import subprocess
import sys
from pathlib import Path

import pytest

from birdtpu import storage


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_join():
    assert storage.join("gs://bucket/a/", "b", "c.csv") == "gs://bucket/a/b/c.csv"
    assert storage.join(Path("a"), "b", "c.csv") == "a/b/c.csv"
    assert storage.is_remote("gs://bucket") and not storage.is_remote(Path("gs"))


def test_write_makes_the_folder_and_leaves_nothing_else(tmp_path):
    storage.write_text(tmp_path / "a" / "b.txt", "ä\n")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "ä\n".encode()
    assert storage.read_text(tmp_path / "a" / "b.txt") == "ä\n"
    assert names(tmp_path / "a") == ["b.txt"] == storage.listdir(tmp_path / "a")


def test_line_ends_stay(tmp_path):
    storage.write_text(tmp_path / "a", "x\r\ny\n")
    assert (tmp_path / "a").read_bytes() == b"x\r\ny\n"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_in_the_body_leaves_the_old_file(tmp_path, error):
    storage.write_bytes(tmp_path / "a", b"old")
    with pytest.raises(error), storage.atomic_write(tmp_path / "a") as file:
        file.write(b"new")
        file.flush()
        raise error
    assert (tmp_path / "a").read_bytes() == b"old" and names(tmp_path) == ["a"]


def test_the_name_appears_only_when_the_file_is_whole(tmp_path):
    with storage.atomic_write(tmp_path / "a") as file:
        file.write(b"new")
        file.flush()
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a").read_bytes() == b"new"


def test_a_kill_leaves_the_old_file(tmp_path):
    storage.write_bytes(tmp_path / "a", b"old")
    body = (
        "import os, sys; from birdtpu import storage\n"
        "with storage.atomic_write(sys.argv[1]) as file:\n"
        "    file.write(b'new'); file.flush(); os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", body, str(tmp_path / "a")]).returncode == -9
    assert (tmp_path / "a").read_bytes() == b"old"


@pytest.mark.parametrize("size", [100, 100_000])
def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path, size):
    # A limit on a file's size stands for the disk: the write fails at the same place, in the write or in the flush.
    storage.write_bytes(tmp_path / "a", b"old")
    body = (
        "import resource, signal, sys; from birdtpu import storage\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50))\n"
        "try:\n"
        "    storage.write_bytes(sys.argv[1], bytes(int(sys.argv[2])))\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-c", body, str(tmp_path / "a"), str(size)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    assert done.stdout == f"{tmp_path / 'a'}: File too large; free space, or give another folder\n"
    assert done.returncode == 0
    assert (tmp_path / "a").read_bytes() == b"old" and names(tmp_path) == ["a"]


def test_a_folder_in_the_way_is_an_os_error(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(OSError):
        storage.write_bytes(tmp_path / "a", b"new")
    assert names(tmp_path) == ["a"]


def test_what_a_kill_left_is_swept_and_no_other_file(tmp_path):
    for name in (".a.csv.0123abcd.tmp", ".a.tmp", "a.0123abcd.tmp", ".b.csv.0123abcg.tmp"):
        (tmp_path / name).write_bytes(b"half")
    storage.sweep(tmp_path)
    assert names(tmp_path) == [".a.tmp", ".b.csv.0123abcg.tmp", "a.0123abcd.tmp"]


def test_a_locked_folder_is_one_process_alone(tmp_path):
    home = tmp_path / "a" / "b"
    body = (
        "import sys; from birdtpu import storage\n"
        "try:\n"
        "    with storage.locked(sys.argv[1]): print('mine')\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )

    def other() -> str:
        return subprocess.run([sys.executable, "-c", body, str(home)], stdout=subprocess.PIPE, text=True).stdout

    with storage.locked(home):
        assert other() == f"{home}: another process is writing here; wait for it or end it\n"
        storage.write_text(home / "kept", "x")
    assert other() == "mine\n" and names(home) == ["kept"]
    with pytest.raises(KeyError), storage.locked(tmp_path / "c"):
        raise KeyError
    assert names(tmp_path) == ["a"]
    # An empty folder that was there is the user's.
    storage.makedirs(tmp_path / "d")
    with storage.locked(tmp_path / "d"):
        pass
    assert names(tmp_path) == ["a", "d"]


def test_remove_and_exists(tmp_path):
    storage.makedirs(tmp_path / "x" / "y")
    storage.makedirs(tmp_path / "x" / "y")
    storage.write_bytes(tmp_path / "a", b"")
    assert storage.exists(tmp_path / "a") and storage.exists(str(tmp_path / "x" / "y"))
    storage.remove(tmp_path / "a")
    storage.remove(tmp_path / "a")
    assert not storage.exists(tmp_path / "a") and names(tmp_path) == ["x"]


def test_local_paths_do_not_import_tensorflow(tmp_path):
    body = (
        "import sys; from birdtpu import storage\n"
        "storage.write_text(sys.argv[1], 'x'); storage.read_text(sys.argv[1]); storage.exists(sys.argv[1])\n"
        "assert not {'tensorflow', 'keras', 'jax'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", body, str(tmp_path / "a")], check=True)


def test_one_path_or_several_are_a_list_of_text():
    assert storage.paths_of("a") == storage.paths_of(Path("a")) == ["a"]
    assert storage.paths_of(["gs://b/c", Path("d")]) == storage.paths_of(("gs://b/c", "d")) == ["gs://b/c", "d"]
