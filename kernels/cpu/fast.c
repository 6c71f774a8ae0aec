#include "kernels/cpu/fast.h"

#include <string.h>

#include "kernels/cpu/panel.h"

#define LAYOUT_PANELS 1

#ifdef CPU_HAS_FAST

struct pack_job {
    const struct tensor *host;
    void *packed;
};

static void pack_body(void *context, int64_t begin, int64_t end)
{
    const struct pack_job *p = context;
    panel_pack(p->host, p->packed, begin / PANEL_ROWS, (end + PANEL_ROWS - 1) / PANEL_ROWS);
}

static int fast_pack(struct weight *out, struct device *device, const struct tensor *host,
                     const struct weight_watch *watch, struct err *err)
{
    if (!panel_supported(host->dtype))
        return cpu_pack(out, device, host, watch, err);
    struct panel_layout l = panel_layout(host->dtype, host->dim[0], host->dim[1]);
    void *packed = device_alloc(device, (size_t)l.panels * l.panel_bytes, err);
    if (!packed)
        return -1;
    struct pack_job job = {.host = host, .packed = packed};
    cpu_pack_pass(device, host, PANEL_ROWS, watch, pack_body, &job);
    *out = (struct weight){.stored = *host, .packed = packed, .owned = true, .layout = LAYOUT_PANELS};
    out->stored.device = device;
    out->stored.data = packed;
    return 0;
}

static void fast_matmul(struct stream *s, struct tensor *out, const struct tensor *x, const struct weight *w,
                        const struct tensor *bias)
{
    if (w->layout == LAYOUT_PANELS && panel_is_float(w->stored.dtype))
        fast_matmul_float(s, out, x, w, bias);
    else if (w->layout == LAYOUT_PANELS)
        fast_matmul_panels(s, out, x, w, bias);
    else
        cpu_matmul(s, out, x, w, bias);
}

static bool has_avx512vnni(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
}

#else
static bool has_avx512vnni(void)
{
    return false;
}
#endif

int fast_select(struct device_ops *ops, const char *option, const char **name, struct err *err)
{
    bool wanted = strcmp(option, "avx512vnni") == 0;
    *name = "cpu-reference";
    if (strcmp(option, "reference") == 0)
        return 0;
    if (!wanted && strcmp(option, "auto") != 0)
        return err_set(err, "kernels \"%s\": expected auto, reference or avx512vnni", option);
    if (!has_avx512vnni())
        return wanted ? err_set(err, "kernels avx512vnni: this processor has no AVX-512 VNNI") : 0;
#ifdef CPU_HAS_FAST
    ops->pack = fast_pack;
    ops->matmul = fast_matmul;
    ops->attention = fast_attention;
    *name = "cpu-avx512vnni";
#else
    (void)ops;
#endif
    return 0;
}
