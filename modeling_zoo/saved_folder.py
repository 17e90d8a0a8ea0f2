"""A folder that a model is saved into, once more or for the first time: one set of weights, and a card."""

import json
from pathlib import Path

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class SavedFolder:
    """Saving as transformers does it, and what it leaves to the model. A mixin in front of `PreTrainedModel`."""

    def save_pretrained(self, save_directory, is_main_process=True, *args, **kwargs):
        before = stamps(save_directory)
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if is_main_process:
            remove_older_set(save_directory, before)

    def _upload_modified_files(self, working_dir, *args, **kwargs):
        self.config.write_card(working_dir)
        return super()._upload_modified_files(working_dir, *args, **kwargs)


def stamps(folder) -> dict[str, int | None]:
    """When the one file and the index of a folder were written, None for one that is not there."""
    paths = {name: Path(folder) / name for name in (WHOLE, INDEX)}
    return {name: path.stat().st_mtime_ns if path.is_file() else None for name, path in paths.items()}


def remove_older_set(folder, before: dict[str, int | None]) -> None:
    """Of one file and shards beside each other only the set just written stays: readers prefer the one file, whatever
    its age."""
    after = stamps(folder)
    written = [name for name in after if after[name] != before[name]]
    if written == [INDEX]:
        (Path(folder) / WHOLE).unlink(missing_ok=True)
    elif written == [WHOLE] and after[INDEX] is not None:
        index = Path(folder) / INDEX
        for shard in set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()):
            if shard != WHOLE and Path(shard).name == shard:
                (Path(folder) / shard).unlink(missing_ok=True)
        index.unlink()
