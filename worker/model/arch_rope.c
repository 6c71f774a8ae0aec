/* arch_rope: how fast each pair of a head turns, from metadata, with the scalings that stretch a context. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "worker/model/arch.h"

/* YaRN (Peng et al. 2023): low frequencies are interpolated, high ones kept, with a ramp between the
 * dimensions that turn beta_fast and beta_slow times over the original context. */
static void yarn_scale(struct model_params *p, double base, double factor, double original_context,
                       double attn_factor)
{
    const double beta_fast = 32, beta_slow = 1, pi = 3.14159265358979323846;
    double n = (double)p->rope_length;
    double low = floor(n * log(original_context / (beta_fast * 2 * pi)) / (2 * log(base)));
    double high = ceil(n * log(original_context / (beta_slow * 2 * pi)) / (2 * log(base)));
    low = low > 0 ? low : 0;
    high = high < n - 1 ? high : n - 1;
    for (int64_t i = 0; i < p->rope_length / 2; i++) {
        double ramp = ((double)i - low) / (high - low > 0.001 ? high - low : 0.001);
        ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
        double frequency = p->rope_frequencies[i];
        p->rope_frequencies[i] = (float)(frequency / factor * ramp + frequency * (1 - ramp));
    }
    p->rope_magnitude = (float)(attn_factor * (1 + 0.1 * log(factor)));
}

/* Divides every frequency by its number in a global tensor: 1 = done, 0 = the file has none. The shape is
 * checked here, for the numbers are needed before any other tensor. */
static int divide_frequencies(struct model_params *p, const struct gguf *g, enum arch_tensor tensor,
                              struct err *err)
{
    const struct arch_tensor_row *row = arch_global(p->arch, tensor);
    const struct gguf_tensor *t = row ? gguf_tensor_find(g, row->name) : NULL;
    if (!t)
        return 0;
    if (t->dtype != DTYPE_F32 || t->ndim != 1 || t->dim[0] != p->rope_length / 2)
        return err_set(err, "%s: tensor %s: expected %lld f32 values", gguf_name(g), row->name,
                       (long long)p->rope_length / 2);
    for (int64_t i = 0; i < p->rope_length / 2; i++) {
        float divisor;
        memcpy(&divisor, (const char *)gguf_tensor_data(g, t) + (size_t)i * 4, 4);
        if (!(divisor > 0 && isfinite(divisor)))
            return err_set(err, "%s: tensor %s: value %lld is %g, expected more than 0", gguf_name(g),
                           row->name, (long long)i, (double)divisor);
        p->rope_frequencies[i] /= divisor;
    }
    return 1;
}

/* LongRoPE (Ding et al. 2024): one set of divisors for what is longer than the original context and one for
 * the rest. Which holds is fixed by what is served, not by each sequence: keys that lie in pages cannot turn
 * again when their sequence grows. */
static int long_scale(struct model_params *p, const struct gguf *g, int64_t original, int64_t served,
                      struct err *err)
{
    if (original < 1)
        return err_set(err, "%s: metadata key %s.rope.scaling.original_context_length is missing",
                       gguf_name(g), p->arch->name);
    p->rope_long = served > original;
    enum arch_tensor tensor = p->rope_long ? TENSOR_ROPE_LONG : TENSOR_ROPE_SHORT;
    int found = divide_frequencies(p, g, tensor, err);
    if (found == 0)
        err_set(err, "%s: tensor %s is missing", gguf_name(g), arch_global(p->arch, tensor)->name);
    return found == 1 ? 0 : -1;
}

static bool is(struct gguf_string s, const char *word)
{
    return s.size == strlen(word) && memcmp(s.data, word, s.size) == 0;
}

/* Files without a type mean linear, or long where they have its tensors; older ones give the factor another
 * name. */
static int scale_frequencies(struct model_params *p, const struct gguf *g, double base, int64_t served,
                             struct err *err)
{
    const struct arch *a = p->arch;
    const struct arch_tensor_row *row = arch_global(a, TENSOR_ROPE_LONG);
    bool has_long = row && (gguf_tensor_find(g, row->name) ||
                            gguf_tensor_find(g, arch_global(a, TENSOR_ROPE_SHORT)->name));
    double factor, attn_factor, old_factor;
    int64_t original;
    char key[128];
    struct gguf_string type =
        has_long ? (struct gguf_string){"longrope", 8} : (struct gguf_string){"linear", 6};
    snprintf(key, sizeof(key), "%s.rope.scaling.type", a->name);
    if (gguf_get_string(g, key, &type, err) < 0 ||
        arch_read_float(g, a, "rope.scale_linear", 1e-3, 1e6, 1, &old_factor, err) ||
        arch_read_float(g, a, "rope.scaling.factor", 1e-3, 1e6, old_factor, &factor, err) ||
        arch_read_float(g, a, "rope.scaling.attn_factor", 1e-3, 1e3, has_long ? NAN : 1, &attn_factor, err) ||
        arch_read_size(g, a, "rope.scaling.original_context_length", 1, INT32_MAX, 0, &original, err))
        return -1;
    p->rope_magnitude = (float)attn_factor;
    if (has_long != is(type, "longrope"))
        return err_set(err, "%s: %s: \"%.*s\" %s", gguf_name(g), key, (int)(type.size < 64 ? type.size : 64),
                       type.data,
                       has_long ? "contradicts the file's rope_factors tensors"
                                : "is not supported without rope_factors tensors");
    if (has_long)
        return long_scale(p, g, original, served, err);
    if (is(type, "yarn"))
        yarn_scale(p, base, factor, (double)(original ? original : p->context), attn_factor);
    else if (is(type, "linear"))
        for (int64_t i = 0; i < p->rope_length / 2; i++)
            p->rope_frequencies[i] = (float)(p->rope_frequencies[i] / factor);
    else if (!is(type, "none"))
        return err_set(err, "%s: %s: \"%.*s\" is not supported, expected none, linear, yarn or longrope",
                       gguf_name(g), key, (int)(type.size < 64 ? type.size : 64), type.data);
    return 0;
}

int arch_read_rope(struct model_params *p, const struct gguf *g, int64_t served, struct err *err)
{
    const struct arch *a = p->arch;
    double base;
    p->rope_magnitude = 1;
    if (a->positions != POSITIONS_ROPE)
        return 0;
    if (arch_read_size(g, a, "rope.dimension_count", 2, p->head_length, p->head_length, &p->rope_length,
                       err) ||
        arch_read_float(g, a, "rope.freq_base", 1.0001, 1e12, 10000, &base, err))
        return -1;
    if (p->rope_length % 2)
        return err_set(err, "%s: %s.rope.dimension_count is %lld, expected an even number", gguf_name(g),
                       a->name, (long long)p->rope_length);
    p->rope_frequencies = xcalloc((size_t)p->rope_length / 2, sizeof(float));
    for (int64_t i = 0; i < p->rope_length / 2; i++)
        p->rope_frequencies[i] = (float)pow(base, -2.0 * (double)i / (double)p->rope_length);
    if (scale_frequencies(p, g, base, served, err))
        return -1;
    return divide_frequencies(p, g, TENSOR_ROPE_DIVISORS, err) < 0 ? -1 : 0;
}
