#include "tools/mix.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct mix MIXES[] = {
    {"f32", DTYPE_F32, 0, false},     {"f16", DTYPE_F16, 1, false},     {"bf16", DTYPE_BF16, 32, false},
    {"q8_0", DTYPE_Q8_0, 7, false},   {"q4_0", DTYPE_Q4_0, 2, false},   {"q4_1", DTYPE_Q4_1, 3, false},
    {"q5_0", DTYPE_Q5_0, 8, false},   {"q5_1", DTYPE_Q5_1, 9, false},   {"q2_k", DTYPE_Q2_K, 10, true},
    {"q3_k", DTYPE_Q3_K, 11, false},  {"q3_k_s", DTYPE_Q3_K, 11, true}, {"q3_k_m", DTYPE_Q3_K, 12, true},
    {"q3_k_l", DTYPE_Q3_K, 13, true}, {"q4_k", DTYPE_Q4_K, 14, false},  {"q4_k_s", DTYPE_Q4_K, 14, true},
    {"q4_k_m", DTYPE_Q4_K, 15, true}, {"q5_k", DTYPE_Q5_K, 16, false},  {"q5_k_s", DTYPE_Q5_K, 16, true},
    {"q5_k_m", DTYPE_Q5_K, 17, true}, {"q6_k", DTYPE_Q6_K, 18, false},
};

enum when {
    ALWAYS,
    FIRST_TWO,
    FIRST_FOUR,
    FIRST_EIGHTH,
    FIRST_SIXTEENTH,
    MORE_BITS,     /* the first and last eighth of the layers, and every third between */
    FOUR_TO_ONE,   /* four query heads or more share a key/value head: the matrix is small */
    EIGHT_EXPERTS, /* attention is a small part of such a model */
};

/* The first row that matches decides; mix NULL = every mix. */
static const struct rule {
    const char *mix, *part;
    enum when when;
    enum dtype type;
} RULES[] = {
    {NULL, "attn_v", EIGHT_EXPERTS, DTYPE_Q8_0},
    {NULL, "attn_k", EIGHT_EXPERTS, DTYPE_Q8_0},
    {"q2_k", "attn_output", EIGHT_EXPERTS, DTYPE_Q5_K},
    {"q2_k", "attn_v", FOUR_TO_ONE, DTYPE_Q4_K},
    {"q2_k", "attn_v", ALWAYS, DTYPE_Q3_K},
    {"q2_k", "attn_output", ALWAYS, DTYPE_Q3_K},
    {"q2_k", "ffn_down", ALWAYS, DTYPE_Q3_K},
    {"q3_k_s", "attn_output", EIGHT_EXPERTS, DTYPE_Q5_K},
    {"q3_k_m", "attn_output", EIGHT_EXPERTS, DTYPE_Q5_K},
    {"q3_k_m", "attn_v", FIRST_TWO, DTYPE_Q5_K},
    {"q3_k_m", "attn_v", ALWAYS, DTYPE_Q4_K},
    {"q3_k_m", "attn_output", ALWAYS, DTYPE_Q4_K},
    {"q3_k_m", "attn_qkv", ALWAYS, DTYPE_Q4_K},
    {"q3_k_m", "ffn_down", FIRST_SIXTEENTH, DTYPE_Q5_K},
    {"q3_k_m", "ffn_down", ALWAYS, DTYPE_Q4_K},
    {"q3_k_l", "attn_v", ALWAYS, DTYPE_Q5_K},
    {"q3_k_l", "attn_output", ALWAYS, DTYPE_Q5_K},
    {"q3_k_l", "attn_qkv", ALWAYS, DTYPE_Q4_K},
    {"q3_k_l", "ffn_down", ALWAYS, DTYPE_Q5_K},
    {"q4_k_s", "attn_output", EIGHT_EXPERTS, DTYPE_Q5_K},
    {"q4_k_s", "attn_v", FIRST_FOUR, DTYPE_Q5_K},
    {"q4_k_s", "ffn_down", FIRST_EIGHTH, DTYPE_Q5_K},
    {"q4_k_m", "attn_output", EIGHT_EXPERTS, DTYPE_Q5_K},
    {"q4_k_m", "attn_v", MORE_BITS, DTYPE_Q6_K},
    {"q4_k_m", "attn_qkv", ALWAYS, DTYPE_Q5_K},
    {"q4_k_m", "ffn_down", MORE_BITS, DTYPE_Q6_K},
    {"q5_k_m", "attn_v", MORE_BITS, DTYPE_Q6_K},
    {"q5_k_m", "attn_qkv", ALWAYS, DTYPE_Q6_K},
    {"q5_k_m", "ffn_down", MORE_BITS, DTYPE_Q6_K},
};

struct mix mix_find(const char *name, bool pure)
{
    for (size_t i = 0; i < ARRAY_LEN(MIXES); i++)
        if (strcmp(MIXES[i].name, name) == 0) {
            struct mix mix = MIXES[i];
            mix.mixed = mix.mixed && !pure;
            return mix;
        }
    die("\"%s\" is no mix: the choices of an option and the table differ", name);
}

static bool applies(enum when when, const struct mix_model *m, int64_t layer)
{
    int64_t eighth = m->layers / 8;
    switch (when) {
    case ALWAYS:
        return true;
    case FIRST_TWO:
        return layer < 2;
    case FIRST_FOUR:
        return layer < 4;
    case FIRST_EIGHTH:
        return layer < eighth;
    case FIRST_SIXTEENTH:
        return layer < m->layers / 16;
    case MORE_BITS:
        return layer < eighth || layer >= 7 * m->layers / 8 || (layer - eighth) % 3 == 2;
    case FOUR_TO_ONE:
        return m->heads >= 4 * m->kv_heads;
    case EIGHT_EXPERTS:
        return m->experts == 8;
    }
    ASSERT(!"a condition without a meaning");
    return false;
}

/* "blk.7.ffn_down_exps.weight" begins with the part "ffn_down" behind its layer, and "attn_k" must not be
 * taken for "attn_k_norm". */
static bool is_part(const char *name, const char *part)
{
    size_t n = strlen(part);
    return strncmp(name, part, n) == 0 && (name[n] == '.' || strncmp(name + n, "_exps.", 6) == 0);
}

enum dtype mix_type(const struct mix *mix, const struct mix_model *model, const char *tensor)
{
    if (!mix->mixed)
        return mix->base;
    if (strcmp(tensor, "output.weight") == 0 ||
        (!model->has_output && strcmp(tensor, "token_embd.weight") == 0))
        return DTYPE_Q6_K;
    if (strncmp(tensor, "blk.", 4) != 0)
        return mix->base;
    char *part = NULL;
    long long layer = strtoll(tensor + 4, &part, 10);
    for (size_t i = 0; *part == '.' && i < ARRAY_LEN(RULES); i++)
        if ((!RULES[i].mix || strcmp(RULES[i].mix, mix->name) == 0) && is_part(part + 1, RULES[i].part) &&
            applies(RULES[i].when, model, layer))
            return RULES[i].type;
    return mix->base;
}

int64_t mix_block(const struct mix *mix)
{
    return mix->mixed ? QUANT_SUPER : dtype_info(mix->base)->block_elements;
}

enum dtype mix_fitting(enum dtype type, int64_t columns)
{
    if (columns % dtype_info(type)->block_elements == 0)
        return type;
    enum dtype smaller = type == DTYPE_Q2_K || type == DTYPE_Q3_K ? DTYPE_Q4_0
                         : type == DTYPE_Q4_K                     ? DTYPE_Q5_0
                         : type == DTYPE_Q5_K                     ? DTYPE_Q5_1
                         : type == DTYPE_Q6_K                     ? DTYPE_Q8_0
                                                                  : type;
    return columns % dtype_info(smaller)->block_elements == 0 ? smaller : DTYPE_F16;
}
