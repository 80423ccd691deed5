"""Chat templates: text as transformers renders it, and nothing a template can do harms the process."""

import os
import time

import pytest
from text_folders import make_folder

from genkit.errors import BadFileError, Error, UsageError
from genkit.text import Tokenizer
from genkit.text.chat_template import render

# In the manner of well-known models, in words of our own. Each has what makes its family's template hard to render.
LLAMA3 = """{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{{- bos_token }}
{#- a leading system message is taken out #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Tools: " }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n" }}
    {%- endfor %}
{%- endif %}
{{- "Date: " + date_string + "\\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}{{- raise_exception("one call at a time") }}{%- endif %}
        {{- message.tool_calls[0].function | tojson }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
CHATML = """{% for message in messages %}
    {% if loop.first and messages[0]['role'] != 'system' %}
        {{ '<|im_start|>system\\nBe of use.<|im_end|>\\n' }}
    {% endif %}
    {% generation %}
{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}
    {% endgeneration %}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
QWEN3 = """{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and message.content is string and not(message.content.startswith('<r>')) %}
        {%- set ns.multi_step = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
    {%- if message.role == "assistant" %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last %}{{- '<|im_start|>assistant\\n<think>\\n' ~ thought ~ '\\n</think>\\n\\n' ~ content }}
        {%- else %}{{- '<|im_start|>assistant\\n' + content }}{%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""
MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system = messages[0]["content"] %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set turns = messages %}
{%- endif %}
{{- bos_token }}
{%- for m in turns %}
    {%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('user and assistant must take turns') }}
    {%- endif %}
    {%- if m.role == 'user' %}
        {%- if loop.last and system is defined %}{{- '[INST] ' + system + '\\n\\n' + m.content + '[/INST]' }}
        {%- else %}{{- '[INST] ' + m.content + '[/INST]' }}{%- endif %}
    {%- elif m.role == 'assistant' %}
        {{- ' ' + m.content|trim + eos_token }}
    {%- endif %}
{%- endfor %}
"""
ODDITIES = """{% macro card(m, n=2) %}{{ m.role|upper|replace('S', '$') }}:{{ '%03d'|format(n) }}{% endmacro %}
{%- for m in messages if m.role != 'tool' recursive %}
{%- if loop.index > 4 %}{% break %}{% endif %}
{%- if m.role == 'skip' %}{% continue %}{% endif %}
{{ card(m, n=loop.index) }} {{ m.content | tojson }} {{ m.items()|list|length }} {{ m.get('x', 'none') }}
{% endfor -%}
{% set d = dict(a=1, b=[1, 2.5, none, true]) %}{{ d | tojson(sort_keys=true, separators=(',', ':')) }} {{ dict.fromkeys(['k'], 3) }}
{{ d.items()|map('first')|join('+') }} {{ messages|selectattr('role', 'equalto', 'user')|map(attribute='content')|list|first }}
{{ "a long line of words to be wrapped"|wordwrap(12) }} {{ "\\u00e9\\x41" }} {{ undefined_name }}|{{ 7 // 2 }}{{ -7 % 3 }}{{ 2 ** 10 }}
{%- filter upper %} shout {% endfilter %}{{ {'a': {'b': 'deep'}}['a']['b'] }} {{ [3, 1, 2]|sort|reverse|list }} {{ "x" in "xyz" }}
{{- "%s-%d" % ("old", 5) }} {{ "{:>5}|{name}".format("r", name="n") }} {{ d|pprint }} {{ range(3)|list }} {{ strftime_now("%Y") }}
"""
CHATS = {
    "one": [{"role": "user", "content": "Hello"}],
    "system": [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "  <b>Hi</b> & 'you' \n"}],
    "turns": [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "<think>\nadd\n</think>\n\n4", "tool_calls": None},
        {"role": "user", "content": "日本 😀 {{ not a template }} {% if %}"},
        {"role": "assistant", "content": "yes", "reasoning": "why not"},
        {"role": "user", "content": "<|eot_id|>and?"},
    ],
}
TEMPLATES = {"llama3": LLAMA3, "chatml": CHATML, "qwen3": QWEN3, "mistral": MISTRAL, "oddities": ODDITIES}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = make_folder("llama3", tmp_path_factory.mktemp("chat"))
    return Tokenizer(folder), transformers.AutoTokenizer.from_pretrained(str(folder))


@pytest.mark.parametrize("generation_prompt", [True, False])
@pytest.mark.parametrize("name", TEMPLATES)
def test_same_text_and_ids_as_transformers(tokenizers, name, generation_prompt):
    ours, theirs = tokenizers
    ours.chat_template = TEMPLATES[name]
    tools = [{"name": "f", "description": "à <b>", "parameters": {"x": [1, 2.5, None]}}]
    several = [{}, {"enable_thinking": False, "date_string": "today"}, {"tools": tools}]
    for chat, variables in zip(CHATS.values(), several, strict=True):
        wanted = theirs.apply_chat_template(
            chat, chat_template=TEMPLATES[name], tokenize=False, add_generation_prompt=generation_prompt, **variables
        )
        assert ours.render_chat(chat, generation_prompt, **variables) == wanted
    ids = theirs.apply_chat_template(
        chat, chat_template=TEMPLATES[name], add_generation_prompt=generation_prompt, return_dict=False
    )
    assert ours.encode_chat(chat, generation_prompt, parse_special=True) == ids


def test_without_transformers_too():
    chat = CHATS["system"]
    text = render(MISTRAL, chat, bos_token="<s>", eos_token="</s>")
    assert text == "<s>[INST]  Be brief. \n\n  <b>Hi</b> & 'you' \n[/INST]"
    text = render(CHATML, CHATS["one"]).lstrip()  # lstrip_blocks leaves the spaces before {{
    assert text == "<|im_start|>system\nBe of use.<|im_end|>\n\n<|im_start|>user\nHello<|im_end|>\n\n<|im_start|>assistant\n"


# Ways out of a template, from the literature on server-side template injection and from the advisories against jinja2's
# sandbox and chat templates. {mark} would be made, were any of them to work.
PAYLOADS = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ [].__class__.__base__.__subclasses__()[100] }}",
    "{{ ().__class__.__bases__[0].__subclasses__()|list }}",
    "{{ {}.__class__.__init__.__globals__['os'].system('touch {mark}') }}",
    "{{ cycler.__init__.__globals__.os.popen('touch {mark}').read() }}",
    "{{ joiner.__init__.__globals__.os.popen('touch {mark}').read() }}",
    "{{ namespace.__init__.__globals__.os.system('touch {mark}') }}",
    "{{ lipsum.__globals__['os'].popen('touch {mark}').read() }}",
    "{{ lipsum['__globals__']['__builtins__']['open']('{mark}', 'w') }}",
    "{{ self.__init__.__globals__.__builtins__.__import__('os').system('touch {mark}') }}",
    "{{ self._TemplateReference__context.cycler.__init__.__globals__.os.system('touch {mark}') }}",
    "{{ raise_exception.__globals__['sys'].modules['os'].system('touch {mark}') }}",
    "{{ strftime_now.__globals__['sys'].modules['os'].system('touch {mark}') }}",
    "{{ raise_exception.__code__.co_consts.x }}",
    "{{ (messages|attr('__class__')).__mro__ }}",
    "{{ ''|attr('__class__')|attr('__mro__')|last|attr('__subclasses__')() }}",
    "{{ ''|attr('format_map')({'a': 1}).__class__.__mro__ }}",
    "{{ '{0.__class__.__init__.__globals__[os]}'.format(cycler) }}{{ ''.__class__.x }}",
    "{{ ('{0.__class__.__mro__}'|attr('format'))('') }}{{ ''.__class__.x }}",
    "{% set f = '{0.__class__.__mro__[1]}'.format %}{{ f('').y.z }}",
    "{{ messages.append({'role': 'x'}) }}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{{ messages.__setitem__(0, 1) }}",
    "{{ messages.clear() }}",
    "{{ dict.__class__.__init__.__globals__ }}",
    "{{ dict.__call__.__globals__.sys }}",
    "{{ dict.mro()[-1].__subclasses__() }}",
    "{% set ns = namespace(__class__=1) %}",
    "{% set ns = namespace() %}{% set ns.__class__ = 5 %}",
    "{% set ns = namespace({'_x': 1}) %}",
    "{{ namespace.mro() }}",
    "{{ tojson.__globals__ }}",
    "{{ messages|map(attribute='__class__.__mro__.x.y')|list|first.z }}",
    "{{ messages|map('attr', '__class__')|map('attr', '__mro__')|first|first.x }}",
    "{{ [['a', 'b']]|map('attr', '__add__')|first|attr('__self__')|attr('x')() }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% extends '/etc/hostname' %}",
    "{% from 'os' import system %}",
    "{{ config.from_pyfile('/etc/passwd') }}",
    "{{ request.application.__globals__ }}",
    "{{ get_flashed_messages.__globals__.__builtins__.open('{mark}', 'w') }}",
    "{{ url_for.__globals__.os.system('touch {mark}') }}",
    "{{ open('{mark}', 'w') }}",
    "{{ __import__('os').system('touch {mark}') }}",
    "{{ eval('1') }}",
    "{{ (1).__class__.__mro__ [1].__subclasses__() }}",
    "{% for c in ().__class__.__base__.__subclasses__() %}{{ c }}{% endfor %}{{ ().__class__.x }}",
    "{{ joiner.__init__['__glo' + 'bals__'].x }}",
    "{{ (raise_exception|attr('__glo' ~ 'bals__')).sys.x }}",
    "{% macro m() %}{% endmacro %}{{ m.__init__.__globals__.x }}",
    "{% call(x) m() %}{{ caller.__globals__.y }}{% endcall %}{{ caller.__globals__.y }}",
    "{{ loop.__class__.__mro__.x }}",
]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_template_gets_out(payload, tmp_path):
    mark = tmp_path / "mark"
    with pytest.raises(BadFileError) as caught:
        text = render(payload.replace("{mark}", str(mark)), [{"role": "user", "content": "hi"}], source="folder/t.jinja")
        raise AssertionError(f"rendered to {text!r}")
    assert "folder/t.jinja" in str(caught.value) and "\n" not in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize("payload", [
    "{{ ''.__class__ }}", "{{ raise_exception.__globals__ }}", "{{ messages|attr('append') }}", "{{ messages.append }}",
    "{{ '{0.__class__}'.format(messages) }}", "{{ self._x }}", "{{ dict.__class__ }}",
])
def test_what_only_looks_out_sees_nothing(payload):
    """Reading a forbidden attribute gives an undefined value, which prints as nothing."""
    try:
        assert render(payload, [{"role": "user", "content": "hi"}]) == ""
    except BadFileError:
        pass


ENDLESS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "more loops": "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in 'ab' %}{% set x = c %}{% endfor %}{% endfor %}{% endfor %}",
    "one long operation": "{{ ('a' * 30000)|replace('a', 'aa' * 200)|replace('aaaa', 'b')|list|sort|length }}" * 60,
    "power": "{{ (7 ** 9999999) % 10 }}",
    "recursion that branches": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
}
TOO_MUCH = {
    "memory": "{{ 'a' * 10 ** 10 }}",
    "memory by padding": "{{ 'a'.ljust(10 ** 10) }}",
    "memory by format": "{{ '%9999999999d' % 1 }}",
    "memory by filter": "{{ 'a'|center(9999999999) }}",
    "doubling": "{% set ns = namespace(s='ab') %}{% for i in range(64) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "text": "{% for i in range(9999) %}{{ 'a' * 9999 }}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "range": "{% for i in range(10 ** 9) %}{% endfor %}",
    "nesting": "{{ " + "[" * 20000 + "]" * 20000 + " }}",
}


@pytest.mark.parametrize("what", ENDLESS)
def test_a_template_that_does_not_end_is_stopped(what):
    start = time.monotonic()
    with pytest.raises(BadFileError, match="t.jinja: the chat template was stopped: it took more than 1 s"):
        render(ENDLESS[what], [{"role": "user", "content": "hi"}], source="t.jinja", time_limit=1)
    assert time.monotonic() - start < 10  # a busy machine may take long to start a process


@pytest.mark.parametrize("what", TOO_MUCH)
def test_a_template_that_takes_too_much_is_stopped(what):
    with pytest.raises(BadFileError, match="t.jinja.*: the chat template (was stopped|is broken): "):
        render(TOO_MUCH[what], [{"role": "user", "content": "hi"}], source="t.jinja")


@pytest.mark.parametrize("template, words", [
    ("one\n{% if %}", "t.jinja, line 2: the chat template is broken"),
    ("one\n\n{{ 1 +", "t.jinja, line 3: the chat template is broken"),
    ("{{ nothing.at.all }}", "t.jinja, line 1: the chat template is broken: .*'nothing' is undefined"),
    ("a\nb\n{{ messages[9].role.x }}", "t.jinja, line 3: the chat template is broken"),
    ("{{ 1 / 0 }}", "line 1: the chat template is broken: .*division by zero"),
    ("{{ messages | nofilter }}", "No filter named"),
    ("{{ messages[0] | tojson(indent='x' * 3) + 5 }}", "the chat template is broken: .*TypeError"),
])
def test_broken_templates_name_their_line(template, words):
    with pytest.raises(BadFileError, match=words):
        render(template, [{"role": "user", "content": "hi"}], source="t.jinja")


def test_a_template_may_refuse_messages():
    with pytest.raises(UsageError, match="line 9.*does not take these messages: 'user and assistant must take turns'"):
        render(MISTRAL.replace("{{- bos_token }}\n", ""), [{"role": "assistant", "content": "hi"}])
    with pytest.raises(UsageError, match=r"these messages: 'a\\x1b\[2J\\nb'"):  # what a file says is never printed raw
        render('{{ raise_exception("a\\x1b[2J\\nb") }}', CHATS["one"])


@pytest.mark.parametrize("messages", [[], None, ["text"], [None], [[{"role": "user"}]]])
def test_bad_messages(messages):
    with pytest.raises(UsageError, match="messages: "):
        render("x", messages)


def test_anything_else_than_plain_data_is_named_only():
    class Loaded:
        content = "secret"

    assert render("{{ messages[0].content }}", [{"role": "user", "content": Loaded()}]) == "<Loaded>"


def test_the_library_state_is_untouched():
    chat = [{"role": "user", "content": "hi", "extra": None}]
    before, descriptors = repr(chat), len(os.listdir("/proc/self/fd"))
    for template in ("{{ messages }}", "{{ messages.append(1) }}"):
        try:
            render(template, chat)
        except Error:
            pass
    assert repr(chat) == before and len(os.listdir("/proc/self/fd")) == descriptors
