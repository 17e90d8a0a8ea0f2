"""The guides of concepts: every flag has one, their examples are computed, and the pages are what is computed now."""

import ast
import re

import pytest

from benchmarks.ablations import SEEDS, key_of, models_of, results
from configuration_zoo import ZooConfig
from description_zoo.flags import flags
from zoo.site.concepts import CONCEPTS, NO_CONCEPT, flags_of
from zoo.site.front import families_table, mixed, mixed_picture
from zoo.site.guides import FRONT, PAGES, ROOT, code, index, page, picture_files, readme_table, text_of, with_part
from zoo.site.uses import concepts_of_families, uses_table
from zoo.site.worked import WORKED

USES = re.compile(r"## Who uses it\n.*?(?=\n## )", re.DOTALL)


def test_every_flag_has_a_guide():
    every = flags()
    explained = {name for concept in CONCEPTS.values() for name in flags_of(concept, every)}
    assert every.keys() - explained == NO_CONCEPT
    assert explained <= every.keys()


@pytest.mark.parametrize("slug", CONCEPTS)
def test_a_guide_is_whole(slug):
    concept = CONCEPTS[slug]
    said = text_of(concept)
    assert {"idea", "Formula", "When not to"} <= said.keys() and all(len(text) > 60 for text in said.values())
    assert concept.sources and all(re.search(r"(19|20)\d\d", source) for source in concept.sources)
    assert {*concept.see} <= CONCEPTS.keys() - {slug}
    for block in re.findall(r"```python\n(.*?)```", code(concept), re.DOTALL):
        ast.parse(block)
    for small in (False, True) if concept.trained else (False,):
        mine, other = (ZooConfig(**fields) for fields in concept.sizes(small))
        assert mine.to_diff_dict() != other.to_diff_dict()


# No mixer, no part of a layer: what a drawing or a reference of code could show is the text's.
NO_PICTURE = {"z-loss", "hyperparameters", "initialisation", "multipliers"}
NO_CODE = {"hyperparameters", "initialisation", "multipliers", "embedding-and-head", "attention-residuals", "altup"}
# Not trained yet: `python benchmarks/ablations.py --only SLUG`.
NO_ABLATION = {"attention-residuals", "altup"}
# Caches that no case of `python -m benchmarks plot` has yet.
NO_CURVE = {"factored-attention", "shared-keys-and-values", "other-softmaxes", "shared-blocks", "hyperparameters"}


@pytest.mark.parametrize("slug", CONCEPTS)
def test_a_guide_has_each_of_its_parts(slug):
    """Idea, picture, formula, code, flags, costs, decoding, ablation, who uses it, when not to, sources."""
    text = (PAGES / f"{slug}.md").read_text(encoding="utf-8")
    parts = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    assert {"Formula", "Flags", "Costs", "Who uses it", "When not to", "Sources"} <= parts.keys()
    idea = text.split("## Formula")[0]
    assert ("![" in idea) == (slug not in NO_PICTURE) and len(idea) > 300
    assert ("In code" in parts) == (slug not in NO_CODE)
    config = re.search(r"```python\n(.*?)```", parts["Flags"], re.DOTALL)[1]
    assert "ZooConfig(" in config and len(config.strip().splitlines()) <= 10
    costs = parts["Costs"]
    assert all(f"cache at {length}" in costs for length in ("1K", "8K", "128K")) and "parameters" in costs
    assert "operations of a decoded token" in costs and "operations of a token of training" in costs
    measured = parts.get("Measured", "")
    trained = "three seeds" in measured and f"benchmarks/ablations.py --only {slug}" in measured
    assert trained == (slug not in NO_ABLATION)
    assert ("zoo, ms" in measured or "the measured curve" in measured) == (slug not in NO_CURVE)


@pytest.mark.sampled(14)
@pytest.mark.parametrize("slug", CONCEPTS)
def test_a_page_is_what_is_computed_now(slug):
    """`python -m zoo.site.guides` writes them; who uses a concept is compared below."""
    written = (PAGES / f"{slug}.md").read_text(encoding="utf-8")
    assert USES.sub("", written) == USES.sub("", page(CONCEPTS[slug], {}))
    for name, (_, document) in picture_files(CONCEPTS[slug]).items():
        assert document.startswith("<svg") and (PAGES / "pictures" / name).is_file()
    links = re.findall(r"\]\((?!https?:)([^)#]+)", written)
    assert [link for link in links if not (PAGES / link).exists()] == []


@pytest.mark.long
def test_the_families_on_the_pages_set_the_flags():
    families = concepts_of_families()
    for slug, concept in CONCEPTS.items():
        assert uses_table(concept, flags(), families) in (PAGES / f"{slug}.md").read_text(encoding="utf-8"), slug
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_part(readme, "families", families_table()) == readme


def test_the_lists_of_guides_are_current():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_part(readme, "concepts", readme_table()) == readme and readme.count("docs/concepts/") > len(CONCEPTS)
    assert with_part(readme, "mixed", mixed()) == readme and FRONT.read_text(encoding="utf-8") == mixed_picture()
    assert (PAGES / "index.md").read_text(encoding="utf-8") == index()


@pytest.mark.parametrize(
    "name, says",
    [
        pytest.param("estimated_caches", ("17.18 GB", "4.29 GB", "3.14 GB", "0.78 GB"), marks=pytest.mark.long),
        pytest.param("estimated_latent", ("3.25 GB", "0.81 GB", "0.86 GB"), marks=pytest.mark.long),
        ("estimated_experts", ("308 million", "77 million")),
        ("matched_widths", ("2,048 = 4,718,592", "3,072 = 4,718,592")),
        ("decoded_shapes", ("`[1, 2, 3, 4]`, keys and values 96 bytes", "`[1, 1, 3, 4]`, keys and values 48 bytes")),
        ("published_ratios", ("| bloom-176b | 205 | 4 | 1 | 250,880 |", "| gpt3-175b | 128 | 4 | 1 | 50,257 |")),
        ("published_ratios", ("| llama-65b | 102 | 2.69 | 1 | 32,000 |", "| t5-11b-decoder | 43 | 64 | 16 | 32,128 |")),
        ("z_loss", ("ln Z = 12.018",)),
        ("z_loss_total", ("16.79",)),
    ],
)
def test_worked_examples_are_computed(name, says):
    assert all(words in WORKED[name]() for words in says)
    assert any(f"{{{{{name}}}}}" in path.read_text(encoding="utf-8") for path in (ROOT / "zoo/site/text").glob("*.md"))


@pytest.mark.long
def test_every_ablation_has_its_seeds():
    found = results()
    wanted = {key_of(fields) for concept in CONCEPTS.values() if concept.trained for fields in models_of(concept)}
    assert {*found} == wanted
    assert all({*run["losses"]} == {str(seed) for seed in SEEDS} for run in found.values())
