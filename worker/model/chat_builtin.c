/* chat_builtin: the chat formats of well-known families, written from their public descriptions. They take a
 * system message where the format has a place for one and refuse it where it has none; roles that the format
 * does not know are refused. The formats themselves stand in docs/models.md. */
#include <stddef.h>

#include "worker/model/chat.h"

/* What those without a place for the system message share: it goes in front of the first user message. */
#define SYSTEM_INTO_FIRST_USER                                            \
    "{%- set ns = namespace(system='') %}"                                \
    "{%- for m in messages %}{%- if loop.first and m.role == 'system' %}" \
    "{%- set ns.system = m.content | trim + '\\n\\n' %}{%- endif %}{%- endfor %}"

static const char chatml[] = "{%- for m in messages %}"
                             "{{- '<|im_start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>\\n' }}"
                             "{%- endfor %}"
                             "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";

static const char llama2[] =
    "{%- set ns = namespace(system='') %}"
    "{%- for m in messages %}"
    "{%- if loop.first and m.role == 'system' %}"
    "{%- set ns.system = '<<SYS>>\\n' ~ m.content ~ '\\n<</SYS>>\\n\\n' %}"
    "{%- elif m.role == 'user' %}"
    "{{- bos_token ~ '[INST] ' ~ ns.system ~ m.content | trim ~ ' [/INST]' }}{%- set ns.system = '' %}"
    "{%- elif m.role == 'assistant' %}{{- ' ' ~ m.content | trim ~ ' ' ~ eos_token }}"
    "{%- else %}{{- raise_exception('llama2: the role ' ~ m.role ~ ' has no place here') }}{%- endif %}"
    "{%- endfor %}";

static const char llama3[] =
    "{{- bos_token }}"
    "{%- for m in messages %}"
    "{{- '<|start_header_id|>' ~ m.role ~ '<|end_header_id|>\\n\\n' ~ m.content | trim ~ '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}";

static const char mistral[] = SYSTEM_INTO_FIRST_USER
    "{{- bos_token }}"
    "{%- for m in messages %}"
    "{%- if m.role == 'user' %}{{- '[INST] ' ~ ns.system ~ m.content ~ ' [/INST]' }}{%- set ns.system = '' %}"
    "{%- elif m.role == 'assistant' %}{{- ' ' ~ m.content | trim ~ eos_token }}"
    "{%- elif not loop.first or m.role != 'system' %}"
    "{{- raise_exception('mistral: the role ' ~ m.role ~ ' has no place here') }}{%- endif %}"
    "{%- endfor %}";

static const char gemma[] = SYSTEM_INTO_FIRST_USER
    "{{- bos_token }}"
    "{%- for m in messages %}"
    "{%- if m.role == 'user' %}"
    "{{- '<start_of_turn>user\\n' ~ ns.system ~ m.content | trim ~ '<end_of_turn>\\n' }}{%- set ns.system = "
    "'' %}"
    "{%- elif m.role == 'assistant' %}{{- '<start_of_turn>model\\n' ~ m.content | trim ~ '<end_of_turn>\\n' "
    "}}"
    "{%- elif not loop.first or m.role != 'system' %}"
    "{{- raise_exception('gemma: the role ' ~ m.role ~ ' has no place here') }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}";

static const char phi3[] = "{%- for m in messages %}"
                           "{{- '<|' ~ m.role ~ '|>\\n' ~ m.content ~ '<|end|>\\n' }}"
                           "{%- endfor %}"
                           "{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}";

static const char zephyr[] = "{%- for m in messages %}"
                             "{{- '<|' ~ m.role ~ '|>\\n' ~ m.content ~ eos_token ~ '\\n' }}"
                             "{%- endfor %}"
                             "{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}";

static const char vicuna[] =
    "{%- for m in messages %}"
    "{%- if m.role == 'user' %}{{- 'USER: ' ~ m.content | trim ~ ' ' }}"
    "{%- elif m.role == 'assistant' %}{{- 'ASSISTANT: ' ~ m.content | trim ~ eos_token }}"
    "{%- elif m.role == 'system' and loop.first %}{{- m.content | trim ~ ' ' }}"
    "{%- else %}{{- raise_exception('vicuna: the role ' ~ m.role ~ ' has no place here') }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'ASSISTANT:' }}{%- endif %}";

static const char alpaca[] =
    "{%- for m in messages %}"
    "{%- if m.role == 'user' %}{{- '### Instruction:\\n' ~ m.content | trim ~ '\\n\\n' }}"
    "{%- elif m.role == 'assistant' %}{{- '### Response:\\n' ~ m.content | trim ~ eos_token ~ '\\n\\n' }}"
    "{%- elif m.role == 'system' and loop.first %}{{- m.content | trim ~ '\\n\\n' }}"
    "{%- else %}{{- raise_exception('alpaca: the role ' ~ m.role ~ ' has no place here') }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '### Response:\\n' }}{%- endif %}";

static const char plain[] =
    "{%- for m in messages %}{{- m.role | capitalize ~ ': ' ~ m.content | trim ~ '\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'Assistant:' }}{%- endif %}";

static const struct chat_builtin builtins[] = {
    {"chatml", "<|im_start|>ROLE ... <|im_end|>: Qwen, Yi, SmolLM, OpenHermes", "", "<|im_end|>", chatml},
    {"llama2", "[INST] <<SYS>> ... <</SYS>> ... [/INST]: Llama 2", "<s>", "</s>", llama2},
    {"llama3", "<|start_header_id|>ROLE<|end_header_id|> ... <|eot_id|>: Llama 3", "<|begin_of_text|>",
     "<|eot_id|>", llama3},
    {"mistral", "[INST] ... [/INST]: Mistral, Mixtral", "<s>", "</s>", mistral},
    {"gemma", "<start_of_turn>ROLE ... <end_of_turn>: Gemma, Gemma 2", "<bos>", "<eos>", gemma},
    {"phi3", "<|ROLE|> ... <|end|>: Phi-3", "<s>", "<|endoftext|>", phi3},
    {"zephyr", "<|ROLE|> ... </s>: Zephyr, TinyLlama, StableLM", "<s>", "</s>", zephyr},
    {"vicuna", "USER: ... ASSISTANT: ...: Vicuna", "<s>", "</s>", vicuna},
    {"alpaca", "### Instruction: ... ### Response: ...: Alpaca", "<s>", "</s>", alpaca},
    {"plain", "User: ... Assistant: ...: models that were never taught a format", "", "", plain},
};

const struct chat_builtin *chat_builtin_at(size_t index)
{
    return index < ARRAY_LEN(builtins) ? &builtins[index] : NULL;
}
