"""The site: its numbers are those of `zoo inspect`, its pages are there, its links lead somewhere."""

import json
import re
from pathlib import Path

import pytest
from browser import SIZES, dead_links, look, opened
from typer.testing import CliRunner

from configuration_zoo import ZooConfig
from configuration_zoo.presets import presets
from conversion.engine.registry import known_families
from description_zoo.difference import difference, flags_that_differ
from description_zoo.flags import flags
from zoo.cli.main import app
from zoo.inspection import reported
from zoo.site import data, models
from zoo.site.computed_pages import flags_page, layers_table, model_page
from zoo.site.links import ROOT, Stage, place_of
from zoo.site.models import Shown, entry_of, own_name
from zoo.site.ribbon import ribbon

A_FEW = ("gpt2", "gemma-3-1b", "qwen3-next-80b-a3b")
WRITTEN = sorted([*ROOT.glob("docs/*.md"), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md"))])


@pytest.fixture(scope="module")
def few():
    """{name: (entry, report)} of presets without and with windows, recurrences and experts."""
    return {name: entry_of(Shown("presets", name, ZooConfig.preset(name), "A test.")) for name in A_FEW}


@pytest.mark.parametrize("name", A_FEW)
def test_numbers_are_those_of_inspect(few, name):
    entry, _ = few[name]
    for length, held in entry["cache"].items():
        report = reported(ZooConfig.preset(name), context=int(length))
        assert held == report["cache"]["bytes"]
        assert entry["flops"][length] == report["flops"]
    assert entry["totals"]["parameters"] == report["parameters"]
    assert entry["totals"]["active_parameters"] == report["active_parameters"]
    assert entry["totals"]["cache_bytes_per_token"] == report["cache"]["bytes_per_token"]
    assert json.loads(json.dumps(entry)) == entry


def test_what_differs_can_be_read_off_the_data(few):
    """The page's script compares what is stated and not the same; so does `zoo diff`."""
    one, other = (few[name][0] for name in A_FEW[:2])
    stated = {*one["stated"], *other["stated"]}
    pairs = {name: [one["flags"].get(name), other["flags"].get(name)] for name in stated}
    expected = flags_that_differ(*(ZooConfig.preset(name) for name in A_FEW[:2]))
    assert {name: pair for name, pair in pairs.items() if pair[0] != pair[1]} == json.loads(json.dumps(expected))


def test_a_model_has_a_card_a_page_and_a_ribbon(few):
    for name, (entry, report) in few.items():
        html = data.card(entry, "{key}.html")
        assert f'href="presets/{name}.html"' in html and 'alt=""' not in html and "KV " in html
        page = model_page(entry, report, "## Card")
        assert f"{entry['totals']['parameters']:,}" in page and layers_table(report) in page
        assert ribbon(name, entry["pattern"], report["layers"]).count("<rect") >= len(report["layers"])
    assert {"recurrences", "experts", "gated attention"} <= {*few["qwen3-next-80b-a3b"][0]["words"]}
    assert few["gemma-3-1b"][0]["words"] == ["one key-value head", "windows", "QK norm"]


def stand_in(out):
    out.mkdir()
    (out / "index.html").write_text("", encoding="utf-8")


def test_the_command_writes_models_of_ones_own(tmp_path, monkeypatch):
    config = tmp_path / "mine" / "config.json"
    config.parent.mkdir()
    ZooConfig.preset("gpt2", num_hidden_layers=3).save_pretrained(config.parent)
    monkeypatch.setattr(models, "presets", lambda: {"gpt2": presets()["gpt2"]})
    monkeypatch.setattr(models, "known_families", lambda: ["gpt2"])
    # Its own tests write the explorer.
    monkeypatch.setattr(data, "write_explorer", stand_in)
    done = CliRunner().invoke(app, ["site", str(tmp_path / "out"), str(config)])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out" / "models.json").read_text(encoding="utf-8"))
    assert [model["key"] for model in found] == ["yours/mine", "presets/gpt2", "families/gpt2"]
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    for link in re.findall(r'(?:href|src)="(?!data:)([^"#]+)"', page):
        assert (tmp_path / "out" / link).is_file(), link
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    again = CliRunner().invoke(app, ["site", str(tmp_path / "out")])
    assert again.exit_code and "not empty" in str(again.exception)


def test_a_wrong_model_is_refused_before_anything_is_written(tmp_path):
    done = CliRunner().invoke(app, ["site", str(tmp_path / "out"), "no-such-model"])
    assert done.exit_code and "no preset 'no-such-model'" in str(done.exception)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "model, name", [("a/b/config.json", "b"), ("tiny.json", "tiny"), ("org/name@main", "name-main"), ("..", "here")]
)
def test_a_model_of_ones_own_has_a_name(model, name, tmp_path, monkeypatch):
    (tmp_path / "here" / "in").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "in")
    assert own_name(model) == name


def test_the_page_of_flags_has_every_flag():
    page, every = flags_page(), flags()
    assert all(f"{{ #{name} }}" in page and facts["meaning"] in page for name, facts in every.items())


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_links_lead_somewhere_and_pictures_are_described(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", text)
    assert [link for link in links if not (path.parent / link).exists()] == []
    assert [alt for alt in re.findall(r"!\[([^\]]*)\]", text) if len(alt) < 8] == []
    assert all("alt=" in image for image in re.findall(r"<img[^>]*>", text))


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_places_that_links_name_are_headings_of_the_site(path):
    """README.md is no page of the site: what stands there alone cannot be led to."""
    for link, place in re.findall(r"\]\(((?!https?:)[^)#\s]+\.md)#([^)\s]+)\)", path.read_text(encoding="utf-8")):
        target = path.parent / link
        headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
        places = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert place in places and target.resolve() != ROOT / "README.md"


def test_links_are_led_to_where_pages_stand(tmp_path):
    stage = Stage(tmp_path)
    text = "[a](../serving.md#x) [b](../../modeling_zoo/norms.py) [c](https://x.y) [d](#e)\n```\n[f](g.md)\n```"
    expected = text.replace("../../modeling_zoo/norms.py", "../source/modeling_zoo/norms.py.md")
    assert stage.translated(text, "docs/concepts/norms.md") == expected
    assert stage.linked == {"modeling_zoo/norms.py"}
    stage.write_code()
    assert "class RMSNorm" in (tmp_path / "source/modeling_zoo/norms.py.md").read_text(encoding="utf-8")
    assert place_of("model_cards/openai_gpt.md") == "gallery/families/openai-gpt.md"


def test_every_page_of_the_navigation_is_written():
    pytest.importorskip("mkdocs", reason="`make docs` installs it")
    from zoo.site.api_pages import PACKAGES
    from zoo.site.build import OWN, PAGES, navigation
    from zoo.site.concepts import CONCEPTS

    written = {place_of(path) for path in PAGES} | {f"concepts/{slug}.md" for slug in CONCEPTS}
    written |= {f"api/{package}.md" for package in PACKAGES} | {path.name for path in OWN.glob("*.md")}
    written |= {"concepts/index.md", "flags.md", "gpu.md", "gallery/index.md", "explorer/index.html"}
    assert {path.name for path in ROOT.glob("docs/*.md")} <= {*leaves(navigation())} <= written
    assert all(Path(ROOT / path).is_file() for path in PAGES)


def leaves(entries):
    for entry in entries:
        if isinstance(entry, str):
            yield entry
        else:
            for value in entry.values():
                yield from leaves(value if isinstance(value, list) else [value])


# -- in a browser: `make test-docs` ------------------------------------------------------------------------------------

IMPORTANT = (
    "index", "quick-start", "concepts/index", "concepts/latent-attention", "gallery/index",
    "gallery/presets/qwen3-next-80b-a3b", "gallery/families/deepseek_v3", "flags", "training", "gpu", "api/zoo",
)  # fmt: skip
PAIRS = (
    ("presets/llama3-8b", "presets/qwen3-8b"),
    ("presets/gemma-3-27b", "presets/deepseek-v3"),
    ("presets/qwen3-next-80b-a3b", "presets/gpt2"),
    ("presets/gpt2", "presets/gpt2"),
)


def html(site):
    return sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))


@pytest.mark.docs
@pytest.mark.parametrize("size", SIZES)
def test_every_page_keeps_its_promises(site, address, size):
    with opened(size) as page:
        pages = {f"{address}/{path}": look(page, f"{address}/{path}") for path in html(site)}
        problems = page.problems
    assert len(pages) > 250 and problems == []
    assert dead_links(pages, address, site) == []
    assert all(facts["title"] for facts in pages.values())


@pytest.mark.docs
def test_pictures_of_the_important_pages(site, address):
    """For eyes: build/screenshots."""
    folder = ROOT / "build" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    for size in SIZES:
        for dark in (False, True):
            with opened(size, dark) as page:
                for name in IMPORTANT:
                    look(page, f"{address}/{name}.html")
                    file = f"{name.replace('/', '-')}-{size}-{'dark' if dark else 'light'}.png"
                    page.screenshot(path=folder / file)
                assert page.problems == []


@pytest.mark.docs
@pytest.mark.parametrize("one, other", PAIRS)
def test_the_page_compares_as_the_command_does(address, one, other):
    configs = tuple(ZooConfig.preset(name.split("/")[1]) for name in (one, other))
    expected = difference(tuple(reported(config, context=1024) for config in configs), configs)
    with opened() as page:
        look(page, f"{address}/gallery/index.html#one={one}&other={other}")
        found = page.evaluate("([one, other]) => window.zooDifference(one, other)", [one, other])
        shown = page.locator("#zoo-diff .zoo-result").inner_text()
        assert page.problems == []
    rows = [{"layers": row["layers"]} | {name: pair for name, *pair in row["rows"]} for row in found["layers"]]
    assert rows == json.loads(json.dumps(expected["layers"]))
    assert {name: pair for name, *pair in found["flags"]} == json.loads(json.dumps(expected["flags"]))
    totals = {name: pair for name, *pair in found["totals"]}
    for name in ("layers", "parameters", "active_parameters", "hidden_size", "bytes"):
        assert totals.get(name) == expected["totals"].get(name)
    assert ("differ in nothing" in shown) == (one == other)


@pytest.mark.docs
def test_the_gallery_finds_sorts_and_compares(address):
    with opened() as page:
        look(page, f"{address}/gallery/index.html")
        count = page.locator(".zoo-card").count()
        assert count == len(presets()) + len(known_families())
        page.get_by_label("Find").fill("deepseek")
        names = page.locator(".zoo-card:visible b").all_inner_texts()
        assert names and all("deepseek" in name for name in names if name.islower()) and len(names) < count
        page.get_by_label("Find").fill("")
        page.get_by_role("button", name="latent attention").click()
        page.get_by_label("Show").select_option("presets")
        page.get_by_label("Sort by").select_option("parameters")
        sizes = [int(card.get_attribute("data-parameters")) for card in page.locator(".zoo-card:visible").all()]
        assert len(sizes) >= 2 and sizes == sorted(sizes)
        for card in page.locator(".zoo-card:visible").all()[:2]:
            card.get_by_role("button", name="compare").click()
        assert page.locator(".zoo-result table tr").count() > 10
        assert page.locator(".zoo-drawings img").count() == 2
        page.locator(".zoo-card:visible a").first.click()
        page.wait_for_url("**/gallery/presets/*.html")
        page.get_by_role("link", name="compare with another").click()
        page.wait_for_url("**/gallery/index.html#one=presets/*")
        assert page.get_by_label("One").input_value().startswith("presets/")
        assert page.problems == []


@pytest.mark.docs
def test_search_and_colours(address):
    with opened() as page:
        look(page, f"{address}/index.html")
        scheme = page.locator("body").get_attribute("data-md-color-scheme")
        page.locator("label[for='__palette_1']:visible, label[for='__palette_2']:visible").first.click()
        page.locator(".md-search__input").first.fill("kv_lora_rank")
        page.locator(".md-search-result__link").first.wait_for(timeout=20000)
        assert "kv_lora_rank" in page.locator(".md-search-result__item").first.inner_text()
        assert scheme in ("default", "slate") and page.problems == []


@pytest.mark.docs
def test_the_gallery_opens_from_a_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "presets", lambda: {name: presets()[name] for name in A_FEW})
    monkeypatch.setattr(models, "known_families", lambda: ["gpt2"])
    monkeypatch.setattr(data, "write_explorer", stand_in)
    data.write_site(tmp_path / "out")
    with opened(dark=True) as page:
        look(page, f"{(tmp_path / 'out' / 'index.html').as_uri()}#one=presets/gpt2&other=presets/gemma-3-1b")
        assert page.locator(".zoo-card").count() == 4 and page.locator(".zoo-result tr").count() > 10
        page.screenshot(path=tmp_path / "gallery.png")
        assert page.problems == []
