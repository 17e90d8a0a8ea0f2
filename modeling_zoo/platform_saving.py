"""A folder that a model is saved into, for the first time or again: one set of weights, what belongs to it, a card."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from configuration_zoo import ZooConfig

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# What a folder keeps beside its weights for converting back; nothing here reads it.
SOURCE_FOLDER = "source"


class SavedFolder:
    """Saving as transformers does it, and what it leaves to the model. A mixin in front of `PreTrainedModel`."""

    def save_pretrained(
        self, save_directory: str | os.PathLike, is_main_process: bool = True, *args: Any, **kwargs: Any
    ) -> None:
        before = modification_times(save_directory)
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if is_main_process and is_first_rank():
            remove_older_set(save_directory, before)
            copy_kept(self.config, save_directory)

    def load_custom_generate(self, pretrained_model_name_or_path: str | None = None, **kwargs: Any) -> Callable:
        """transformers' own. Raises OSError for the model's own folder, whose code is its two files: loading it
        looks for no third one."""
        if pretrained_model_name_or_path == self.config.name_or_path:
            raise OSError(f"{pretrained_model_name_or_path} generates as transformers does.")
        return super().load_custom_generate(pretrained_model_name_or_path, **kwargs)

    def _upload_modified_files(self, working_dir, *args, **kwargs):
        self.config.write_card(working_dir)
        copy_kept(self.config, working_dir)
        return super()._upload_modified_files(working_dir, *args, **kwargs)


def is_first_rank() -> bool:
    """Whether this process is the one that transformers lets write, of one or of many."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def copy_source_folder(config: ZooConfig, folder: str | os.PathLike) -> None:
    """`source/` of the folder the model was loaded from goes where the whole model goes: an adapter alone needs none.

    Files of gigabytes are linked to, not copied, where both places are on one disk.
    """
    kept, target = source_folder_of(config), Path(folder)
    if kept is None or not (target / "config.json").is_file() or kept.resolve() == (target / SOURCE_FOLDER).resolve():
        return
    for path in [path for path in kept.rglob("*") if path.is_file()]:
        place = target / SOURCE_FOLDER / path.relative_to(kept)
        if is_the_file(place, path):
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        try:
            os.link(path.resolve(), place)
        except OSError:
            # Another process may have linked it in the meantime.
            if not is_the_file(place, path):
                shutil.copyfile(path, place)


def is_the_file(place: Path, path: Path) -> bool:
    """Whether `place` is the file `path` already, by a link of some kind."""
    return place.exists() and place.samefile(path)


def source_folder_of(config: ZooConfig) -> Path | None:
    """The folder `source/` that belongs to a loaded config: of a local folder, or as far as a Hub cache has it."""
    name = str(getattr(config, "name_or_path", "") or "")
    if not name:
        return None
    if Path(name).is_dir():
        return Path(name) / SOURCE_FOLDER if (Path(name) / SOURCE_FOLDER).is_dir() else None
    try:
        manifest = try_to_load_from_cache(name, f"{SOURCE_FOLDER}/manifest.json")
    except HFValidationError:
        return None
    return Path(manifest).parent if isinstance(manifest, str) else None


# What is beside the weights of a model with this field.
KEPT_BESIDE = {"source_config": copy_source_folder}


def copy_kept(config: ZooConfig, folder: str | os.PathLike) -> None:
    """Copies what a model of this config has beside its weights."""
    for field, copy in KEPT_BESIDE.items():
        if getattr(config, field) is not None:
            copy(config, folder)


def modification_times(folder: str | os.PathLike) -> dict[str, int | None]:
    """When the one file and the index of a folder were written, None for one that is not there."""
    paths = {name: Path(folder) / name for name in (WHOLE, INDEX)}
    return {name: path.stat().st_mtime_ns if path.is_file() else None for name, path in paths.items()}


def remove_older_set(folder: str | os.PathLike, before: dict[str, int | None]) -> None:
    """Of one file and shards beside each other only the set just written stays: readers prefer the one file, whatever
    its age."""
    after = modification_times(folder)
    written = [name for name in after if after[name] != before[name]]
    if written == [INDEX]:
        (Path(folder) / WHOLE).unlink(missing_ok=True)
    elif written == [WHOLE] and after[INDEX] is not None:
        index = Path(folder) / INDEX
        for shard in set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()):
            if shard != WHOLE and Path(shard).name == shard:
                (Path(folder) / shard).unlink(missing_ok=True)
        index.unlink()
