/* device_cpu: the CPU as a device. Its memory is the process's, its streams run everything inline on the
 * device's team of threads, so a kernel is done when its call returns. */
#include "kernels/cpu/device_cpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernels/cpu/fast.h"
#include "kernels/cpu/memory.h"

/* Scratch of this size and more is asked for in large pages: rows laid out for a product are read many times.
 */
#define SCRATCH_LARGE (512u << 10)
#define HUGE_PAGE     (2u << 20)

struct device_cpu {
    struct device base;
    struct team *team;
    struct cpu_memory *memory;
    struct device_ops ops; /* the reference's, with the entries of the kernel set over it */
};

struct scratch {
    void *memory;
    size_t bytes;
};

struct stream_cpu {
    struct stream base;
    struct scratch scratch, gathered;
};

static void *at_least(struct scratch *s, size_t bytes)
{
    if (s->bytes < bytes) {
        free(s->memory);
        size_t alignment = bytes >= SCRATCH_LARGE ? HUGE_PAGE : 64;
        s->bytes = round_up_u64(bytes + bytes / 4, alignment);
        if (posix_memalign(&s->memory, alignment, s->bytes) != 0)
            die("no memory for %zu bytes of scratch", s->bytes);
        if (alignment == HUGE_PAGE)
            (void)madvise(s->memory, s->bytes, MADV_HUGEPAGE);
    }
    return s->memory;
}

void *cpu_stream_scratch(struct stream *s, size_t bytes)
{
    return at_least(&((struct stream_cpu *)s)->scratch, bytes);
}

void *cpu_stream_gathered(struct stream *s, size_t bytes)
{
    return at_least(&((struct stream_cpu *)s)->gathered, bytes);
}

struct team *cpu_device_team(const struct device *device)
{
    return ((const struct device_cpu *)device)->team;
}

struct team *cpu_team(const struct stream *s)
{
    return cpu_device_team(s->device);
}

static void cpu_close(struct device *device)
{
    struct device_cpu *cpu = (struct device_cpu *)device;
    team_free(&cpu->team);
    cpu_memory_free(&cpu->memory);
    free(cpu);
}

static void *cpu_alloc(struct device *device, size_t bytes, struct err *err)
{
    void *memory = cpu_memory_take(((struct device_cpu *)device)->memory, bytes);
    if (!memory)
        err_set(err, "%s: no memory for %zu bytes", device->name, bytes);
    return memory;
}

static void cpu_free(struct device *device, void *memory)
{
    cpu_memory_give(((struct device_cpu *)device)->memory, memory);
}

static int cpu_stream_open(struct stream **out, struct device *device, struct err *err)
{
    (void)err;
    struct stream_cpu *stream = xcalloc(1, sizeof(*stream));
    stream->base.device = device;
    *out = &stream->base;
    return 0;
}

static void cpu_stream_close(struct stream *stream)
{
    free(((struct stream_cpu *)stream)->scratch.memory);
    free(((struct stream_cpu *)stream)->gathered.memory);
    free(stream);
}

static int cpu_stream_sync(struct stream *stream, struct err *err)
{
    (void)stream;
    (void)err;
    return 0;
}

static void cpu_upload(struct stream *stream, void *device_memory, const void *host, size_t bytes)
{
    (void)stream;
    memcpy(device_memory, host, bytes);
}

static void cpu_download(struct stream *stream, void *host, const void *device_memory, size_t bytes)
{
    (void)stream;
    memcpy(host, device_memory, bytes);
}

static void cpu_copy(struct stream *stream, void *to, const void *from, size_t bytes)
{
    (void)stream;
    memmove(to, from, bytes);
}

static const struct device_ops CPU_OPS = {
    .close = cpu_close,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .stream_open = cpu_stream_open,
    .stream_close = cpu_stream_close,
    .stream_sync = cpu_stream_sync,
    .upload = cpu_upload,
    .download = cpu_download,
    .copy = cpu_copy,
    .pack = cpu_pack,
    .matmul = cpu_matmul,
    .matmul_transposed = cpu_matmul_transposed,
    .embed = cpu_embed,
    .rmsnorm = cpu_rmsnorm,
    .add = cpu_add,
    .gather_rows = cpu_gather_rows,
    .activate = cpu_activate,
    .sum_ranks = cpu_sum_ranks,
    .rope = cpu_rope,
    .kv_store = cpu_kv_store,
    .kv_types = 1u << DTYPE_BF16 | 1u << DTYPE_Q8_0,
    .attention = cpu_attention,
    .move_pages = cpu_move_pages,
    .sample = cpu_sample,
    .token_loss = cpu_token_loss,
    .layernorm = cpu_layernorm,
    .scale = cpu_scale,
    .softcap = cpu_softcap,
    .route = cpu_route,
    .expert_matmul = cpu_expert_matmul,
    .expert_sum = cpu_expert_sum,
};

int device_cpu_open(struct device **out, const struct device_options *options, struct err *err)
{
    int threads = options ? options->threads : 0;
    const char *set = options && options->kernels ? options->kernels : "reference";
    struct device_ops ops = CPU_OPS;
    if (fast_select(&ops, set, options && options->f16_as_bf16, &set, err))
        return err_prefix(err, "cpu");
    struct team *team = team_new(threads, err);
    if (!team)
        return err_prefix(err, "cpu");
    struct device_cpu *cpu = xcalloc(1, sizeof(*cpu));
    cpu->ops = ops;
    cpu->base.ops = &cpu->ops;
    cpu->base.threads = team_threads(team);
    cpu->team = team;
    cpu->memory = cpu_memory_new();
    snprintf(cpu->base.name, sizeof(cpu->base.name), "cpu");
    snprintf(cpu->base.kernel_set, sizeof(cpu->base.kernel_set), "%s", set);
    *out = &cpu->base;
    return 0;
}
