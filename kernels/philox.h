/* philox: Philox4x32-10, the counter-based generator of sampling: a draw is a pure function of (seed, index),
 * so a token is the same wherever and whenever it is drawn. Source: Salmon, Moraes, Dror, Shaw, "Parallel
 * Random Numbers: As Easy as 1, 2, 3", SC 2011. Shared by the CPU's and the GPU's sample. */
#ifndef LEPTON_KERNELS_PHILOX_H
#define LEPTON_KERNELS_PHILOX_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifdef __CUDACC__
#define PHILOX_FUNCTION static inline __host__ __device__
#else
#define PHILOX_FUNCTION static inline
#endif

/* Turns the counter into four random words, in place. */
PHILOX_FUNCTION void philox4x32_10(uint32_t counter[4], uint32_t key0, uint32_t key1)
{
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xD2511F53u * counter[0];
        uint64_t b = (uint64_t)0xCD9E8D57u * counter[2];
        uint32_t c1 = counter[1], c3 = counter[3];
        counter[0] = (uint32_t)(b >> 32) ^ c1 ^ key0;
        counter[1] = (uint32_t)b;
        counter[2] = (uint32_t)(a >> 32) ^ c3 ^ key1;
        counter[3] = (uint32_t)a;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
}

/* Uniform in [0, 1) with 53 bits: key = seed (low word first), counter = (index, choice, 0, 0); the first two
 * words of the result, first one on top, without their lowest 11 bits. */
PHILOX_FUNCTION double philox_uniform(uint64_t seed, uint32_t choice, uint32_t index)
{
    uint32_t counter[4] = {index, choice, 0, 0};
    philox4x32_10(counter, (uint32_t)seed, (uint32_t)(seed >> 32));
    uint64_t bits = (uint64_t)counter[0] << 32 | counter[1];
    return (double)(bits >> 11) * (1.0 / 9007199254740992.0);
}

#ifdef __cplusplus
}
#endif

#endif
