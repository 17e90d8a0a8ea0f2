"""Tokens left out, with the tokenizer: a text of what stays is split as before, and the logits are the same bits."""

import json

import pytest
import torch
from surgery_models import STORIES, TEXT, family_config, logits, random_model
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from zoo.surgery import operate
from zoo.surgery.operation import SurgeryError

SAID = ["the cat sat on the mat, and the cat ran", "a dog ran to the cat on the mat", "the mat sat"] * 9
OTHERS = ["zebras quarrel; xylophones jingle?", "Why do vowels fizz, he asked. Quickly!"] * 9
BEGIN, END = "<|begin|>", "<|end|>"


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return tokenizer, trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return tokenizer, trainers.UnigramTrainer(
        vocab_size=120, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )


def word_piece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    return tokenizer, trainers.WordPieceTrainer(vocab_size=150, special_tokens=["[UNK]"], show_progress=False)


KINDS = {"BPE": byte_level, "Unigram": unigram, "WordPiece": word_piece}


@pytest.fixture
def source(request, tmp_path):
    """A folder with random weights and a tokenizer whose special tokens have the last numbers."""
    tokenizer, trainer = KINDS[request.param]()
    tokenizer.train_from_iterator(SAID + OTHERS, trainer)
    tokenizer.add_special_tokens([BEGIN, END])
    number = tokenizer.token_to_id(BEGIN)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, number)])
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END)
    config = family_config("llama", 0)
    # Rows behind those of the tokenizer, as models have them.
    config.vocab_size = -(-len(whole) // 8) * 8 + 8
    config.bos_token_id, config.eos_token_id, config.pad_token_id = number, [whole.eos_token_id], None
    model = random_model(config)
    model.generation_config = GenerationConfig(
        bos_token_id=number, eos_token_id=[whole.eos_token_id], suppress_tokens=[5]
    )
    folder = tmp_path / "source"
    model.save_pretrained(folder)
    whole.save_pretrained(folder)
    (tmp_path / "said.jsonl").write_text("\n".join(json.dumps({"text": " ".join(SAID)}) for _ in range(3)))
    return folder


def trimmed(source, size, **options):
    target = source.parent / f"new-{size}"
    report = operate(
        source, target, {"vocab_size": size}, method="used", calibrate=source.parent / "said.jsonl", **options
    )
    return target, report


@pytest.mark.sampled(2)
@pytest.mark.parametrize("source", KINDS, indirect=True)
def test_a_text_of_what_stays_is_what_it_was(source):
    before = AutoTokenizer.from_pretrained(source)
    used = {token for text in SAID for token in before(text).input_ids}
    size = {"BPE": 280, "Unigram": 40, "WordPiece": 60}[type(before.backend_tokenizer.model).__name__]
    target, report = trimmed(source, size)
    after, old = AutoTokenizer.from_pretrained(target), AutoModelForCausalLM.from_pretrained(source)
    new = AutoModelForCausalLM.from_pretrained(target)
    assert len(after) == new.config.vocab_size == size < len(before)
    assert report.operations[0].largest_difference == 0
    names = before.get_vocab()
    place = {names[token]: number for token, number in after.get_vocab().items()}
    assert used <= place.keys() and sorted(place.values()) == list(range(size))
    for text in ("the cat sat", "a dog ran on the mat, and the cat", " ".join(SAID[:3])):
        rows, numbers = before(text, return_tensors="pt").input_ids, after(text, return_tensors="pt").input_ids
        assert numbers[0].tolist() == [place[token] for token in rows[0].tolist()]
        assert after.decode(numbers[0]) == before.decode(rows[0])
        order = torch.tensor(sorted(place, key=place.get))
        assert torch.equal(logits(new, numbers), logits(old, rows)[..., order])
    for name in ("bos_token", "eos_token"):
        assert getattr(after, name) == getattr(before, name)
    assert new.config.bos_token_id == after.bos_token_id == new.generation_config.bos_token_id
    assert new.config.eos_token_id == [after.eos_token_id] == new.generation_config.eos_token_id
    gone = 5 not in place
    assert new.generation_config.suppress_tokens == ([] if gone else [place[5]])


@pytest.mark.parametrize("source", ["BPE"], indirect=True)
def test_any_text_can_still_be_written(source):
    target, _ = trimmed(source, 262)
    before, after = AutoTokenizer.from_pretrained(source), AutoTokenizer.from_pretrained(target)
    for text in ("zebras quarrel; é ☃ \n\t", "Quickly, the cat!"):
        assert after.decode(after(text).input_ids) == before.decode(before(text).input_ids) == BEGIN + text
    with pytest.raises(SurgeryError, match=r"vocab_size=200: the tokenizer has \d+ tokens, and 258 of them must stay"):
        trimmed(source, 200)


def test_the_trained_model_without_what_its_text_does_not_use(tmp_path):
    report = operate(STORIES, tmp_path / "new", {"vocab_size": 205}, method="used", calibrate=TEXT, evaluate=TEXT)
    assert (
        report.after.perplexity == pytest.approx(report.before.perplexity, rel=2e-3) and report.after.divergence < 1e-3
    )
    assert "they become the unknown one" in report.warnings[0]
    before, after = AutoTokenizer.from_pretrained(STORIES), AutoTokenizer.from_pretrained(tmp_path / "new")
    text = TEXT.read_text()[:20_000].split("<|endoftext|>")[0]
    assert after.decode(after(text).input_ids) == before.decode(before(text).input_ids)
    rows, shorter = (one("Once upon a time", return_tensors="pt").input_ids for one in (before, after))
    start = {"max_new_tokens": 20, "do_sample": False}
    old, new = (AutoModelForCausalLM.from_pretrained(one) for one in (STORIES, tmp_path / "new"))
    assert after.decode(new.generate(shorter, **start)[0]) == before.decode(old.generate(rows, **start)[0])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "--calibrate names the text"),
        ({"calibrate": TEXT, "wanted": {"vocab_size": 512}}, "already as it is wanted"),
        ({"calibrate": TEXT, "wanted": {"vocab_size": 600}}, "there are 512; ask for fewer"),
        ({"calibrate": TEXT, "wanted": {"vocab_size": 2}}, "3 of them must stay"),
        ({"calibrate": TEXT, "heal": TEXT}, "heal the model first"),
    ],
)
def test_what_cannot_be_left_out_is_said(tmp_path, options, says):
    with pytest.raises(SurgeryError, match=says):
        operate(STORIES, tmp_path / "new", **{"wanted": {"vocab_size": 300}, "method": "used", **options})
    assert not (tmp_path / "new").exists()


def test_a_model_in_memory_has_no_tokenizer():
    model = random_model(family_config("llama", 0))
    ids = torch.arange(40).view(1, -1)
    with pytest.raises(SurgeryError, match=r"a model in memory has no tokenizer.json to rewrite"):
        operate(model, None, {"vocab_size": 50}, method="used", calibrate=ids)
