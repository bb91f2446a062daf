"""Python source files of packages: installed ones, folders, wheels, sdists. Nothing is imported, built or run."""

import importlib.util
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from dr_validate.errors import SetupError

MAX_BYTES = 800_000  # larger files are tables and generated code
ARCHIVES = (".whl", ".zip", ".tar.gz", ".tgz")


def read_packages(packages: Sequence[str]) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Label of each package, and path and content of its .py files: packages by label, files by path, whatever order they were
    given in. Raises SetupError for what is neither a folder, a wheel, an sdist nor installed."""
    for label, place in sorted({(_label(package), package) for package in packages}):
        found = [(path, content) for path, content in _files(place) if content]
        if not found:
            raise SetupError(f"--packages: {place!r} has no Python source files; leave it out")
        yield label, sorted(found, key=lambda row: PurePosixPath(row[0]).parts)


def _label(package: str) -> str:
    """Name of the file or folder, of which the path says nothing; or of what is installed."""
    return Path(package).resolve().name if Path(package).exists() else package


def _files(package: str) -> Iterator[tuple[str, bytes]]:
    path = Path(package)
    if path.is_dir():
        return _in_folder(path)
    if path.is_file() and package.endswith(ARCHIVES):
        return _in_zip(path) if zipfile.is_zipfile(path) else _in_tar(path)
    return _installed(package)


def _in_folder(root: Path) -> Iterator[tuple[str, bytes]]:
    for path in root.rglob("*.py"):
        if path.is_file() and path.stat().st_size <= MAX_BYTES:
            yield path.relative_to(root).as_posix(), path.read_bytes()


def _in_zip(path: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.filename.endswith(".py") and entry.file_size <= MAX_BYTES:
                yield entry.filename, archive.read(entry)


def _in_tar(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(path) as archive:
            for entry in archive:
                stream = archive.extractfile(entry) if entry.isfile() and entry.size <= MAX_BYTES else None
                if stream is not None and entry.name.endswith(".py"):
                    yield entry.name, stream.read()
    except tarfile.TarError as error:
        raise SetupError(f"--packages: {path} is neither a zip nor a tar file ({error}); download it again") from error


def _installed(name: str) -> Iterator[tuple[str, bytes]]:
    # For a name without a dot this looks on sys.path and imports nothing.
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None:
        expected = f"a folder, a file that ends in {', '.join(ARCHIVES)}, or the name of an installed package"
        raise SetupError(f"--packages: got {name!r}, expected {expected}")
    if spec.submodule_search_locations is None:
        if spec.origin is not None and spec.origin.endswith(".py"):
            yield f"{name}.py", Path(spec.origin).read_bytes()
        return
    for folder in spec.submodule_search_locations:
        for path, content in _in_folder(Path(folder)):
            yield f"{name}/{path}", content
