"""The explorer in Chromium, as somebody uses it: `make test-docs`."""

import json
import re
from pathlib import Path

import pytest
import torch
from browser import SIZES, opened
from tiny_models import tiny_config
from transformers import AutoModelForCausalLM, AutoTokenizer

from configuration_zoo import ZooConfig
from configuration_zoo.presets import presets
from conversion import known_families
from conversion.engine.catalog import usual_config
from conversion.engine.config_bridge import import_config
from description_zoo.flops import flops
from description_zoo.measure import cache_totals, empty_model, measure
from description_zoo.numbers import short, short_bytes
from modeling_zoo import ZooForCausalLM
from zoo.site.explorer.data import ROUTED, STORIES

pytestmark = pytest.mark.docs
PICTURES = Path(__file__).parents[2] / "build" / "screenshots"


@pytest.fixture
def page(address):
    with opened() as page:
        page.goto(f"{address}/explorer/index.html")
        yield page
        assert page.problems == []


def cards(page):
    """{title: (short number, text below)} of the cards."""
    found = page.locator(".card").evaluate_all(
        "all => all.map((one) => [...one.children].map((part) => part.innerText))"
    )
    return {title: (number, note) for title, number, note in found}


def change(page, name, value):
    box = page.locator(f"[id='flag-{name}']")
    if box.evaluate("one => one.tagName") == "SELECT":
        box.select_option(value)
    else:
        box.fill(value)
        box.press("Enter")


def refusal(page):
    box = page.get_by_role("alert")
    return box.inner_text() if box.is_visible() else None


def test_pages_lead_back_to_the_site(page):
    page.get_by_role("link", name="Home").click()
    page.wait_for_url("**/index.html")
    page.get_by_role("link", name="Explorer").first.click()
    page.wait_for_url("**/explorer/index.html")


def test_pages_open_from_a_disk(site):
    with opened() as page:
        for name, wanted in (("index.html", ".card"), ("run.html", ".tokens button")):
            page.goto((site / "explorer" / name).as_uri())
            assert page.locator(wanted).count() > 5
        assert page.problems == []


def every_model():
    yield from ((name, ZooConfig.preset(name)) for name in presets())
    yield from ((name, usual_config(name)) for name in known_families() if name not in presets())


def test_every_model_costs_what_measure_says(page):
    """Chosen one after the other; numbers as the page writes them."""
    page.locator("#context").fill("15")
    for name, config in every_model():
        page.locator("#model").select_option(name)
        model = empty_model(config)
        report = measure(config, model)
        page.locator("#dtype").select_option(report["dtype"])
        shown = cards(page)
        cache, count = cache_totals(report, 32768), flops(model, 32768)
        assert shown["parameters"][1] == f"{report['parameters']:,}", name
        assert shown["active for a token"][1].split(" (")[0] == f"{report['active_parameters']:,}", name
        assert shown["cache and state"][0] == short_bytes(cache["bytes"]), name
        assert shown["operations, decoding"][0] == short(count["decode"]), name
        assert shown["operations, prompt"][0] == short(count["prompt"]), name
        assert refusal(page) is None and page.locator("#diagram svg").count() == 1
        assert page.locator("#ribbon button").count() == config.num_hidden_layers


def test_flags_change_what_is_shown_and_contradictions_are_refused(page):
    page.locator("#model").select_option("llama3-8b")
    before = cards(page)
    change(page, "num_key_value_heads", "1")
    assert cards(page)["cache grows by"][0] == "16 KiB" and before["cache grows by"][0] == "128 KiB"
    change(page, "num_key_value_heads", "5")
    assert "num_attention_heads=32 must be a multiple of num_key_value_heads=5." in refusal(page)
    assert cards(page)["cache grows by"][0] == "16 KiB"
    change(page, "num_key_value_heads", "8")
    assert refusal(page) is None
    change(page, "layer_types", "3*sliding_attention, full_attention")
    assert "needs sliding_window, which is not set" in refusal(page)
    change(page, "sliding_window", "1024")
    assert refusal(page) is None and "3*sliding_attention, full_attention" in page.locator("#changes").inner_text()
    change(page, "num_hidden_layers", "48")
    expected = ZooConfig.preset(
        "llama3-8b", num_hidden_layers=48, layer_types="3*sliding_attention, full_attention", sliding_window=1024
    )
    report = measure(expected)
    assert cards(page)["parameters"][1] == f"{report['parameters']:,}"
    change(page, "attention_type", "latent")
    assert refusal(page) is None and "kv_lora_rank" in page.locator("#flags").inner_text()
    page.locator("#other").select_option("attn_output_gate")
    page.locator("#value").fill("sigmoid")
    page.locator("#set").click()
    assert "attn_output_gate='sigmoid' is not one of" in refusal(page)
    page.locator("#reset").click()
    assert refusal(page) is None and cards(page) == before


def test_a_config_can_be_brought(page, tmp_path):
    config = tiny_config(("qwen3_next", 0))
    own = json.loads(config.to_json_string(use_diff=True))
    files = {
        "config.json": own,
        "wrong.json": own | {"num_attention_heads": 7, "head_dim": None},
        "misspelt.json": own | {"num_exprts": 7},
        "llama.json": {"model_type": "llama", "hidden_size": 96, "num_attention_heads": 5},
        "unknown.json": {"model_type": "lama"},
        "list.json": [1],
    }
    for name, values in files.items():
        (tmp_path / name).write_text(json.dumps(values), encoding="utf-8")
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")

    def bring(name):
        page.locator("#file").set_input_files(tmp_path / name)
        page.wait_for_timeout(150)
        return refusal(page)

    assert bring("config.json") is None
    assert cards(page)["parameters"][1] == f"{measure(config)['parameters']:,}"
    assert "num_attention_heads=7" in bring("wrong.json")
    assert "num_exprts=7 is not a field of ZooConfig. Did you mean 'num_experts'?" in bring("misspelt.json")
    assert "hidden size (96) is not a multiple" in bring("llama.json")
    assert "model_type 'lama' is not known. Did you mean 'llama'" in bring("unknown.json")
    assert "holds no keys" in bring("list.json") and "is no JSON" in bring("broken.json")
    assert bring("config.json") is None


PUBLISHED = sorted((Path(__file__).parents[1] / "support" / "data" / "configs").glob("*.json"))


def test_published_configs_cost_what_zoo_inspect_says(page):
    page.locator("#context").fill("15")
    page.locator("#dtype").select_option("bfloat16")
    read = 0
    for path in PUBLISHED:
        page.locator("#file").set_input_files(path)
        page.locator("#source").filter(has_text=path.name).or_(page.get_by_role("alert")).first.wait_for()
        try:
            config = import_config(json.loads(path.read_text(encoding="utf-8")), dtype="bfloat16")
        except ValueError as error:
            assert str(error) in refusal(page), path.name
            continue
        read += 1
        assert refusal(page) is None, path.name
        model = empty_model(config)
        report = measure(config, model)
        shown = cards(page)
        assert shown["parameters"][1] == f"{report['parameters']:,}", path.name
        assert shown["active for a token"][1].split(" (")[0] == f"{report['active_parameters']:,}", path.name
        assert shown["cache and state"][0] == short_bytes(cache_totals(report, 32768)["bytes"]), path.name
        assert shown["operations, decoding"][0] == short(flops(model, 32768)["decode"]), path.name
    assert read > 70


def test_every_box_says_what_it_is(page):
    for model in ("deepseek-v3.2", "qwen3-next-80b-a3b", "zamba2", "gemma-4-26b-a4b", "falcon", "deepseek_v4", "opt"):
        if not page.locator(f"#model option[value='{model}']").count():
            continue
        page.locator("#model").select_option(model)
        for layer in {0, page.locator("#ribbon button").count() - 1}:
            page.locator("#ribbon button").nth(layer).click()
            boxes = page.locator("#diagram [data-box]").evaluate_all("all => all.map((one) => one.dataset.box)")
            assert "embedding" in boxes and len(boxes) > 4
            for box in dict.fromkeys(boxes):
                page.locator(f"#diagram [data-box='{box}']").first.press("Enter")
                text = page.locator("#detail").inner_text()
                assert "arameters" in text, (model, box)
                if not re.match("position|window|sinks|feature", box):
                    assert "modeling_zoo/" in text, (model, box)


def test_what_fits_a_gpu(page):
    page.locator("#model").select_option("llama3-70b")
    page.locator("#gpu").select_option("any of 80 GiB")
    verdict = page.locator("#memory .verdict")
    assert verdict.inner_text().startswith("Does not fit 80 GiB")
    page.locator("#tp").fill("2")
    assert verdict.inner_text().startswith("Fits 80 GiB") and "each of 4 ranks" in verdict.inner_text()
    page.locator("#ep").fill("2")
    assert "--ep 4 splits experts, and this model has none." in verdict.inner_text()


def test_the_model_at_work(address):
    with opened() as page:
        page.goto(f"{address}/explorer/run.html")
        page.locator("#text").fill("Once upon a time")
        page.locator("#temperature").fill("0")
        page.wait_for_timeout(400)
        assert page.locator("#tokens button").count() == 5
        for _ in range(3):
            page.locator("#next").click()
        assert page.locator("#story").inner_text() == "Once upon a time, there was"
        page.locator("#tokens button").nth(2).click()
        assert page.locator("#next-title").inner_text() == 'After "␣upon"'
        assert page.locator("#lens tr").count() == 7 and page.locator("#maps canvas").count() == 40
        page.locator("#maps figure").nth(13).click()
        assert page.locator("#map-title").inner_text() == "Layer 1, head 5"
        page.locator("#more").click()
        page.wait_for_timeout(600)
        page.locator("#stop").click()
        assert page.locator("#tokens button").count() > 9
        page.locator("#text").fill("")
        page.wait_for_timeout(400)
        assert page.locator("#tokens button").count() == 1
        page.locator("#text").fill("word " * 600)
        page.wait_for_timeout(1500)
        assert "sees 512 tokens" in page.locator("#limit").inner_text()
        assert page.problems == []


@pytest.mark.parametrize("name", ["stories260K", "routed"])
def test_what_the_page_predicts_is_what_pytorch_predicts(address, name):
    model_class, folder = {"stories260K": (AutoModelForCausalLM, STORIES), "routed": (ZooForCausalLM, ROUTED)}[name]
    model = model_class.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer, text = AutoTokenizer.from_pretrained(STORIES), "Once upon a time, there was a little girl. She"
    with torch.no_grad():
        best = model(**tokenizer(text, return_tensors="pt")).logits[0, -1].softmax(-1).topk(10)
    with opened() as page:
        page.goto(f"{address}/explorer/run.html")
        page.locator("#which").select_option(name)
        page.locator("#temperature").fill("1")
        page.locator("#text").fill(text)
        page.wait_for_timeout(800)
        shown = [float(one.removesuffix(" %")) for one in page.locator("#probabilities span").all_inner_texts()]
        assert shown == pytest.approx((best.values * 100).tolist(), abs=0.051)
        words = [one.replace("␣", "▁") for one in page.locator("#probabilities code").all_inner_texts()]
        assert words == tokenizer.convert_ids_to_tokens(best.indices)
        assert page.locator("#routing canvas").count() == (3 if name == "routed" else 0)
        assert page.locator("#routing-panel").is_visible() == (name == "routed")
        assert page.locator("#maps small").count() == (12 if name == "routed" else 0)
        page.locator("#more").click()
        page.wait_for_timeout(600)
        page.locator("#stop").click()
        assert page.problems == []


def test_pictures_of_the_explorer(address):
    """For eyes: build/screenshots."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    for size in SIZES:
        for dark in (False, True):
            with opened(size, dark) as page:
                for name, place in {
                    "explorer": "index.html?model=qwen3-next-80b-a3b",
                    "explorer-at-work": "run.html",
                    "explorer-routed": "run.html",
                }.items():
                    page.goto(f"{address}/explorer/{place}")
                    if name == "explorer-routed":
                        page.locator("#which").select_option("routed")
                    page.wait_for_timeout(300)
                    path = PICTURES / f"{name}-{size}-{'dark' if dark else 'light'}.png"
                    page.screenshot(path=path, full_page=True)
                    assert path.stat().st_size > 30_000
                assert page.problems == []
