"""Run by test_decode_kernels in a process of its own, in which triton interprets: prints {case: largest error}."""

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch  # noqa: E402

from modeling_zoo import ops_attention_triton as kernels  # noqa: E402
from modeling_zoo import ops_attention_triton_indexer as indexer  # noqa: E402
from modeling_zoo.ops_attention_indexer import plain_ranks  # noqa: E402

SPLITS = None


def forced_splits(programs, tiles, device, chosen=kernels.num_splits):
    return SPLITS or chosen(programs, tiles, device)


def exact(query, key, value, width, scaling, positions=None, visible=None):
    """The same, row by row, in float64; zero where all is hidden."""
    value = key[..., :width] if value is None else value
    output = torch.zeros(*query.shape[:3], width, dtype=torch.float64)
    for b in range(query.shape[0]):
        chosen = torch.arange(key.shape[2]) if positions is None else positions[b].long()
        chosen = chosen if visible is None else chosen[visible[b]]
        for h in range(query.shape[1] if len(chosen) else 0):
            scores = query[b, h].double() @ key[b, h, chosen].double().T * scaling
            output[b, h] = torch.softmax(scores, -1) @ value[b, h, chosen].double()
    return output


def error(found, expected):
    return ((found.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


def latent(dtype=torch.float32, keys=83, heads=18, rank=20, rope=6, **options):
    """18 heads over one latent of 20 channels and a rope key of 6, side by side in storage with room to spare."""
    storage = torch.randn(2, 1, keys + 9, rank + rope).to(dtype)
    key = storage[:, :, 5 : 5 + keys]
    return (torch.randn(2, 1, heads, rank + rope).to(dtype), key, None, rank, 0.3), options


def grouped(groups=3, width=70, value=33, keys=45, dtype=torch.float32, **options):
    """Two key heads with `groups` queries each over a part of a storage, wider keys than values."""
    storage, values = torch.randn(2, 2, keys + 15, width).to(dtype), torch.randn(2, 2, keys + 15, value).to(dtype)
    part = slice(7, 7 + keys)
    query = torch.randn(2, 2, groups, width).to(dtype)
    return (query, storage[:, :, part], values[:, :, part], value, 0.2), options


def sparse(**options):
    """The chosen rows alone, in no order, some of them hidden."""
    positions = torch.stack([torch.randperm(83)[:37] for _ in range(2)]).int()
    return latent()[0], {"positions": positions, "visible": torch.rand(2, 37) > 0.3, **options}


def seen(keys, *parts):
    """Booleans `[B, keys]`: of each sequence the keys from a first to a last one."""
    at = torch.arange(keys)
    return torch.stack([(at >= first) & (at < last) for first, last in parts])


def hidden_nan(case, *parts):
    """The same case with keys and values that are no numbers wherever they are hidden."""
    (query, key, value, *others), options = case
    visible = seen(key.shape[2], *parts)
    for part in (key, value):
        if part is not None:
            part.masked_fill_(~visible[:, None, :, None], torch.nan)
    return (query, key, value, *others), options | {"visible": visible}


CASES = {
    "latent": lambda: latent(),
    "latent in one split": lambda: latent(splits=1),
    "latent in more splits than tiles": lambda: latent(splits=50),
    "latent, one key": lambda: latent(keys=1),
    "latent, one head": lambda: latent(heads=1),
    "latent without rope": lambda: latent(rope=0),
    "latent, a tile and a key": lambda: latent(keys=33, splits=3),
    "sparse": lambda: sparse(),
    "sparse in splits": lambda: sparse(splits=2),
    "padded": lambda: hidden_nan(latent(splits=3), (0, 83), (70, 83)),
    "static, 1 and 64 of 83": lambda: hidden_nan(latent(splits=5), (0, 1), (0, 64)),
    "static, nothing and a tile": lambda: hidden_nan(latent(splits=2), (0, 0), (0, 32)),
    "static, more than is looked at once": lambda: hidden_nan(latent(keys=9000, heads=2), (8190, 8195), (8999, 9000)),
    "grouped": lambda: grouped(),
    "grouped in splits": lambda: grouped(splits=2),
    "grouped, padded": lambda: hidden_nan(grouped(splits=2), (3, 45), (0, 17)),
    "grouped, some hidden": lambda: grouped(splits=2, visible=torch.rand(2, 45) > 0.4),
    "latent, some hidden": lambda: latent(splits=3, visible=torch.rand(2, 83) > 0.4),
    "grouped, static": lambda: hidden_nan(grouped(groups=7), (0, 44), (0, 0)),
    "grouped, a window": lambda: hidden_nan(grouped(groups=1, keys=90, splits=4), (40, 73), (16, 48)),
    **{f"groups of {count}": lambda count=count: grouped(count, 24, 24) for count in (1, 2, 5, 16, 17, 33)},
    **{
        f"widths {width} and {value}": lambda width=width, value=value: grouped(2, width, value, keys=37)
        for width, value in ((16, 16), (24, 40), (33, 17), (64, 64), (80, 80), (100, 36), (192, 128), (256, 256))
    },
}
# float16: the interpreter's products in bfloat16 are no numbers at all.
HALF = {
    "latent in float16": lambda: latent(torch.float16),
    "latent in float16, 70 heads": lambda: hidden_nan(latent(torch.float16, heads=70, keys=130), (0, 100), (3, 129)),
    "grouped in float16": lambda: grouped(8, 64, 64, 130, torch.float16, splits=2),
    "grouped in float16, 40 queries": lambda: grouped(40, 64, 64, 130, torch.float16),
}


def large_scores():
    """Visible scores of -1.4e5: hidden ones far above them have no part."""
    query, key = torch.full((1, 1, 2, 16), 30.0), torch.full((1, 1, 40, 16), -300.0)
    key[:, :, 20:] = 300.0
    return (query, key, torch.randn(1, 1, 40, 16), 16, 1.0), {"visible": seen(40, (0, 20))}


def indexed(batch, length, heads, width, count, dtype=torch.float32):
    """The largest error of an indexer's scores, relative to the largest score; keys lie in a storage with room."""
    query, weights = torch.randn(batch, length, heads, width).to(dtype), torch.randn(batch, length, heads)
    key = torch.randn(batch, count + 9, width).to(dtype)[:, 3 : 3 + count]
    products = torch.einsum("bthd,bsd->bths", query.double(), key.double()).relu()
    expected = torch.einsum("bths,bth->bts", products, weights.double())
    return error(indexer.scores_by_kernel(query, key, weights), expected)


def ranked():
    """0.0 where the kernel gives the integers of the plain form: zeros of both signs, infinities, equal scores."""
    scores = torch.randn(2, 3, 1500).round(decimals=1)
    scores[..., ::7], scores[..., ::11] = 0.0, -0.0
    scores[0, 0, :5] = torch.tensor([torch.inf, -torch.inf, 1e-40, -1e-40, -torch.inf])
    return float(not torch.equal(indexer.ranks_by_kernel(scores), plain_ranks(scores)))


INDEXED = {
    "indexed, a token": (2, 1, 64, 32, 200),
    "indexed, few heads": (1, 1, 3, 20, 65),
    "indexed, a prompt": (2, 7, 20, 16, 129),
    "indexed, narrow prompt": (1, 33, 5, 16, 40),
    "indexed, one key": (1, 2, 64, 16, 1),
}


def compiled():
    """{what: number}: a decoded token compiled into one graph, with how many nodes of it are the operation."""
    nodes = []

    def count(graph, inputs):
        nodes.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    arguments, options = hidden_nan(latent(), (0, 83), (70, 83))
    run = torch.compile(kernels.split_decode, backend=count, fullgraph=True)
    found = error(run(*arguments, **options), exact(*arguments, **options))
    return {"compiled": found, "nodes": sum("split_decode" in node for node in nodes), "of": len(nodes)}


def checked():
    """What torch's own check of an operation finds: schema, shape without a device, tracing."""
    for arguments, options in (latent(keys=20), sparse(), grouped(groups=2, width=16, value=8)):
        query, key, value, *others = arguments
        values = (query, key, value, *others, options.get("positions"), options.get("visible"))
        torch.library.opcheck(kernels.KERNELS.call, values)
    torch.library.opcheck(indexer.INDEXER.call, (torch.randn(1, 2, 3, 16), torch.randn(1, 9, 16), torch.randn(1, 2, 3)))
    torch.library.opcheck(indexer.RANKER.call, (torch.randn(2, 5),))
    return True


if __name__ == "__main__":
    torch.manual_seed(0)
    kernels.num_splits = forced_splits
    kernels.use_triton = lambda states: True
    found = {}
    with torch.no_grad():
        for name, make in {**CASES, **HALF, "large scores": large_scores}.items():
            arguments, options = make()
            SPLITS = options.pop("splits", None)
            found[name] = error(kernels.split_decode(*arguments, **options), exact(*arguments, **options))
        found |= {name: indexed(*sizes) for name, sizes in INDEXED.items()}
        found["indexed, ranks"] = ranked()
        found["indexed in float16"] = indexed(1, 3, 64, 128, 150, torch.float16)
        SPLITS = None
        plain, options = hidden_nan(grouped(), (3, 45), (0, 17))
        found["plain"] = error(kernels.plain_split_decode(*plain, **options), exact(*plain, **options))
        found |= compiled() | {"checked": checked()}
    json.dump(found, sys.stdout)
