"""Positions the slow way: one number after the other, from the papers' formulas."""

import math


def alibi_slopes(heads):
    """2^(-8i/n) for a power of two; otherwise the nearest one below and every second slope of the one above."""
    if heads & (heads - 1) == 0:
        return [2 ** (-8 * (i + 1) / heads) for i in range(heads)]
    below = 2 ** (heads.bit_length() - 1)
    return alibi_slopes(below) + alibi_slopes(2 * below)[0::2][: heads - below]


def sinusoid(position, dim, layout="interleaved"):
    """Vaswani et al. 2017, §3.5; its sines before its cosines; so with the last wave exactly 10000 long."""
    if layout == "interleaved":
        return [
            (math.cos if channel % 2 else math.sin)(position / 10000 ** ((channel - channel % 2) / dim))
            for channel in range(dim)
        ]
    if layout == "halves":
        pairs = sinusoid(position, dim)
        return pairs[0::2] + pairs[1::2]
    angles = [position / 10000 ** (wave / (dim // 2 - 1)) for wave in range(dim // 2)]
    return [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles] + [0.0] * (dim % 2)


def frequencies(table, head_dim, trained, length):
    """(frequency of each pair, factor on cos and sin) for a sequence of `length`, by the scaling `table` names."""
    share = table.get("partial_rotary_factor", 1.0)
    kind, theta = table["rope_type"], table["rope_theta"]
    if kind == "proportional":
        turning = int(share * head_dim // 2)
        plain = [theta ** (-2 * j / head_dim) / table.get("factor", 1.0) for j in range(turning)]
        return plain + [0.0] * (head_dim // 2 - turning), 1.0
    width = int(head_dim * share)
    if kind == "dynamic":
        stretch = table["factor"] * max(length, trained) / trained - (table["factor"] - 1)
        theta *= stretch ** (width / (width - 2))
    plain = [theta ** (-2 * j / width) for j in range(width // 2)]
    if kind in ("default", "dynamic"):
        return plain, 1.0
    return {"linear": linear, "llama3": llama3, "yarn": yarn, "longrope": longrope}[kind](table, plain, trained, length)


def linear(table, plain, trained, length):
    return [f / table["factor"] for f in plain], 1.0


def llama3(table, plain, trained, length):
    """Waves much shorter than the original length stay, much longer ones are stretched, those between are blended."""
    original = table["original_max_position_embeddings"]
    low, high = table["low_freq_factor"], table["high_freq_factor"]
    found = []
    for f in plain:
        turns = original / (2 * math.pi / f)
        blend = min(max((turns - low) / (high - low), 0.0), 1.0)
        found.append(blend * f + (1 - blend) * f / table["factor"])
    return found, 1.0


def yarn(table, plain, trained, length):
    """Peng et al. 2023, §3: pairs that turn often over the original length stay, those that hardly do are stretched."""
    original, factor = table["original_max_position_embeddings"], table["factor"]
    width, theta = 2 * len(plain), table["rope_theta"]

    def pair_with(turns):
        return width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_with(table.get("beta_fast", 32)), pair_with(table.get("beta_slow", 1))
    if table.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    found = []
    for j, f in enumerate(plain):
        stretched = min(max((j - low) / (high - low), 0.0), 1.0)
        found.append(stretched * f / factor + (1 - stretched) * f)

    def growth(weight):
        return 0.1 * weight * math.log(factor) + 1

    if "attention_factor" in table:
        return found, table["attention_factor"]
    if "mscale" in table:
        return found, growth(table["mscale"]) / growth(table["mscale_all_dim"])
    return found, growth(1)


def longrope(table, plain, trained, length):
    """Ding et al. 2024: factors found by search, one list for sequences up to the original length, one beyond."""
    original = table["original_max_position_embeddings"]
    factors = table["long_factor"] if length > original else table["short_factor"]
    growth = table.get("factor", trained / original)
    scale = table.get("attention_factor", math.sqrt(1 + math.log(growth) / math.log(original)))
    return [f / factor for f, factor in zip(plain, factors, strict=True)], scale


def turn(head, position, table_frequencies, interleave):
    """One head as a list, its pairs turned; channels without a pair stay."""
    found, turned, width = list(head), table_frequencies, 2 * len(table_frequencies)
    for j, f in enumerate(turned):
        a, b = (2 * j, 2 * j + 1) if interleave else (j, j + width // 2)
        cos, sin = math.cos(position * f), math.sin(position * f)
        found[a], found[b] = head[a] * cos - head[b] * sin, head[b] * cos + head[a] * sin
    return found
