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

/* ---- K types: sums over a sub-block of 16 or 32 elements */

#define LANES 16

INLINE float fold(const float lane[LANES])
{
    float sum[LANES];
    memcpy(sum, lane, sizeof(sum));
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int j = 0; j < width; j++)
            sum[j] += sum[j + width];
    return sum[0];
}

/* Clamped and rounded to the nearest whole number: adding 1.5 * 2^23 leaves no bits for a fraction. */
INLINE float code_of(float v, float low, float high)
{
    return (clamp(v, low, high) + 0x1.8p23f) - 0x1.8p23f;
}

/* Copies a super-block, NaN as 0; false when a value is infinite. */
static bool take(const float *src, float *x)
{
    bool finite = true;
    for (int i = 0; i < QUANT_SUPER; i++) {
        finite = finite && !isinf(src[i]);
        x[i] = finite_or_zero(src[i]);
    }
    return finite;
}

/* ---- K types without a minimum: x = scale * code, code from low to high, low = -high - 1 */

#define STEPS 9 /* tenths of a code, to either side */

INLINE float fit_scale(const float *x, float low, float high)
{
    float extreme = 0.0f, best = 0.0f, scale = 0.0f;
    for (int j = 0; j < 16; j++)
        extreme = fabsf(x[j]) > fabsf(extreme) ? x[j] : extreme;
    for (int step = -STEPS; step <= STEPS && extreme != 0.0f; step++) {
        float inverse = (low + 0.1f * (float)step) / extreme, xq[LANES], qq[LANES];
        for (int j = 0; j < LANES; j++) {
            float q = code_of(x[j] * inverse, low, high);
            xq[j] = x[j] * q;
            qq[j] = q * q;
        }
        /* With the best scale xq / qq the squared error is that of all zeros less xq^2 / qq. */
        float sum_xq = fold(xq), sum_qq = fold(qq);
        if (sum_xq * sum_xq > best * sum_qq) {
            best = sum_xq * sum_xq / sum_qq;
            scale = sum_xq / sum_qq;
        }
    }
    return scale;
}

/* Codes of 16 elements for one step width, and their squared error. */
INLINE float try_step(const float *x, float step, float low, float high, float *code)
{
    float inverse = step != 0.0f ? 1.0f / step : 0.0f, error[LANES];
    for (int j = 0; j < LANES; j++) {
        code[j] = code_of(x[j] * inverse, low, high);
        float off = x[j] - step * code[j];
        error[j] = off * off;
    }
    return fold(error);
}

/* A super-block of 16 x 16: its F16 scale, integer scales from scale_low to -scale_low - 1, and codes. */
INLINE uint16_t fit_super(const float *x, float scale_low, float low, int *part, int *code)
{
    float scale[16], extreme = 0.0f, high = -low - 1.0f, trial[16];
    for (int s = 0; s < 16; s++) {
        scale[s] = fit_scale(x + s * 16, low, high);
        extreme = fabsf(scale[s]) > fabsf(extreme) ? scale[s] : extreme;
    }
    uint16_t bits = f32_to_f16(extreme / scale_low);
    float super = f16_to_f32(bits), inverse = super != 0.0f ? 1.0f / super : 0.0f;
    for (int s = 0; s < 16; s++) {
        float middle = code_of(scale[s] * inverse, scale_low, -scale_low - 1.0f), best = INFINITY;
        for (int way = -1; way <= 1; way++) {
            float tried = clamp(middle + (float)way, scale_low, -scale_low - 1.0f);
            float error = try_step(x + s * 16, super * tried, low, high, trial);
            if (way > -1 && !(error < best))
                continue;
            best = error;
            part[s] = (int)tried;
            for (int j = 0; j < 16; j++)
                code[s * 16 + j] = (int)trial[j];
        }
    }
    return bits;
}

/* ---- K types with a minimum: x = scale * code - minimum, code from 0 to high, scale and minimum >= 0 */

struct line {
    float scale, minimum, error;
};

/* The best line for given codes (least squares; a minimum below 0 becomes 0), and its error. */
INLINE struct line solve(const float *x, const float *code, int n)
{
    float q[LANES] = {0}, qq[LANES] = {0}, xs[LANES] = {0}, xq[LANES] = {0}, off[LANES] = {0};
    for (int i = 0; i < n; i += LANES)
        for (int j = 0; j < LANES; j++) {
            q[j] += code[i + j];
            qq[j] += code[i + j] * code[i + j];
            xs[j] += x[i + j];
            xq[j] += x[i + j] * code[i + j];
        }
    float sum_q = fold(q), sum_qq = fold(qq), sum_x = fold(xs), sum_xq = fold(xq);
    float spread = (float)n * sum_qq - sum_q * sum_q;
    struct line l = {0};
    if (spread > 0.0f) {
        l.scale = ((float)n * sum_xq - sum_x * sum_q) / spread;
        l.minimum = (sum_q * sum_xq - sum_qq * sum_x) / spread;
    }
    if (!(spread > 0.0f) || l.minimum < 0.0f) {
        l.scale = sum_qq > 0.0f ? sum_xq / sum_qq : 0.0f;
        l.minimum = 0.0f;
    }
    for (int i = 0; i < n; i += LANES)
        for (int j = 0; j < LANES; j++) {
            float d = x[i + j] - (l.scale * code[i + j] - l.minimum);
            off[j] += d * d;
        }
    l.error = l.scale >= 0.0f ? fold(off) : INFINITY;
    return l;
}

INLINE struct line fit_line(const float *x, int n, float high)
{
    float least = 0.0f, most = x[0], code[32];
    for (int j = 0; j < n; j++) {
        least = x[j] < least ? x[j] : least;
        most = x[j] > most ? x[j] : most;
    }
    struct line best = {.scale = (most - least) / high, .minimum = -least, .error = INFINITY};
    for (int step = -10; step <= 10 && most > least; step++) {
        float inverse = (high + 0.1f * (float)step) / (most - least);
        for (int j = 0; j < n; j++)
            code[j] = code_of((x[j] - least) * inverse, 0.0f, high);
        struct line l = solve(x, code, n);
        if (l.error < best.error)
            best = l;
    }
    return best;
}

INLINE float try_line(const float *x, int n, float step, float minimum, float high, float *code)
{
    float inverse = step != 0.0f ? 1.0f / step : 0.0f, error[LANES] = {0};
    for (int i = 0; i < n; i += LANES)
        for (int j = 0; j < LANES; j++) {
            code[i + j] = code_of((x[i + j] + minimum) * inverse, 0.0f, high);
            float off = x[i + j] - (step * code[i + j] - minimum);
            error[j] += off * off;
        }
    return fold(error);
}

struct super {
    uint16_t scale, minimum; /* F16 */
    int part[16], part_minimum[16], code[QUANT_SUPER];
};

/* Step 2 for one sub-block: the integers around (scale, minimum). */
INLINE void choose_parts(struct super *out, const float *x, int s, int n, float high, struct line line,
                         float part_high)
{
    float scale = f16_to_f32(out->scale), minimum = f16_to_f32(out->minimum), best = INFINITY, trial[32];
    float s0 = code_of(scale != 0.0f ? line.scale / scale : 0.0f, 0.0f, part_high);
    float m0 = code_of(minimum != 0.0f ? line.minimum / minimum : 0.0f, 0.0f, part_high);
    for (int way = 0; way < 9; way++) {
        float ps = clamp(s0 + (float)(way % 3 - 1), 0.0f, part_high);
        float pm = clamp(m0 + (float)(way / 3 - 1), 0.0f, part_high);
        float error = try_line(x, n, scale * ps, minimum * pm, high, trial);
        if (way > 0 && !(error < best))
            continue;
        best = error;
        out->part[s] = (int)ps;
        out->part_minimum[s] = (int)pm;
        for (int j = 0; j < n; j++)
            out->code[s * n + j] = (int)trial[j];
    }
}

/* A super-block in sub-blocks of n; integer scales and minimums from 0 to part_high. */
INLINE void fit_super_lines(struct super *out, const float *x, int n, float high, float part_high)
{
    struct line line[16];
    float most_scale = 0.0f, most_minimum = 0.0f;
    for (int s = 0; s < QUANT_SUPER / n; s++) {
        line[s] = fit_line(x + s * n, n, high);
        most_scale = line[s].scale > most_scale ? line[s].scale : most_scale;
        most_minimum = line[s].minimum > most_minimum ? line[s].minimum : most_minimum;
    }
    out->scale = f32_to_f16(most_scale / part_high);
    out->minimum = f32_to_f16(most_minimum / part_high);
    for (int s = 0; s < QUANT_SUPER / n; s++)
        choose_parts(out, x + s * n, s, n, high, line[s], part_high);
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
        if (!take(src + b * QUANT_SUPER, x))
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
        if (!take(src + b * QUANT_SUPER, x))
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
        if (!take(src + b * QUANT_SUPER, x))
            continue;
        fit_super_lines(&out, x, 32, 15.0f, 63.0f);
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
        if (!take(src + b * QUANT_SUPER, x))
            continue;
        fit_super_lines(&out, x, 32, 31.0f, 63.0f);
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
        if (!take(src + b * QUANT_SUPER, x))
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
