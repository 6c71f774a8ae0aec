/* fuzz_model: any bytes as a model. What the parser and the family's tables accept is opened whole and as two
 * slices, costed as for a split, and runs three tokens through the executor. Seeds:
 * tests/fuzz/seeds/fuzz_model, one tiny model of every family, made by tests/fuzz/make_model_seeds.py. */
#include <stdlib.h>
#include <string.h>

#include "worker/infer/execute.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { TOKENS = 3, PAGE_TOKENS = 2, PAGES = 2 };

/* Kept over all runs: threads are not what is tested. */
static struct device *the_device(void)
{
    static struct device *device;
    struct device_options options = {.threads = 1};
    struct err err;
    if (!device && device_open(&device, "cpu", &options, &err))
        die("%s", err.message);
    return device;
}

static void run(const struct model *model)
{
    struct executor *executor = NULL;
    struct executor_options options = {.page_tokens = PAGE_TOKENS,
                                       .kv_type = DTYPE_F32,
                                       .limits = {.tokens = TOKENS,
                                                  .sequences = 1,
                                                  .slots = 1,
                                                  .context = TOKENS,
                                                  .pages = PAGES,
                                                  .pages_per_sequence = PAGES,
                                                  .vocab = (int32_t)model->params.vocab,
                                                  .page_ops = PAGES}};
    struct step step;
    struct err err;
    int32_t drawn;
    if (executor_open(&executor, model, &options, &err))
        return;
    step_init(&step, &options.limits);
    step.token_count = TOKENS;
    step.sequences[step.sequence_count++] = (struct step_sequence){.tokens = TOKENS,
                                                                   .sample = 1,
                                                                   .row = {.history_tokens = TOKENS,
                                                                           .prompt_tokens = TOKENS,
                                                                           .top_p = 1,
                                                                           .repetition_penalty = 1,
                                                                           .banned_id = -1}};
    step.sample_count = 1;
    for (int32_t i = 0; i < TOKENS; i++)
        step.ids[i] = (int32_t)(i % model->params.vocab);
    for (int32_t page = 0; page < PAGES; page++)
        step.ops[step.op_count++] = (struct page_op){.kind = PAGE_ASSIGN, .b = page, .c = page};
    if (executor_run(executor, &step, &drawn, NULL, &err) == 0)
        ASSERT(drawn >= -1 && drawn < model->params.vocab);
    step_release(&step);
    executor_close(&executor);
}

static void cost(const struct gguf *g, const struct model_params *p)
{
    struct err err;
    uint64_t bytes;
    for (int64_t layer = 0; layer < p->layers; layer++)
        if (model_layer_bytes(g, p, layer, &bytes, &err))
            return;
    (void)model_head_bytes(g, p, &bytes, &err);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct gguf *g = NULL;
    struct model *model = NULL;
    struct model_params params;
    struct err err;
    if (gguf_parse(&g, data, size, "fuzz", &err))
        return 0;
    if (model_params_read(&params, g, &err) == 0) {
        int64_t half = params.layers / 2;
        struct model_slice first = {.last_layer = half, .embed = true, .context = 2};
        struct model_slice last = {.first_layer = half, .last_layer = params.layers, .head = true};
        cost(g, &params);
        if (model_open(&model, g, the_device(), &first, &err) == 0)
            model_close(&model);
        if (model_open(&model, g, the_device(), &last, &err) == 0)
            model_close(&model);
        if (model_open(&model, g, the_device(), NULL, &err) == 0) {
            if (params.context >= TOKENS && params.layers <= 8)
                run(model);
            model_close(&model);
        }
        model_params_release(&params);
    }
    gguf_close(&g);
    return 0;
}
