"""Chat templates against transformers' apply_chat_template, and templates that fail or misbehave."""

import gc
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from support import packaged
from tercet.server.text import ChatTemplate, ChatTemplateError, CheckpointTextError, load_text_model, renderer

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "[UNK]"}
CONVERSATIONS = {
    "question": [{"role": "user", "content": "What's 2 < 3 & 4?"}],
    "system": [{"role": "system", "content": "  Be brief.\n"}, {"role": "user", "content": "Hi\n"}],
    "turns": [
        {"role": "user", "content": "你好 😀 <|im_end|>"},
        {"role": "assistant", "content": ' "quoted" \\ {{ braces }} {% tag %}'},
        {"role": "user", "content": ""},
    ],
    "assistant last": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
}
TEMPLATES = {
    "chatml": "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
    "{{ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "blocks": """
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content | trim %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set system = 'none' %}
    {%- set rest = messages %}
{%- endif %}
{{ bos_token }}[{{ system }}]
  {% for message in rest %}
  {% if loop.last and message.role == 'assistant' %}{% break %}{% endif %}
    {{ loop.index0 % 2 }}: {{ message.content | upper }}{{ eos_token if loop.last else '' }}
  {% endfor %}
{% if add_generation_prompt %}go{% endif %}
""",
    "namespace": "{% set ns = namespace(count=0, seen='') %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% set ns.count = ns.count + 1 %}{% continue %}{% endif %}{% set ns.seen = ns.seen ~ m['role'] %}{% endfor %}"
    "{{ ns.count }} {{ ns.seen }} {{ unk_token }}",
    "json": "{{ messages | tojson }}\n{{ messages | tojson(indent=2) }}{{ dict(a='<&é>') | tojson(sort_keys=true) }}",
    "macro": "{% macro turn(m) %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endmacro %}"
    "{% for m in messages %}{{ turn(m) }}{% endfor %}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{% set x = 1 %}{{ m.content }}"
    "{{ x }}{% endgeneration %}{{ x }}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "absent": "{{ tools is none }} {{ documents }} {{ nothing is defined }} {{ nothing }} {{ sep_token is defined }}",
    "date": "{{ strftime_now('%Y-%m') }}{% for i in range(3) %}{{ i }}{% endfor %}{{ 'ab' * 3 }}{{ 2 ** 10 }}",
}  # fmt: skip


@pytest.fixture(scope="module")
def reference() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(packaged.minilm())


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, SPECIAL, file=Path("tokenizer_config.json"), key="chat_template")


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES)
def test_equal_to_transformers(reference: PreTrainedTokenizerBase, source: str, messages: list[dict[str, str]]) -> None:
    variables = dict.fromkeys(reference.special_tokens_map) | SPECIAL
    expected = reference.apply_chat_template(
        messages,
        chat_template=source.replace("sep_token", "other_token"),
        tokenize=False,
        add_generation_prompt=True,
        **variables,
    )
    assert template(source.replace("sep_token", "other_token")).render(messages) == expected


def folder(path: Path, **config: object) -> Path:
    for name in ("tokenizer.json", "config.json"):
        shutil.copy(packaged.minilm() / name, path)
    (path / "tokenizer_config.json").write_text(json.dumps({"cls_token": "[CLS]", **config}))
    return path


def test_where_a_folder_keeps_its_template(tmp_path: Path) -> None:
    messages = CONVERSATIONS["question"]
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "default {{ cls_token }}"}]
    assert load_text_model(folder(tmp_path, chat_template="one {{ cls_token }}")).render_chat(messages) == "one [CLS]"
    assert load_text_model(folder(tmp_path, chat_template=named)).render_chat(messages) == "default [CLS]"
    (tmp_path / "chat_template.jinja").write_text("file {{ messages[0].role }}")
    assert load_text_model(tmp_path).render_chat(messages) == "file user"
    assert AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(messages, tokenize=False) == "file user"


@pytest.mark.parametrize(
    "config", [{}, {"chat_template": None}, {"chat_template": [{"name": "rag", "template": "x"}]}], ids=str
)
def test_no_template(tmp_path: Path, config: dict[str, object]) -> None:
    model = load_text_model(folder(tmp_path, **config))
    assert not model.chat_template
    with pytest.raises(ChatTemplateError, match="has no chat template"):
        model.render_chat(CONVERSATIONS["question"])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for m in messages %}", "not a chat template: Unexpected end of template"),
        ("{{ messages ", "not a chat template: unexpected end of template"),
        ("{% import 'x' as %}", "not a chat template"),
        ("{{ " + "(" * 10_000, "not a chat template"),
        ("x" * (1 << 20) + "x", "larger than the limit of 1048576 bytes"),
        (5, "must be a string or a list"),
        ([{"name": "default"}, "x"], "every entry of the list must have a name"),
        ([{"name": "default", "template": 1}], "every entry of the list must have a name"),
    ],
    ids=["unclosed", "cut", "half a statement", "deep", "long", "number", "nameless", "template is a number"],
)
def test_a_malformed_template_is_named(tmp_path: Path, source: object, message: str) -> None:
    with pytest.raises(CheckpointTextError, match=rf"tokenizer_config\.json: chat_template: {message}"):
        load_text_model(folder(tmp_path, chat_template=source))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('Roles must\nalternate') }}", "the chat template failed: Roles must alternate"),
        ("{{ messages.nothing.more }}", "has no attribute 'nothing'"),
        ("{{ messages + 1 }}", "TypeError: can only concatenate list"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ messages.__class__.__mro__ }}", "access to attribute '__class__' .* is unsafe"),
        ("{{ ''.__class__.__base__.__subclasses__() }}", "is unsafe"),
        ("{% do messages.append(1) %}", None),
        ("{{ messages.append(1) }}", "is not safely callable|unsafe"),
        ("{% include '/etc/hostname' %}", "no loader"),
        ("{{ range(10 ** 7) | list }}", "Range too big"),
        ("{{ '\\ud800' }}", "UnicodeEncodeError"),
        (
            "{% for i in range(90000) %}{{ messages[0].content * 1000 }}{% endfor %}",
            "the prompt exceeds 16777216 characters",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_template_that_fails(source: str, message: str | None) -> None:
    if message is None:
        with pytest.raises(CheckpointTextError):
            template(source)
        return
    made = template(source)
    with pytest.raises(ChatTemplateError, match=message) as caught:
        made.render(CONVERSATIONS["question"])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert caught.value.__cause__ is None


BIG = "{% set x = 'abcdefgh' * 2 ** 21 %}"
LOOPS = "{% set r = range(99999) %}{% for a in r %}{% for b in r %}{% for c in r %}"


@pytest.mark.parametrize(
    "source",
    [
        "{% set ns = namespace(x='abcdefgh') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        BIG + "{% set x = x + x %}" * 20,
        BIG + "{{ [" + "x, " * 1000 + "] | join }}",
        BIG + "{{ x.replace('a', x) }}",
        BIG + "{{ [" + "x | list, " * 5 + "] }}",
        "{{ 'a' * 10 ** 10 }}",
        "{{ messages * 10 ** 10 }}",
        "{{ 'x' | center(10 ** 10) }}",
        "{{ '%10000000000d' % 1 }}",
        "{{ '%10000000000d' | format(1) }}",
        "{{ '{:>10000000000}'.format(1) }}",
        "{{ {'a': 1} | tojson(indent=10 ** 10) }}",
    ],
    ids=lambda source: source[-40:],
)
def test_a_template_that_takes_memory(source: str) -> None:
    """What it takes is refused to it, not to us; and its process goes on."""
    made = template("{% if messages[0].role == 'user' %}" + source + "{% endif %}fine")
    with pytest.raises(ChatTemplateError, match="the chat template failed: it takes too much memory"):
        made.render(CONVERSATIONS["question"])
    assert made.render(CONVERSATIONS["system"]) == "fine"


@pytest.mark.parametrize(
    "source",
    [
        LOOPS + "{% endfor %}" * 3,
        "{% set n = 9 ** (9 ** (messages | length + 8)) %}",
        "{% set r = range(99999) | list %}{% for a in r %}{{ '' if r | sum }}{% endfor %}",
    ],
    ids=["loops", "one operation", "filters"],
)
def test_a_template_that_never_ends(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """Its process is ended and replaced: the next conversation is rendered."""
    monkeypatch.setattr(renderer, "MAX_SECONDS", 0.5)
    made = template("{% if messages[0].role == 'user' %}" + source + "{% endif %}fine")
    with pytest.raises(ChatTemplateError, match=r"failed: it takes more than 0\.5 seconds"):
        made.render(CONVERSATIONS["question"])
    assert made.render(CONVERSATIONS["system"]) == "fine"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ 9 ** (9 ** 9) }}", r"it takes more than 0\.5 seconds"),
        ("\ud800", "it holds half a surrogate pair"),
    ],
    ids=["time", "surrogate"],
)
def test_compiling_is_bounded(monkeypatch: pytest.MonkeyPatch, source: str, message: str) -> None:
    """Jinja computes constants when it compiles."""
    monkeypatch.setattr(renderer, "MAX_SECONDS", 0.5)
    with pytest.raises(CheckpointTextError, match=f"not a chat template: {message}"):
        template(source)


def test_a_process_ends_with_its_template() -> None:
    """And one that others ended is replaced, which no conversation notices."""
    made = template("fine")
    process = made._renderer._process._process
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert made.render(CONVERSATIONS["question"]) == "fine"
    process = made._renderer._process._process
    assert process.poll() is None
    del made
    gc.collect()
    assert process.poll() is not None


def test_messages_are_not_changed() -> None:
    messages = [{"role": "user", "content": "a"}]
    with pytest.raises(ChatTemplateError):
        template("{{ messages[0].update(role='x') }}").render(messages)
    assert messages == [{"role": "user", "content": "a"}]
