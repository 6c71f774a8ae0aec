/* cuda_fp16: the conversions of CUDA's header of this name that the kernels use, for the emulated GPU. */
#ifndef LEPTON_TESTS_FAKE_CUDA_CUDA_FP16_H
#define LEPTON_TESTS_FAKE_CUDA_CUDA_FP16_H
#ifdef __cplusplus /* C sees nothing: only the emulated kernels include this */

#include "kernels/dtype.h"

struct __half {
    uint16_t bits;
};

static inline __half __ushort_as_half(uint16_t bits)
{
    return {bits};
}
static inline uint16_t __half_as_ushort(__half h)
{
    return h.bits;
}
static inline float __half2float(__half h)
{
    return f16_to_f32(h.bits);
}
static inline __half __float2half_rn(float f)
{
    return {f32_to_f16(f)};
}

#endif
#endif
