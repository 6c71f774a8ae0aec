#include "kernels/cpu/limits.h"

#include <stdlib.h>
#include <time.h>

#include "kernels/cpu/clones.h"
#include "kernels/cpu/fast.h"

#define READ_BYTES (512ull << 20)
#define PIECES     16 /* of a thread's share, so that a busy core does not hold all of it up */
#define ROUNDS     400000

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Where results go that nobody wants, so that the compiler keeps the loops. */
struct sink {
    const float *memory;
    int64_t floats; /* of a piece */
    float out[1024];
};

#ifdef CPU_HAS_FAST
#include <immintrin.h>
#define TARGET      __attribute__((target("avx512f")))
#define TARGET_BF16 __attribute__((target("avx512f,avx512bf16")))
#define TARGET_VNNI __attribute__((target("avx512f,avx512bw,avx512vnni")))
#define CHAINS      24

TARGET static void read_wide(void *context, int64_t begin, int64_t end, int member)
{
    struct sink *s = context;
    __m512 sum[8];
    for (int i = 0; i < 8; i++)
        sum[i] = _mm512_setzero_ps();
    for (int64_t k = begin * s->floats; k < end * s->floats; k += 128)
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++)
            sum[i] = _mm512_add_ps(sum[i], _mm512_load_ps(s->memory + k + 16 * i));
    for (int i = 1; i < 8; i++)
        sum[0] = _mm512_add_ps(sum[0], sum[i]);
    s->out[member % 1024] = _mm512_reduce_add_ps(sum[0]);
}

TARGET static void fp32_wide(void *context, int64_t begin, int64_t end, int member)
{
    struct sink *s = context;
    __m512 sum[CHAINS], a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(0.001f);
    for (int i = 0; i < CHAINS; i++)
        sum[i] = _mm512_set1_ps((float)i);
    for (int64_t n = begin * ROUNDS; n < end * ROUNDS; n++)
#pragma GCC unroll 24
        for (int i = 0; i < CHAINS; i++)
            sum[i] = _mm512_fmadd_ps(sum[i], a, b);
    for (int i = 1; i < CHAINS; i++)
        sum[0] = _mm512_add_ps(sum[0], sum[i]);
    s->out[member % 1024] = _mm512_reduce_add_ps(sum[0]);
}

/* In assembly and in variables of their own: from the intrinsics GCC 12 copies each sum before it adds, and
 * an array it keeps in memory; either costs half the rate. Fourteen sums are what one statement takes. */
#define SUMS 14
#define SUM_ALL(INSTRUCTION, a, b)                                                                          \
    __asm__(INSTRUCTION                                                                                     \
            " %15, %14, %0\n\t" INSTRUCTION " %15, %14, %1\n\t" INSTRUCTION " %15, %14, %2\n\t" INSTRUCTION \
            " %15, %14, %3\n\t" INSTRUCTION " %15, %14, %4\n\t" INSTRUCTION " %15, %14, %5\n\t" INSTRUCTION \
            " %15, %14, %6\n\t" INSTRUCTION " %15, %14, %7\n\t" INSTRUCTION " %15, %14, %8\n\t" INSTRUCTION \
            " %15, %14, %9\n\t" INSTRUCTION " %15, %14, %10\n\t" INSTRUCTION                                \
            " %15, %14, %11\n\t" INSTRUCTION " %15, %14, %12\n\t" INSTRUCTION " %15, %14, %13\n\t"          \
            : "+v"(s0), "+v"(s1), "+v"(s2), "+v"(s3), "+v"(s4), "+v"(s5), "+v"(s6), "+v"(s7), "+v"(s8),     \
              "+v"(s9), "+v"(s10), "+v"(s11), "+v"(s12), "+v"(s13)                                          \
            : "v"(a), "v"(b))

TARGET_VNNI static void int8_wide(void *context, int64_t begin, int64_t end, int member)
{
    struct sink *s = context;
    __m512i s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0}, s4 = {0}, s5 = {0}, s6 = {0}, s7 = {0}, s8 = {0},
            s9 = {0}, s10 = {0}, s11 = {0}, s12 = {0}, s13 = {0};
    __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(-1);
    for (int64_t n = begin * ROUNDS; n < end * ROUNDS; n++)
        SUM_ALL("vpdpbusd", a, b);
    s0 ^= s1 ^ s2 ^ s3 ^ s4 ^ s5 ^ s6 ^ s7 ^ s8 ^ s9 ^ s10 ^ s11 ^ s12 ^ s13;
    s->out[member % 1024] = (float)_mm_cvtsi128_si32(_mm512_castsi512_si128(s0));
}

TARGET_BF16 static void bf16_wide(void *context, int64_t begin, int64_t end, int member)
{
    struct sink *s = context;
    __m512 s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0}, s4 = {0}, s5 = {0}, s6 = {0}, s7 = {0}, s8 = {0}, s9 = {0},
           s10 = {0}, s11 = {0}, s12 = {0}, s13 = {0};
    __m512i a = _mm512_set1_epi32(0x3F803F80), b = _mm512_set1_epi32(0x3A803A80);
    for (int64_t n = begin * ROUNDS; n < end * ROUNDS; n++)
        SUM_ALL("vdpbf16ps", a, b);
    s0 += s1 + s2 + s3 + s4 + s5 + s6 + s7 + s8 + s9 + s10 + s11 + s12 + s13;
    s->out[member % 1024] = _mm512_reduce_add_ps(s0);
}
#define WIDE_BF16_OPS (2.0 * 32 * SUMS * ROUNDS)
#define WIDE_FP32_OPS (2.0 * 16 * CHAINS * ROUNDS)
#define WIDE_INT8_OPS (2.0 * 64 * SUMS * ROUNDS)
#endif

/* For processors without AVX-512: what the compiler makes of plain loops. */
CPU_CLONES static float read_plain(const float *memory, int64_t begin, int64_t end)
{
    float sum[64] = {0};
    for (int64_t k = begin; k < end; k += 64)
        for (int i = 0; i < 64; i++)
            sum[i] += memory[k + i];
    for (int i = 1; i < 64; i++)
        sum[0] += sum[i];
    return sum[0];
}

static void read_body(void *context, int64_t begin, int64_t end, int member)
{
    struct sink *s = context;
    s->out[member % 1024] = read_plain(s->memory, begin * s->floats, end * s->floats);
}

#define PLAIN_FP32_OPS (2.0 * 64 * ROUNDS)
CPU_CLONES static float fp32_plain(int64_t rounds)
{
    float sum[64];
    for (int i = 0; i < 64; i++)
        sum[i] = (float)i;
    for (int64_t n = 0; n < rounds; n++)
        for (int i = 0; i < 64; i++)
            sum[i] = sum[i] * 0.999f + 0.001f;
    for (int i = 1; i < 64; i++)
        sum[0] += sum[i];
    return sum[0];
}

static void fp32_body(void *context, int64_t begin, int64_t end, int member)
{
    struct sink *s = context;
    s->out[member % 1024] = fp32_plain((end - begin) * ROUNDS);
}

/* The best time of `repeats` runs over all pieces. */
static double best_s(struct team *team, int64_t pieces, int repeats, team_body *body, struct sink *s)
{
    double best = 1e30;
    for (int r = 0; r <= repeats; r++) { /* the first run warms up */
        double begun = now_s();
        team_for(team, pieces, 1, body, s);
        double took = now_s() - begun;
        if (r > 0 && took < best)
            best = took;
    }
    return best;
}

int cpu_limits_measure(struct device *device, int repeats, struct cpu_limits *out, struct err *err)
{
    struct team *team = cpu_device_team(device);
    int64_t pieces = (int64_t)team_threads(team) * PIECES;
    struct sink *s = xcalloc(1, sizeof(*s));
    s->floats = (int64_t)(READ_BYTES / sizeof(float) / (uint64_t)pieces / 128 * 128);
    float *memory = device_alloc(device, READ_BYTES, err);
    if (!memory) {
        free(s);
        return -1;
    }
    for (uint64_t i = 0; i < READ_BYTES / sizeof(float); i += 512)
        memory[i] = 1; /* every page is there before it is read */
    s->memory = memory;
    double bytes = (double)(s->floats * pieces) * sizeof(float), count = (double)pieces;
    *out = (struct cpu_limits){0};
#ifdef CPU_HAS_FAST
    if (__builtin_cpu_supports("avx512f")) {
        out->read_bytes_per_s = bytes / best_s(team, pieces, repeats, read_wide, s);
        out->fp32_flop_per_s = count * WIDE_FP32_OPS / best_s(team, pieces, repeats, fp32_wide, s);
        if (__builtin_cpu_supports("avx512bf16"))
            out->bf16_flop_per_s = count * WIDE_BF16_OPS / best_s(team, pieces, repeats, bf16_wide, s);
        if (__builtin_cpu_supports("avx512vnni"))
            out->int8_op_per_s = count * WIDE_INT8_OPS / best_s(team, pieces, repeats, int8_wide, s);
    }
#endif
    if (out->read_bytes_per_s == 0) {
        out->read_bytes_per_s = bytes / best_s(team, pieces, repeats, read_body, s);
        out->fp32_flop_per_s = count * PLAIN_FP32_OPS / best_s(team, pieces, repeats, fp32_body, s);
    }
    device_free(device, memory);
    free(s);
    return 0;
}
