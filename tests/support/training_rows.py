"""What a Trainer is given: rows of different lengths, and the batch they make."""

import torch


def documents(count=8, shortest=3, longest=13, vocab_size=101):
    """Rows of different lengths; prompts are no targets."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for index in range(count):
        length = shortest + (index * 7) % (longest - shortest)
        ids = torch.randint(6, vocab_size, (length,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": [-100] * (index % 3) + ids[index % 3 :]})
    return rows


def pad_right(rows):
    """Rows of different lengths as one batch, padded on the right."""
    width = max(len(row["input_ids"]) for row in rows)

    def fill(name, value):
        return torch.tensor([row[name] + [value] * (width - len(row[name])) for row in rows])

    mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows])
    return {"input_ids": fill("input_ids", 0), "labels": fill("labels", -100), "attention_mask": mask}
