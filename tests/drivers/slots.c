/* slots: the logits of a model whose layers are split over tensor slots, each a thread of this process: what
 * tests/integration/test_arch.py holds against the same model in one piece.
 *
 *   slots MODEL WIDTH ID...     prints the logits behind every id, one line each, floats to the last bit */
#include <pthread.h>
#include <stdio.h>

#include "tests/thread_comm.h"
#include "worker/infer/execute.h"

#define MOST_IDS 512

struct slot {
    const char *path;
    const int32_t *ids;
    int32_t count;
    struct thread_world *world;
    int width, number;
    struct comm *comm;
    pthread_t thread;
};

static int sum(void *context, struct stream *stream, struct tensor *x, struct err *err)
{
    const struct slot *s = context;
    return comm_allreduce(s->comm, stream, x->data, (size_t)tensor_elements(x), err);
}

static int gather(void *context, struct stream *stream, const void *in, void *out, size_t bytes,
                  struct err *err)
{
    const struct slot *s = context;
    return comm_allgather(s->comm, stream, in, out, bytes, err);
}

/* All ids in one step; every row gets logits. */
static void run(struct slot *s, struct executor *executor, struct model *model, struct step *step)
{
    struct stage *stage = executor_stage(executor);
    int32_t rows[MOST_IDS];
    struct err err;
    stage->scratch.sum = sum;
    stage->gather = gather;
    stage->scratch.sum_context = stage->gather_context = s;
    for (int32_t i = 0; i < s->count; i++)
        rows[i] = i;
    struct tensor picked = tensor_1d(model->device, DTYPE_I32, rows, s->count);
    if (executor_run(executor, step, NULL, NULL, &err))
        die("%s", err.message);
    struct tensor logits = stage_logits(stage, s->count, &picked);
    if (stage_join_logits(stage, &logits, &err))
        die("%s", err.message);
    for (int64_t i = 0; i < tensor_elements(&logits) && s->number == 0; i++)
        printf("%.9g%c", (double)((float *)logits.data)[i], (i + 1) % logits.dim[1] ? ' ' : '\n');
}

static void *run_slot(void *context)
{
    struct slot *s = context;
    struct gguf *g = NULL;
    struct device *device = NULL;
    struct model *model = NULL;
    struct executor *executor = NULL;
    struct model_params p;
    struct step step;
    struct err err;
    struct device_options options = {.threads = 1, .kernels = "reference"};
    if (gguf_open(&g, s->path, &err) || model_params_read(&p, g, &err) ||
        device_open(&device, "cpu", &options, &err))
        die("%s", err.message);
    struct model_slice slice = {.last_layer = p.layers,
                                .embed = true,
                                .head = true,
                                .context = s->count,
                                .width = s->width,
                                .slot = s->number};
    struct executor_options engine = {.page_tokens = MOST_IDS,
                                      .kv_type = DTYPE_F32,
                                      .limits = {.tokens = s->count,
                                                 .sequences = s->count,
                                                 .slots = 1,
                                                 .context = s->count,
                                                 .pages = 1,
                                                 .pages_per_sequence = 1,
                                                 .vocab = (int32_t)p.vocab,
                                                 .page_ops = 1}};
    model_params_release(&p);
    if (model_open(&model, g, device, &slice, &err) || executor_open(&executor, model, &engine, &err))
        die("%s", err.message);
    step_init(&step, &engine.limits);
    step.sequences[step.sequence_count++] = (struct step_sequence){.tokens = s->count};
    step.ops[step.op_count++] = (struct page_op){.kind = PAGE_ASSIGN};
    memcpy(step.ids, s->ids, (size_t)s->count * sizeof(int32_t));
    step.token_count = s->count;
    run(s, executor, model, &step);
    step_release(&step);
    executor_close(&executor);
    model_close(&model);
    device_close(&device);
    gguf_close(&g);
    return NULL;
}

int main(int argc, char **argv)
{
    struct slot slot[THREAD_COMM_RANKS];
    struct thread_world world;
    int32_t ids[MOST_IDS];
    int width = argc > 3 ? atoi(argv[2]) : 0, count = argc - 3;
    if (width < 1 || width > THREAD_COMM_RANKS || count > MOST_IDS) {
        fprintf(stderr, "usage: slots MODEL WIDTH ID...\n");
        return 2;
    }
    for (int i = 0; i < count; i++)
        ids[i] = atoi(argv[3 + i]);
    thread_world_init(&world, width);
    for (int i = 0; i < width; i++) {
        slot[i] = (struct slot){
            .path = argv[1], .ids = ids, .count = count, .world = &world, .width = width, .number = i};
        slot[i].comm = thread_comm_open(&world, i);
        if (pthread_create(&slot[i].thread, NULL, run_slot, &slot[i]))
            die("no thread");
    }
    for (int i = 0; i < width; i++)
        pthread_join(slot[i].thread, NULL);
    for (int i = 0; i < width; i++)
        comm_close(&slot[i].comm);
    thread_world_release(&world);
    return 0;
}
