#include "kernels/cpu/fast.h"

#include <string.h>

#include "kernels/cpu/panel.h"
#include "kernels/half.h"

#define LAYOUT_PANELS 1

#ifdef CPU_HAS_FAST

struct pack_job {
    const struct tensor *host;
    struct tensor rounded; /* BF16, beside F16 rows that are to be rounded; data NULL otherwise */
    void *packed;
};

static void round_rows(const struct pack_job *p, int64_t begin, int64_t end)
{
    int64_t K = p->host->dim[1];
    const uint16_t *from = p->host->data;
    uint16_t *to = p->rounded.data;
    for (int64_t i = begin * K; i < end * K; i++)
        to[i] = narrow_bf16(widen_f16(from[i]));
}

static void pack_body(void *context, int64_t begin, int64_t end)
{
    const struct pack_job *p = context;
    if (p->rounded.data)
        round_rows(p, begin, end);
    panel_pack(p->rounded.data ? &p->rounded : p->host, p->packed, begin / PANEL_ROWS,
               (end + PANEL_ROWS - 1) / PANEL_ROWS);
}

static int pack_panels(struct weight *out, struct device *device, struct pack_job *job,
                       const struct weight_watch *watch, struct err *err)
{
    const struct tensor *rows = job->rounded.data ? &job->rounded : job->host;
    struct panel_layout l = panel_layout(rows->dtype, rows->dim[0], rows->dim[1]);
    job->packed = device_alloc(device, (size_t)l.panels * l.panel_bytes, err);
    if (!job->packed)
        return -1;
    cpu_pack_pass(device, job->host, PANEL_ROWS, watch, pack_body, job);
    *out = (struct weight){.stored = *rows, .packed = job->packed, .owned = true, .layout = LAYOUT_PANELS};
    out->stored.device = device;
    out->stored.data = job->packed;
    return 0;
}

static int fast_pack(struct weight *out, struct device *device, const struct tensor *host,
                     const struct weight_watch *watch, struct err *err)
{
    struct pack_job job = {.host = host};
    if (!panel_supported(host->dtype))
        return cpu_pack(out, device, host, watch, err);
    return pack_panels(out, device, &job, watch, err);
}

/* F16 weights become BF16 ones, rounded to nearest even. */
static int fast_pack_rounded(struct weight *out, struct device *device, const struct tensor *host,
                             const struct weight_watch *watch, struct err *err)
{
    struct pack_job job = {.host = host, .rounded = *host};
    if (host->dtype != DTYPE_F16)
        return fast_pack(out, device, host, watch, err);
    job.rounded.dtype = DTYPE_BF16;
    job.rounded.data = device_alloc(device, tensor_bytes(&job.rounded), err);
    if (!job.rounded.data)
        return -1;
    int code = pack_panels(out, device, &job, watch, err);
    device_free(device, job.rounded.data);
    return code;
}

/* The products of a set, by what the weights are packed to. */
typedef void matmul_function(struct stream *s, const struct tensor *x, const struct matmul_output *outputs,
                             int count);
struct matmul_set {
    matmul_function *blocks, *floats, *bf16;
};

static matmul_function *matmul_of(const struct matmul_set *set, const struct weight *w)
{
    return w->layout != LAYOUT_PANELS         ? cpu_matmul
           : !panel_is_float(w->stored.dtype) ? set->blocks
           : w->stored.dtype == DTYPE_BF16    ? set->bf16
                                              : set->floats;
}

/* Neighbours that are packed alike go together. */
static void matmul_with(const struct matmul_set *set, struct stream *s, const struct tensor *x,
                        const struct matmul_output *outputs, int count)
{
    for (int first = 0, end; first < count; first = end) {
        const struct weight *w = outputs[first].w;
        for (end = first + 1; end < count; end++)
            if (outputs[end].w->layout != w->layout || outputs[end].w->stored.dtype != w->stored.dtype)
                break;
        matmul_of(set, w)(s, x, outputs + first, end - first);
    }
}

static void fast_matmul(struct stream *s, const struct tensor *x, const struct matmul_output *outputs,
                        int count)
{
    static const struct matmul_set SET = {fast_matmul_panels, fast_matmul_float, fast_matmul_float};
    matmul_with(&SET, s, x, outputs, count);
}

static bool has_avx512vnni(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
}

static void use_avx512vnni(struct device_ops *ops)
{
    ops->pack = fast_pack;
    ops->matmul = fast_matmul;
    ops->attention = fast_attention;
    ops->activate = fast_activate;
    ops->softcap = fast_softcap;
    ops->rope = fast_rope;
}

static void bf16_matmul(struct stream *s, const struct tensor *x, const struct matmul_output *outputs,
                        int count)
{
    static const struct matmul_set SET = {fast_matmul_panels, fast_matmul_float, fast_matmul_bf16};
    matmul_with(&SET, s, x, outputs, count);
}

static bool has_avx512bf16(void)
{
    return has_avx512vnni() && __builtin_cpu_supports("avx512bf16");
}

static void use_avx512bf16(struct device_ops *ops)
{
    use_avx512vnni(ops);
    ops->matmul = bf16_matmul;
}

static void avx2_matmul(struct stream *s, const struct tensor *x, const struct matmul_output *outputs,
                        int count)
{
    static const struct matmul_set SET = {avx2_matmul_panels, avx2_matmul_float, avx2_matmul_float};
    matmul_with(&SET, s, x, outputs, count);
}

static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

static void use_avx2(struct device_ops *ops)
{
    ops->pack = fast_pack;
    ops->matmul = avx2_matmul;
    ops->attention = avx2_attention;
}

static bool is_amd(void)
{
    return __builtin_cpu_is("amd") != 0;
}

static bool always(void)
{
    return true;
}

/* Best first. "auto" takes VDPBF16PS only where it is faster than fp32, which is also the more exact: a core
 * of AMD's Zen 5 does 470 GFLOP/s with it and 240 in fp32, one of Intel's Emerald Rapids 105 and 210. */
static const struct kernel_set {
    const char *option, *name, *needs;
    bool (*here)(void);
    bool (*by_itself)(void);
    void (*use)(struct device_ops *);
} SETS[] = {
    {"avx512bf16", "cpu-avx512bf16", "AVX-512 BF16", has_avx512bf16, is_amd, use_avx512bf16},
    {"avx512vnni", "cpu-avx512vnni", "AVX-512 VNNI", has_avx512vnni, always, use_avx512vnni},
    {"avx2", "cpu-avx2", "AVX2 with FMA and F16C", has_avx2, always, use_avx2},
};
#define SET_COUNT ARRAY_LEN(SETS)
#else
static const struct kernel_set {
    const char *option, *name, *needs;
    bool (*here)(void);
    bool (*by_itself)(void);
    void (*use)(struct device_ops *);
} SETS[1];
#define SET_COUNT 0
#endif

#define SET_NAMES "reference, avx2, avx512vnni or avx512bf16"

int fast_select(struct device_ops *ops, const char *option, bool f16_as_bf16, const char **name,
                struct err *err)
{
    bool automatic = strcmp(option, "auto") == 0, known = automatic || strcmp(option, "reference") == 0;
    const struct kernel_set *set = NULL;
    for (size_t i = 0; i < SET_COUNT && !set; i++) {
        bool asked = strcmp(option, SETS[i].option) == 0;
        if (asked && !SETS[i].here())
            return err_set(err, "kernels %s: this processor has no %s", option, SETS[i].needs);
        if (asked || (automatic && SETS[i].here() && SETS[i].by_itself()))
            set = &SETS[i];
    }
    if (!set && !known)
        return err_set(err, "kernels \"%s\": expected auto, " SET_NAMES, option);
    *name = set ? set->name : "cpu-reference";
    if (set)
        set->use(ops);
    if (!f16_as_bf16)
        return 0;
#ifdef CPU_HAS_FAST
    if (ops->matmul == bf16_matmul) {
        ops->pack = fast_pack_rounded;
        *name = "cpu-avx512bf16+f16_as_bf16";
        return 0;
    }
#endif
    return err_set(err, "f16_as_bf16: expected the kernel set avx512bf16, found %s", *name + strlen("cpu-"));
}
