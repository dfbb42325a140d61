"""Files of datasets of the Hugging Face Hub, from its cache on this machine."""

import os
import re
from collections.abc import Iterable, Sequence

from etils import epath

from bert_jax.errors import UserError
from bert_jax.storage import files_below

_NAME = re.compile(r"hf:([\w.-]+(?:/[\w.-]+)?)((?:/[\w.-]+)*)(?::([\w.-]+))?")
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})")


def dataset_files(name: str) -> list[tuple[epath.Path, str]]:
    """The files of a split, in order, each with a name that is the same on all machines.

    They are Parquet files from the cache of the library huggingface_hub. If they are not there,
    that library downloads them, where it is installed. If there are none, or they cannot be
    downloaded, they are the Arrow files that the library `datasets` has of the split, or makes from
    files of any form, where it is installed.

    Args:
      name: 'hf:wikimedia/wikipedia/20231101.en:train': a repository, a folder in it, a split. The
        folder may be left out if there is only one; the split is `train` by default.

    Raises:
      UserError: not such a name, there are no such files, or they cannot be downloaded.
    """
    match = _NAME.fullmatch(name)
    if not match:
        raise UserError(f"{name}: write hf:OWNER/DATASET[/FOLDER][:SPLIT]")
    repository, folder, split = match[1], match[2].strip("/"), match[3] or "train"
    snapshot = _cached(repository)
    files = _of_split(_files(snapshot), folder, split, name) if snapshot else []
    if not snapshot or not files or not _is_whole(files):
        try:
            snapshot, files = _downloaded(repository, folder, split, name)
        except UserError as error:
            return _of_datasets(repository, folder, split, error)
    return [(snapshot / file, f"hf:{repository}/{file}") for file in files]


def _cached(repository: str) -> epath.Path | None:
    """The newest snapshot in the cache."""
    caches = epath.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    home = epath.Path(os.environ.get("HF_HOME") or caches / "huggingface")
    hub = epath.Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    dataset = hub / f"datasets--{repository.replace('/', '--')}"
    newest = dataset / "refs" / "main"
    snapshot = dataset / "snapshots" / newest.read_text().strip() if newest.exists() else None
    return snapshot if snapshot and snapshot.is_dir() else None


def _files(snapshot: epath.Path) -> list[str]:
    """Paths in the snapshot; without links whose file is gone."""
    return [str(file.relative_to(snapshot)) for file in files_below(snapshot) if file.exists()]


def _of_split(files: Iterable[str], folder: str, split: str, name: str) -> list[str]:
    """Those of `files` that hold a split: FOLDER/train-00000-of-00041.parquet, train/0.parquet.

    Raises:
      UserError: no folder is named, and several have such files.
    """
    start = f"{folder}/" if folder else ""
    of_split = re.compile(rf"{re.escape(start)}(?:.*/)?{re.escape(split)}(?:[-._/].*)?\.parquet")
    found = sorted(filter(of_split.fullmatch, files))
    folders = sorted({file.removeprefix(start).rpartition("/")[0] for file in found})
    if len(folders) > 1:
        raise UserError(f"{name}: name one of its folders, as in hf:.../{start}{folders[0]}")
    return found


def _is_whole(files: Sequence[str]) -> bool:
    """Whether all the files are there that the names of the others count."""
    shards = {(m[1], int(m[2]), int(m[3])) for m in map(_SHARD.match, files) if m}
    return all((m, n, count) in shards for m, _, count in shards for n in range(count))


def _downloaded(
    repository: str, folder: str, split: str, name: str
) -> tuple[epath.Path, list[str]]:
    """The snapshot, and the files of a split in it, which are downloaded if they are missing."""
    include = f"{folder}/*" if folder else "*.parquet"
    fetch = f"`hf download --repo-type dataset {repository} --include '{include}'`"
    try:
        from huggingface_hub import list_repo_files, snapshot_download
    except ImportError as error:
        raise UserError(
            f"{name}: not in the cache of the Hugging Face Hub; pip install huggingface_hub, then "
            f"{fetch}"
        ) from error
    try:
        files = _of_split(list_repo_files(repository, repo_type="dataset"), folder, split, name)
        if not files:
            raise UserError(f"{name}: the dataset has no Parquet file of split {split!r} there")
        path = snapshot_download(repository, repo_type="dataset", allow_patterns=files)
    except UserError:
        raise
    except Exception as error:  # of many kinds: no network, no such dataset, no permission
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{name}: not in the cache, and cannot be downloaded ({reason}); where there is a "
            f"network, {fetch}"
        ) from error
    return epath.Path(path), files


def _of_datasets(
    repository: str, folder: str, split: str, missing: UserError
) -> list[tuple[epath.Path, str]]:
    """The Arrow files of a split, which `datasets` makes if they are missing, and their names."""
    try:
        import datasets
    except ImportError:
        raise missing from None
    try:
        found = datasets.load_dataset(repository, folder or None, split=split)
    except Exception as error:  # of many kinds, as above
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{missing}; nor does `datasets` load it ({reason})") from error
    files = [epath.Path(each["filename"]) for each in found.cache_files]
    place = f"hf:{repository}/{folder}".rstrip("/")
    return [(file, f"{place}/{file.name}") for file in files]
