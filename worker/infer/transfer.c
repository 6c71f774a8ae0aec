#include "worker/infer/transfer.h"

#include "common/clock.h"

/* What stands in front of a step on its way from stage to stage. */
struct step_envelope {
    uint64_t descriptor_bytes;
    uint64_t row_bytes;
};

/* The envelope and the encoded descriptor. */
static int send_descriptor(const struct serve_options *o, const struct buffer *encoded, uint64_t row_bytes,
                           int to, struct err *err)
{
    struct step_envelope e = {.descriptor_bytes = encoded->size, .row_bytes = row_bytes};
    return comm_send(o->control, NULL, &e, sizeof(e), to, err) ||
                   comm_send(o->control, NULL, encoded->data, encoded->size, to, err)
               ? -1
               : 0;
}

int transfer_share_step(const struct serve_options *o, const struct step *step, struct buffer *encoded,
                        struct err *err)
{
    if (transfer_width(o) == 1)
        return 0;
    step_encode(step, encoded);
    for (int slot = 1; slot < transfer_width(o); slot++)
        if (send_descriptor(o, encoded, 0, slot, err))
            return -1;
    return 0;
}

int transfer_send_step(const struct serve_options *o, const struct step *step, struct buffer *encoded,
                       struct err *err)
{
    if (transfer_is_last(o))
        return 0;
    struct tensor rows = executor_rows(o->executor, step);
    uint64_t row_bytes = step->token_count ? tensor_bytes(&rows) : 0;
    int next = o->control->rank + transfer_width(o);
    step_encode(step, encoded);
    if (send_descriptor(o, encoded, row_bytes, next, err))
        return -1;
    return row_bytes ? comm_send(o->data, executor_stream(o->executor), rows.data, row_bytes, next, err) : 0;
}

int transfer_recv_step(const struct serve_options *o, struct step *step, void *bytes, size_t capacity,
                       struct err *err)
{
    bool first = transfer_stage(o) == 0; /* a slot of the leader's stage: it makes its rows itself */
    int from = first ? 0 : o->control->rank - transfer_width(o);
    struct step_envelope e;
    if (comm_recv(o->control, NULL, &e, sizeof(e), from, err))
        return -1;
    if (e.descriptor_bytes > capacity)
        return err_set(err, "step descriptor of %llu bytes, expected at most %zu",
                       (unsigned long long)e.descriptor_bytes, capacity);
    if (comm_recv(o->control, NULL, bytes, e.descriptor_bytes, from, err) ||
        step_decode(step, bytes, e.descriptor_bytes, &o->engine.limits, err))
        return -1;
    struct tensor rows = executor_rows(o->executor, step);
    uint64_t expected = step->token_count && !first ? tensor_bytes(&rows) : 0;
    if (e.row_bytes != expected)
        return err_set(err, "step %llu carries %llu bytes of rows, expected %llu",
                       (unsigned long long)step->id, (unsigned long long)e.row_bytes,
                       (unsigned long long)expected);
    return e.row_bytes ? comm_recv(o->data, executor_stream(o->executor), rows.data, e.row_bytes, from, err)
                       : 0;
}

int transfer_run_step(const struct serve_options *o, struct step *step, uint64_t *since_us, int32_t *ids,
                      struct token_logprobs *logprobs, struct err *err)
{
    bool waits = transfer_stages(o) > 1;
    uint64_t begun_us = clock_now_us(), waited_us = waits && *since_us ? begun_us - *since_us : 0;
    uint64_t taken_us = o->occupancy ? occupancy_run(o->occupancy, begun_us) : 0;
    uint64_t processor_us = clock_processor_us();
    if (executor_run(o->executor, step, ids, logprobs, err))
        return -1;
    *since_us = clock_now_us();
    if (o->occupancy)
        occupancy_wait(o->occupancy, *since_us);
    step_add_time(step, &(struct stage_time){.busy_us = *since_us - begun_us,
                                             .wait_us = waited_us,
                                             .bubble_us = waited_us > taken_us ? waited_us - taken_us : 0,
                                             .processor_us = clock_processor_us() - processor_us});
    return 0;
}

/* Called between blocks: sends under way move on, and the watchdog sees that the step lives. */
static int between_blocks(void *context, struct err *err)
{
    const struct serve_options *o = context;
    watchdog_progress(o->watchdog);
    return o->data && (comm_progress(o->data, err) || comm_progress(o->control, err)) ? -1 : 0;
}

/* What the slots of a stage do together. */
static int sum_slots(void *context, struct stream *stream, struct tensor *x, struct err *err)
{
    const struct serve_options *o = context;
    return comm_allreduce(o->tensor, stream, x->data, (size_t)tensor_elements(x), err);
}

static int gather_slots(void *context, struct stream *stream, const void *in, void *out, size_t bytes,
                        struct err *err)
{
    const struct serve_options *o = context;
    return comm_allgather(o->tensor, stream, in, out, bytes, err);
}

void transfer_hook_stage(const struct serve_options *o)
{
    struct stage *stage = executor_stage(o->executor);
    void *context = (void *)(uintptr_t)o;
    stage->between = between_blocks;
    stage->scratch.sum = sum_slots;
    stage->gather = gather_slots;
    stage->between_context = stage->scratch.sum_context = stage->gather_context = context;
}

static size_t result_bytes(int stages, size_t samples, bool logprobs)
{
    size_t one = sizeof(int32_t) + (logprobs ? sizeof(struct token_logprobs) : 0);
    return sizeof(uint64_t) + (size_t)stages * sizeof(struct stage_time) + samples * one;
}

size_t transfer_result_bytes(const struct serve_options *o, const struct step *step)
{
    return result_bytes(transfer_stages(o), (size_t)step->sample_count, step_wants_logprobs(step));
}

size_t transfer_result_max_bytes(const struct serve_options *o)
{
    return result_bytes(transfer_stages(o), (size_t)step_samples(&o->engine.limits), true);
}

struct transfer_result transfer_result_view(const struct serve_options *o, void *bytes,
                                            const struct step *step)
{
    struct transfer_result r = {.step_id = bytes};
    r.times = (struct stage_time *)(r.step_id + 1);
    r.ids = (int32_t *)(r.times + transfer_stages(o));
    if (step_wants_logprobs(step))
        r.logprobs = (struct token_logprobs *)(r.ids + step->sample_count);
    return r;
}
