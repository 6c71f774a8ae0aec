/* mix: which element type each tensor of a model gets, for the commands that write models.
 *
 * A type's name gives that type to every matrix. The mixes (q2_k, and names ending in _s, _m or _l) are those
 * that llama.cpp's quantizer uses without an importance matrix, for the architectures whose tensors have
 * these names: more bits for the output matrix, and for attention values and the feed-forward's way down,
 * where rounding hurts most. It knows no files. */
#ifndef LEPTON_TOOLS_MIX_H
#define LEPTON_TOOLS_MIX_H

#include "kernels/dtype.h"

/* As the choices of an option; the first is the default where one is wanted. */
#define MIX_NAMES                                                                                          \
    "q8_0|f32|f16|bf16|q4_0|q4_1|q5_0|q5_1|q2_k|q3_k|q3_k_s|q3_k_m|q3_k_l|q4_k|q4_k_s|q4_k_m|q5_k|q5_k_s|" \
    "q5_k_m|q6_k"

/* The types themselves. */
#define TYPE_NAMES "f32|f16|bf16|q8_0|q4_0|q4_1|q5_0|q5_1|q2_k|q3_k|q4_k|q5_k|q6_k"

struct mix {
    const char *name;
    enum dtype base;    /* of every matrix that no rule names */
    uint32_t file_type; /* general.file_type: GGUF's number for "mostly of this type" */
    bool mixed;
};

/* What the rules look at. */
struct mix_model {
    int64_t layers, heads, kv_heads, experts;
    bool has_output; /* false: the token embedding serves as the output matrix */
};

/* `name` is one of MIX_NAMES. pure = the mix's base for every matrix. */
struct mix mix_find(const char *name, bool pure);
/* The type of a matrix; `tensor` is its name in the file ("blk.0.attn_v.weight"). */
enum dtype mix_type(const struct mix *mix, const struct mix_model *model, const char *tensor);
/* Elements that rows must be a multiple of, so that every matrix can have its type. */
int64_t mix_block(const struct mix *mix);
/* The type itself, or, where `columns` are no whole number of its blocks, the nearest one that fits: a type
 * of 32 elements with no fewer bits, else f16. (llama.cpp falls back in the same way.) */
enum dtype mix_fitting(enum dtype type, int64_t columns);

#endif
