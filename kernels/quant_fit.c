/* quant_fit: the block types, written: which scales and which codes stand for given floats.
 *
 * Types of 32 elements round as ggml's reference does (quantize_row_q4_0 and its sisters): the scale comes
 * from the extreme values, the codes from one rounding.
 *
 * K types search for the least squared error, in two steps for each super-block:
 *
 *   1. Each sub-block alone, scales still real numbers. Codes are made for a fan of scales around the one
 *      that just covers the extreme values (a smaller step cuts the extremes and serves the many); for each
 *      the best real scale (and minimum) for those codes is the least-squares solution. The best is kept.
 *   2. The super-block's F16 scale makes the largest of these its largest integer. Each sub-block then tries
 *      the integers next to its own, rounds its elements anew with what the format will read back, and keeps
 *      the best.
 *
 * Every element counts the same: weights from activations belong to whoever has activations. Sums have a
 * written order, so the bytes are the same on every machine. NaN counts as 0; a block with an infinite value
 * or one beyond the format's range gets an infinite scale and reads back as NaN or infinity, never as a
 * wrong number. Whoever converts a file should refuse such values before. */
#include "kernels/quant.h"

#include <math.h>
#include <string.h>

#include "kernels/cpu/clones.h"

#define F16_INFINITY 0x7C00
#define INLINE       static inline __attribute__((always_inline)) /* into every clone */

/* ---- types of 32 elements */

static float finite_or_zero(float x)
{
    return isnan(x) ? 0.0f : x;
}

/* From low to high; NaN (infinity times a scale of 0) to low. */
INLINE float clamp(float v, float low, float high)
{
    v = v > low ? v : low;
    return v < high ? v : high;
}

static float inverse_of(float scale)
{
    return scale != 0.0f ? 1.0f / scale : 0.0f;
}

/* The inverse of the unrounded scale multiplies, halves go away from zero; the rounded scale is stored. */
static void q8_0_row(const float *x, void *dst, uint64_t blocks)
{
    struct block_q8_0 *block = dst;
    for (uint64_t b = 0; b < blocks; b++, block++, x += QUANT_BLOCK) {
        float highest = 0.0f;
        for (int i = 0; i < QUANT_BLOCK; i++)
            highest = fmaxf(highest, fabsf(x[i]));
        float scale = highest / 127.0f, inverse = inverse_of(scale);
        block->scale = f32_to_f16(scale);
        for (int i = 0; i < QUANT_BLOCK; i++)
            block->q[i] =
                (int8_t)clamp(roundf(finite_or_zero(finite_or_zero(x[i]) * inverse)), -127.0f, 127.0f);
    }
}

/* The value of largest magnitude gets the code 0, the end that reaches further; its sign makes the scale's.
 * `half` is the code of zero. Codes are cut, not rounded, after adding half a step, as the reference does. */
static float codes_0(const float *x, int half, uint8_t *code)
{
    float extreme = 0.0f;
    for (int i = 0; i < QUANT_BLOCK; i++)
        if (fabsf(x[i]) > fabsf(extreme))
            extreme = x[i];
    float scale = extreme / -(float)half, inverse = inverse_of(scale);
    for (int i = 0; i < QUANT_BLOCK; i++)
        code[i] = (uint8_t)clamp(finite_or_zero(x[i]) * inverse + ((float)half + 0.5f), 0.0f,
                                 (float)(2 * half - 1));
    return scale;
}

static float codes_1(const float *x, int highest_code, uint8_t *code, float *minimum)
{
    float low = INFINITY, high = -INFINITY;
    for (int i = 0; i < QUANT_BLOCK; i++) {
        low = fminf(low, finite_or_zero(x[i]));
        high = fmaxf(high, finite_or_zero(x[i]));
    }
    float scale = (high - low) / (float)highest_code, inverse = inverse_of(scale);
    for (int i = 0; i < QUANT_BLOCK; i++)
        code[i] = (uint8_t)clamp((finite_or_zero(x[i]) - low) * inverse + 0.5f, 0.0f, (float)highest_code);
    *minimum = low;
    return scale;
}

static void put_low(uint8_t *low, const uint8_t *code)
{
    for (int i = 0; i < QUANT_BLOCK / 2; i++)
        low[i] = (uint8_t)((code[i] & 15) | (code[i + QUANT_BLOCK / 2] & 15) << 4);
}

static void put_high(uint8_t high[4], const uint8_t *code)
{
    memset(high, 0, 4);
    for (int i = 0; i < QUANT_BLOCK; i++)
        high[i / 8] |= (uint8_t)((code[i] >> 4) << (i % 8));
}

static void q4_0_row(const float *x, void *dst, uint64_t blocks)
{
    struct block_q4_0 *block = dst;
    uint8_t code[QUANT_BLOCK];
    for (uint64_t b = 0; b < blocks; b++, block++, x += QUANT_BLOCK) {
        block->scale = f32_to_f16(codes_0(x, 8, code));
        put_low(block->low, code);
    }
}

static void q5_0_row(const float *x, void *dst, uint64_t blocks)
{
    struct block_q5_0 *block = dst;
    uint8_t code[QUANT_BLOCK];
    for (uint64_t b = 0; b < blocks; b++, block++, x += QUANT_BLOCK) {
        block->scale = f32_to_f16(codes_0(x, 16, code));
        put_low(block->low, code);
        put_high(block->high, code);
    }
}

static void q4_1_row(const float *x, void *dst, uint64_t blocks)
{
    struct block_q4_1 *block = dst;
    uint8_t code[QUANT_BLOCK];
    float minimum;
    for (uint64_t b = 0; b < blocks; b++, block++, x += QUANT_BLOCK) {
        block->scale = f32_to_f16(codes_1(x, 15, code, &minimum));
        block->minimum = f32_to_f16(minimum);
        put_low(block->low, code);
    }
}

static void q5_1_row(const float *x, void *dst, uint64_t blocks)
{
    struct block_q5_1 *block = dst;
    uint8_t code[QUANT_BLOCK];
    float minimum;
    for (uint64_t b = 0; b < blocks; b++, block++, x += QUANT_BLOCK) {
        block->scale = f32_to_f16(codes_1(x, 31, code, &minimum));
        block->minimum = f32_to_f16(minimum);
        put_low(block->low, code);
        put_high(block->high, code);
    }
}

/* ---- K types: all sub-blocks of a super-block at once. Element j of sub-block s stands at [j][s] of a
 * turned copy, so that loops over s have one lane for each sub-block, and a sub-block's sums run over j in
 * order. */

#define LANES_MAX 16

/* gcc unrolls a loop of eight before it would have made it one vector; then it takes four times as long. */
#define EACH_LANE(s, lanes) _Pragma("GCC unroll 1") for (int s = 0; s < (lanes); s++)

/* Clamped and rounded to the nearest whole number: adding 1.5 * 2^23 leaves no bits for a fraction. */
INLINE float code_of(float v, float low, float high)
{
    return (clamp(v, low, high) + 0x1.8p23f) - 0x1.8p23f;
}

/* Turns a super-block of `lanes` sub-blocks, NaN as 0; false when a value is infinite. */
INLINE bool take(const float *src, float *x, int lanes)
{
    const int n = QUANT_SUPER / lanes;
    float furthest = 0.0f;
    EACH_LANE (s, lanes)
        for (int j = 0; j < n; j++) {
            float v = src[s * n + j] == src[s * n + j] ? src[s * n + j] : 0.0f;
            x[j * lanes + s] = v;
            furthest = fabsf(v) > furthest ? fabsf(v) : furthest;
        }
    return furthest < INFINITY;
}

INLINE float largest(const float *values, int n)
{
    float most = 0.0f;
    for (int i = 0; i < n; i++)
        most = fabsf(values[i]) > fabsf(most) ? values[i] : most;
    return most;
}

/* For the lanes where a trial is better: its codes become the codes. */
INLINE void keep_better(int *code, const float *trial, const bool *better, int lanes)
{
    int mask[LANES_MAX];
    EACH_LANE (s, lanes)
        mask[s] = -(int)better[s];
    for (int j = 0; j < QUANT_SUPER / lanes; j++)
        EACH_LANE (s, lanes) {
            int i = j * lanes + s;
            code[i] = (code[i] & ~mask[s]) | ((int)trial[i] & mask[s]);
        }
}

INLINE void turn_back(int *code, int lanes)
{
    const int n = QUANT_SUPER / lanes;
    int turned[QUANT_SUPER];
    memcpy(turned, code, sizeof(turned));
    EACH_LANE (s, lanes)
        for (int j = 0; j < n; j++)
            code[s * n + j] = turned[j * lanes + s];
}

/* ---- K types without a minimum: x = scale * code, code from low to high = -low - 1; 16 x 16 elements */

#define STEPS 9 /* tenths of a code, to either side */

/* Step 1: the best real scale of each sub-block. */
INLINE void fit_scales(const float *x, float low, float high, float *scale)
{
    float extreme[16] = {0}, best[16] = {0};
    for (int j = 0; j < 16; j++)
        for (int s = 0; s < 16; s++)
            extreme[s] = fabsf(x[j * 16 + s]) > fabsf(extreme[s]) ? x[j * 16 + s] : extreme[s];
    memset(scale, 0, 16 * sizeof(*scale));
    for (int step = -STEPS; step <= STEPS; step++) {
        float inverse[16], xq[16] = {0}, qq[16] = {0};
        for (int s = 0; s < 16; s++)
            inverse[s] = extreme[s] != 0.0f ? (low + 0.1f * (float)step) / extreme[s] : 0.0f;
        for (int j = 0; j < 16; j++)
            for (int s = 0; s < 16; s++) {
                float q = code_of(x[j * 16 + s] * inverse[s], low, high);
                xq[s] += x[j * 16 + s] * q;
                qq[s] += q * q;
            }
        /* With the best scale xq / qq the squared error is that of all zeros less xq^2 / qq. */
        for (int s = 0; s < 16; s++) {
            bool better = xq[s] * xq[s] > best[s] * qq[s];
            scale[s] = better ? xq[s] / qq[s] : scale[s];
            best[s] = better ? xq[s] * xq[s] / qq[s] : best[s];
        }
    }
}

/* Codes for given step widths, and their squared errors. */
INLINE void try_steps(const float *x, const float *step, float low, float high, float *code, float *error)
{
    float inverse[16];
    memset(error, 0, 16 * sizeof(*error));
    for (int s = 0; s < 16; s++)
        inverse[s] = step[s] != 0.0f ? 1.0f / step[s] : 0.0f;
    for (int j = 0; j < 16; j++)
        for (int s = 0; s < 16; s++) {
            int i = j * 16 + s;
            code[i] = code_of(x[i] * inverse[s], low, high);
            float off = x[i] - step[s] * code[i];
            error[s] += off * off;
        }
}

/* A super-block: its F16 scale, integer scales from scale_low to -scale_low - 1, and codes. */
INLINE uint16_t fit_super(const float *x, float scale_low, float low, int *part, int *code)
{
    const float high = -low - 1.0f, scale_high = -scale_low - 1.0f;
    float scale[16], best[16] = {0}, error[16], step[16], tried[16], trial[QUANT_SUPER];
    bool better[16];
    fit_scales(x, low, high, scale);
    uint16_t bits = f32_to_f16(largest(scale, 16) / scale_low);
    float super = f16_to_f32(bits), inverse = super != 0.0f ? 1.0f / super : 0.0f;
    memset(part, 0, 16 * sizeof(*part));
    memset(code, 0, QUANT_SUPER * sizeof(*code));
    for (int way = -1; way <= 1; way++) {
        for (int s = 0; s < 16; s++) {
            tried[s] =
                clamp(code_of(scale[s] * inverse, scale_low, scale_high) + (float)way, scale_low, scale_high);
            step[s] = super * tried[s];
        }
        try_steps(x, step, low, high, trial, error);
        for (int s = 0; s < 16; s++) {
            better[s] = way == -1 || error[s] < best[s];
            best[s] = better[s] ? error[s] : best[s];
            part[s] = better[s] ? (int)tried[s] : part[s];
        }
        keep_better(code, trial, better, 16);
    }
    turn_back(code, 16);
    return bits;
}

/* ---- K types with a minimum: x = scale * code - minimum, code from 0 to high, scale and minimum >= 0 */

struct lines {
    float scale[LANES_MAX], minimum[LANES_MAX], error[LANES_MAX];
};

/* The best line of each sub-block for given codes (least squares; a minimum below 0 becomes 0). */
INLINE void solve(struct lines *l, const float *x, const float *code, int lanes)
{
    const float n = (float)(QUANT_SUPER / lanes);
    float q[LANES_MAX] = {0}, qq[LANES_MAX] = {0}, xs[LANES_MAX] = {0}, xq[LANES_MAX] = {0};
    for (int j = 0; j < QUANT_SUPER / lanes; j++)
        EACH_LANE (s, lanes) {
            int i = j * lanes + s;
            q[s] += code[i];
            qq[s] += code[i] * code[i];
            xs[s] += x[i];
            xq[s] += x[i] * code[i];
        }
    EACH_LANE (s, lanes) {
        float spread = n * qq[s] - q[s] * q[s];
        float minimum = (q[s] * xq[s] - qq[s] * xs[s]) / spread;
        bool line = spread > 0.0f && minimum >= 0.0f;
        l->minimum[s] = line ? minimum : 0.0f;
        l->scale[s] = line ? (n * xq[s] - xs[s] * q[s]) / spread : qq[s] > 0.0f ? xq[s] / qq[s] : 0.0f;
        l->error[s] = 0.0f;
    }
    for (int j = 0; j < QUANT_SUPER / lanes; j++)
        EACH_LANE (s, lanes) {
            float off = x[j * lanes + s] - (l->scale[s] * code[j * lanes + s] - l->minimum[s]);
            l->error[s] += off * off;
        }
}

/* Step 1: the best real scale and minimum of each sub-block. */
INLINE void fit_lines(struct lines *best, const float *x, int lanes, float high)
{
    float least[LANES_MAX] = {0}, most[LANES_MAX], code[QUANT_SUPER];
    struct lines l;
    memcpy(most, x, (size_t)lanes * sizeof(float));
    for (int j = 0; j < QUANT_SUPER / lanes; j++)
        EACH_LANE (s, lanes) {
            float v = x[j * lanes + s];
            least[s] = v < least[s] ? v : least[s];
            most[s] = v > most[s] ? v : most[s];
        }
    EACH_LANE (s, lanes) {
        best->scale[s] = (most[s] - least[s]) / high;
        best->minimum[s] = -least[s];
        best->error[s] = INFINITY;
    }
    for (int step = -10; step <= 10; step++) {
        float inverse[LANES_MAX];
        EACH_LANE (s, lanes)
            inverse[s] = most[s] > least[s] ? (high + 0.1f * (float)step) / (most[s] - least[s]) : 0.0f;
        for (int j = 0; j < QUANT_SUPER / lanes; j++)
            EACH_LANE (s, lanes)
                code[j * lanes + s] = code_of((x[j * lanes + s] - least[s]) * inverse[s], 0.0f, high);
        solve(&l, x, code, lanes);
        EACH_LANE (s, lanes) {
            bool better = most[s] > least[s] && l.scale[s] >= 0.0f && l.error[s] < best->error[s];
            best->scale[s] = better ? l.scale[s] : best->scale[s];
            best->minimum[s] = better ? l.minimum[s] : best->minimum[s];
            best->error[s] = better ? l.error[s] : best->error[s];
        }
    }
}

INLINE void try_lines(struct lines *l, const float *x, int lanes, float high, float *code)
{
    float inverse[LANES_MAX];
    EACH_LANE (s, lanes) {
        inverse[s] = l->scale[s] != 0.0f ? 1.0f / l->scale[s] : 0.0f;
        l->error[s] = 0.0f;
    }
    for (int j = 0; j < QUANT_SUPER / lanes; j++)
        EACH_LANE (s, lanes) {
            int i = j * lanes + s;
            code[i] = code_of((x[i] + l->minimum[s]) * inverse[s], 0.0f, high);
            float off = x[i] - (l->scale[s] * code[i] - l->minimum[s]);
            l->error[s] += off * off;
        }
}

struct super {
    uint16_t scale, minimum; /* F16 */
    int part[LANES_MAX], part_minimum[LANES_MAX], code[QUANT_SUPER];
};

/* A super-block; integer scales and minimums from 0 to part_high. */
INLINE void fit_super_lines(struct super *out, const float *x, int lanes, float high, float part_high)
{
    struct lines line, tried;
    memset(out, 0, sizeof(*out));
    float best[LANES_MAX] = {0}, ps[LANES_MAX], pm[LANES_MAX], trial[QUANT_SUPER];
    bool better[LANES_MAX];
    fit_lines(&line, x, lanes, high);
    out->scale = f32_to_f16(largest(line.scale, lanes) / part_high);
    out->minimum = f32_to_f16(largest(line.minimum, lanes) / part_high);
    float scale = f16_to_f32(out->scale), minimum = f16_to_f32(out->minimum);
    float per_scale = scale != 0.0f ? 1.0f / scale : 0.0f,
          per_minimum = minimum != 0.0f ? 1.0f / minimum : 0.0f;
    for (int way = 0; way < 9; way++) {
        EACH_LANE (s, lanes) {
            ps[s] = clamp(code_of(line.scale[s] * per_scale, 0.0f, part_high) + (float)(way % 3 - 1), 0.0f,
                          part_high);
            pm[s] = clamp(code_of(line.minimum[s] * per_minimum, 0.0f, part_high) + (float)(way / 3 - 1),
                          0.0f, part_high);
            tried.scale[s] = scale * ps[s];
            tried.minimum[s] = minimum * pm[s];
        }
        try_lines(&tried, x, lanes, high, trial);
        EACH_LANE (s, lanes) {
            better[s] = way == 0 || tried.error[s] < best[s];
            best[s] = better[s] ? tried.error[s] : best[s];
            out->part[s] = better[s] ? (int)ps[s] : out->part[s];
            out->part_minimum[s] = better[s] ? (int)pm[s] : out->part_minimum[s];
        }
        keep_better(out->code, trial, better, lanes);
    }
    turn_back(out->code, lanes);
}

/* ---- K types: packing; the layouts stand in quant.c */

CPU_CLONES static void q2_k_row(const float *src, void *dst, uint64_t blocks)
{
    struct block_q2_k *block = dst;
    struct super out;
    float x[QUANT_SUPER];
    memset(dst, 0, blocks * sizeof(*block));
    for (uint64_t b = 0; b < blocks; b++, block++) {
        block->scale = F16_INFINITY;
        if (!take(src + b * QUANT_SUPER, x, 16))
            continue;
        fit_super_lines(&out, x, 16, 3.0f, 15.0f);
        block->scale = out.scale;
        block->minimum = out.minimum;
        for (int s = 0; s < 16; s++)
            block->scales[s] = (uint8_t)(out.part[s] | out.part_minimum[s] << 4);
        for (int i = 0; i < QUANT_SUPER; i++)
            block->q[i / 128 * 32 + i % 32] |= (uint8_t)(out.code[i] << (i % 128 / 32 * 2));
    }
}

CPU_CLONES static void q3_k_row(const float *src, void *dst, uint64_t blocks)
{
    struct block_q3_k *block = dst;
    float x[QUANT_SUPER];
    int part[16], code[QUANT_SUPER];
    memset(dst, 0, blocks * sizeof(*block));
    for (uint64_t b = 0; b < blocks; b++, block++) {
        block->scale = F16_INFINITY;
        if (!take(src + b * QUANT_SUPER, x, 16))
            continue;
        block->scale = fit_super(x, -32.0f, -4.0f, part, code);
        for (int s = 0; s < 16; s++) {
            int stored = part[s] + 32;
            block->scales[s % 8] |= (uint8_t)((stored & 15) << (s / 8 * 4));
            block->scales[8 + s % 4] |= (uint8_t)((stored >> 4) << (s / 4 * 2));
        }
        for (int i = 0; i < QUANT_SUPER; i++) {
            int stored = code[i] + 4;
            block->q[i / 128 * 32 + i % 32] |= (uint8_t)((stored & 3) << (i % 128 / 32 * 2));
            block->high[i % 32] |= (uint8_t)((stored >> 2) << (i / 32));
        }
    }
}

static void pack_q4_k(uint8_t packed[12], const int *scale, const int *minimum)
{
    for (int j = 0; j < 4; j++) {
        packed[j] = (uint8_t)(scale[j] | (scale[4 + j] >> 4) << 6);
        packed[4 + j] = (uint8_t)(minimum[j] | (minimum[4 + j] >> 4) << 6);
        packed[8 + j] = (uint8_t)((scale[4 + j] & 15) | (minimum[4 + j] & 15) << 4);
    }
}

CPU_CLONES static void q4_k_row(const float *src, void *dst, uint64_t blocks)
{
    struct block_q4_k *block = dst;
    struct super out;
    float x[QUANT_SUPER];
    memset(dst, 0, blocks * sizeof(*block));
    for (uint64_t b = 0; b < blocks; b++, block++) {
        block->scale = F16_INFINITY;
        if (!take(src + b * QUANT_SUPER, x, 8))
            continue;
        fit_super_lines(&out, x, 8, 15.0f, 63.0f);
        block->scale = out.scale;
        block->minimum = out.minimum;
        pack_q4_k(block->scales, out.part, out.part_minimum);
        for (int i = 0; i < QUANT_SUPER; i++)
            block->q[i / 64 * 32 + i % 32] |= (uint8_t)(out.code[i] << (i % 64 / 32 * 4));
    }
}

CPU_CLONES static void q5_k_row(const float *src, void *dst, uint64_t blocks)
{
    struct block_q5_k *block = dst;
    struct super out;
    float x[QUANT_SUPER];
    memset(dst, 0, blocks * sizeof(*block));
    for (uint64_t b = 0; b < blocks; b++, block++) {
        block->scale = F16_INFINITY;
        if (!take(src + b * QUANT_SUPER, x, 8))
            continue;
        fit_super_lines(&out, x, 8, 31.0f, 63.0f);
        block->scale = out.scale;
        block->minimum = out.minimum;
        pack_q4_k(block->scales, out.part, out.part_minimum);
        for (int i = 0; i < QUANT_SUPER; i++) {
            block->q[i / 64 * 32 + i % 32] |= (uint8_t)((out.code[i] & 15) << (i % 64 / 32 * 4));
            block->high[i % 32] |= (uint8_t)((out.code[i] >> 4) << (i / 32));
        }
    }
}

CPU_CLONES static void q6_k_row(const float *src, void *dst, uint64_t blocks)
{
    struct block_q6_k *block = dst;
    float x[QUANT_SUPER];
    int part[16], code[QUANT_SUPER];
    memset(dst, 0, blocks * sizeof(*block));
    for (uint64_t b = 0; b < blocks; b++, block++) {
        block->scale = F16_INFINITY;
        if (!take(src + b * QUANT_SUPER, x, 16))
            continue;
        block->scale = fit_super(x, -128.0f, -32.0f, part, code);
        for (int s = 0; s < 16; s++)
            block->scales[s] = (int8_t)part[s];
        for (int i = 0; i < QUANT_SUPER; i++) {
            int half = i / 128, plane = i % 128 / 32, l = i % 32, stored = code[i] + 32;
            block->low[half * 64 + plane % 2 * 32 + l] |= (uint8_t)((stored & 15) << (plane / 2 * 4));
            block->high[half * 32 + l] |= (uint8_t)((stored >> 4) << (plane * 2));
        }
    }
}

void quant_from_f32(enum dtype type, const float *src, void *dst, uint64_t blocks)
{
    static void (*const ROW[DTYPE_COUNT])(const float *, void *, uint64_t) = {
        [DTYPE_Q8_0] = q8_0_row, [DTYPE_Q4_0] = q4_0_row, [DTYPE_Q4_1] = q4_1_row, [DTYPE_Q5_0] = q5_0_row,
        [DTYPE_Q5_1] = q5_1_row, [DTYPE_Q2_K] = q2_k_row, [DTYPE_Q3_K] = q3_k_row, [DTYPE_Q4_K] = q4_k_row,
        [DTYPE_Q5_K] = q5_k_row, [DTYPE_Q6_K] = q6_k_row,
    };
    ASSERT((unsigned)type < DTYPE_COUNT && ROW[type]);
    ROW[type](src, dst, blocks);
}
