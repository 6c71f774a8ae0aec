#include "tests/tiny_model.h"

#include <jansson.h>

#define GENERATED 24

static char path[64];

static void prompt_ids(int32_t *ids, int32_t count)
{
    unsigned long long random = 5;
    for (int32_t i = 0; i < count; i++)
        ids[i] = (int32_t)(test_random(&random) % 300);
}

/* One undisturbed run, one thread, whole prompt: what every other way of running must equal. */
static void reference(int32_t *ids, float temperature)
{
    struct tiny_engine e;
    prompt_ids(ids, 21);
    tiny_engine_open(&e, path, 1, 16, NULL);
    tiny_engine_generate(&e, 0, ids, 21, GENERATED, 64, temperature);
    tiny_engine_close(&e);
}

static void test_chunks_threads_pages_do_not_show(void)
{
    int32_t want[21 + GENERATED];
    int chunks[] = {1, 5, 16, 64}, threads[] = {1, 2, 3}, pages[] = {1, 7, 16, 64};
    for (int temperature = 0; temperature < 2; temperature++) {
        reference(want, (float)temperature);
        for (int i = 0; i < 4; i++) {
            struct tiny_engine e;
            int32_t ids[21 + GENERATED];
            prompt_ids(ids, 21);
            tiny_engine_open(&e, path, threads[i % 3], pages[i], NULL);
            tiny_engine_generate(&e, 3, ids, 21, GENERATED, chunks[i], (float)temperature);
            tiny_engine_close(&e);
            CHECK(memcmp(ids, want, sizeof(want)) == 0);
        }
    }
}

static void test_neighbours_do_not_show(void)
{
    int32_t want[21 + GENERATED], ids[8][21 + GENERATED];
    reference(want, 1);
    struct tiny_engine e;
    tiny_engine_open(&e, path, 2, 16, NULL);
    for (int s = 0; s < 8; s++)
        prompt_ids(ids[s], 21);
    for (int s = 1; s < 8; s++) /* different prompts beside the one that is watched */
        ids[s][s] = (ids[s][s] + s) % 300;
    for (int32_t step = 0; step < 21 + GENERATED - 1; step++) {
        int32_t drawn[8], at[8], samples = 0;
        for (int32_t s = 0; s < 8; s++) {
            int32_t known = step + 1;
            struct sample_row row = {.seed = 11,
                                     .index = (uint32_t)(known - 21),
                                     .slot = s,
                                     .history_tokens = known,
                                     .prompt_tokens = 21,
                                     .temperature = 1,
                                     .top_p = 1,
                                     .repetition_penalty = 1,
                                     .banned_id = -1};
            bool sample = known >= 21;
            tiny_engine_add(&e, s, ids[s] + step, step, 1, sample ? &row : NULL);
            if (sample)
                at[samples++] = s;
        }
        tiny_engine_run(&e, drawn);
        for (int32_t i = 0; i < samples; i++)
            ids[at[i]][step + 1] = drawn[i];
    }
    tiny_engine_close(&e);
    CHECK(memcmp(ids[0], want, sizeof(want)) == 0);
    CHECK(memcmp(ids[1], want, sizeof(want)) != 0);
}

/* The pipeline in one process: the rows of each stage are handed to the next by hand. */
static void generate_in_stages(int32_t *ids, int stages)
{
    struct tiny_engine e[4];
    for (int s = 0; s < stages; s++) {
        struct model_slice slice = {.first_layer = 4 * s / stages,
                                    .last_layer = 4 * (s + 1) / stages,
                                    .embed = s == 0,
                                    .head = s == stages - 1};
        tiny_engine_open(&e[s], path, 1, 16, &slice);
    }
    int32_t fed = 0;
    for (int32_t known = 21; known < 21 + GENERATED;) {
        int32_t tokens = known - fed, drawn = 0;
        struct sample_row row = {.seed = 11,
                                 .index = (uint32_t)(known - 21),
                                 .history_tokens = known,
                                 .prompt_tokens = 21,
                                 .temperature = 1,
                                 .top_p = 1,
                                 .repetition_penalty = 1,
                                 .banned_id = -1};
        for (int s = 0; s < stages; s++) {
            tiny_engine_add(&e[s], 0, ids + fed, fed, tokens, &row);
            struct tensor rows = executor_rows(e[s].executor, &e[s].step);
            if (s > 0) {
                struct tensor before = stage_rows(executor_stage(e[s - 1].executor), tokens);
                memcpy(rows.data, before.data, tensor_bytes(&rows));
            }
            tiny_engine_run(&e[s], s == stages - 1 ? &drawn : NULL);
        }
        fed += tokens;
        ids[known++] = drawn;
    }
    for (int s = 0; s < stages; s++)
        tiny_engine_close(&e[s]);
}

static void test_stages_do_not_show(void)
{
    int32_t want[21 + GENERATED], ids[21 + GENERATED];
    reference(want, 1);
    for (int stages = 2; stages <= 4; stages++) {
        prompt_ids(ids, 21);
        generate_in_stages(ids, stages);
        CHECK(memcmp(ids, want, sizeof(want)) == 0);
    }
}

static void test_nan_logits_give_no_token(void)
{
    struct tiny_engine e;
    int32_t ids[4] = {1, 2, 3, 0};
    tiny_engine_open(&e, path, 1, 16, NULL);
    float *gain = e.model->global[TENSOR_OUTPUT_NORM].vector.data;
    gain[0] = NAN;
    tiny_engine_generate(&e, 0, ids, 3, 1, 64, 0);
    CHECK_INT(ids[3], -1);
    tiny_engine_close(&e);
}

static void test_tied_output_is_the_embedding(void)
{
    struct tiny_shape shape = tiny_standard;
    char tied[64];
    shape.tied = true;
    snprintf(tied, sizeof(tied), "%s.tied", path);
    tiny_model_write(tied, &shape);
    struct tiny_engine e;
    tiny_engine_open(&e, tied, 1, 16, NULL);
    CHECK(e.model->global[TENSOR_OUTPUT].weight.packed == e.model->global[TENSOR_TOKEN_EMBED].weight.packed);
    int32_t ids[8] = {4, 5, 6};
    tiny_engine_generate(&e, 0, ids, 3, 5, 64, 0);
    CHECK(ids[7] >= 0);
    tiny_engine_close(&e);
    unlink(tied);
}

/* ---- the trained model
 * ------------------------------------------------------------------------------------------ */

static json_t *golden(void)
{
    const char *file = test_shared("data/golden/stories260K.json");
    json_error_t error;
    json_t *root = file ? json_load_file(file, 0, &error) : NULL;
    return root ? json_object_get(root, "stories260K") : NULL; /* the root lives as long as the program */
}

static void test_trained_model_continues_as_the_independent_one(void)
{
    json_t *g = golden();
    if (!g)
        SKIP("the shared stories260K model is not here");
    json_t *want = json_object_get(g, "greedy_ids");
    int32_t prompt = (int32_t)json_array_size(json_object_get(g, "prompt_ids")), ids[256];
    int32_t count = (int32_t)json_array_size(want) - prompt;
    for (int32_t i = 0; i < prompt; i++)
        ids[i] = (int32_t)json_integer_value(json_array_get(want, (size_t)i));
    struct tiny_engine e;
    tiny_engine_open(&e, test_shared("data/lm/stories260K/stories260K.gguf"), 2, 16, NULL);
    tiny_engine_generate(&e, 0, ids, prompt, count, 7, 0);
    for (int32_t i = 0; i < prompt + count; i++)
        CHECK_INT(ids[i], json_integer_value(json_array_get(want, (size_t)i)));
    tiny_engine_close(&e);
}

static void test_trained_logits_agree(void)
{
    json_t *g = golden();
    if (!g)
        SKIP("the shared stories260K model is not here");
    json_t *prompt = json_object_get(g, "prompt_ids"), *want = json_object_get(g, "next_logits_all");
    struct tiny_engine e;
    tiny_engine_open(&e, test_shared("data/lm/stories260K/stories260K.gguf"), 1, 16, NULL);
    int32_t ids[32], tokens = (int32_t)json_array_size(prompt);
    for (int32_t i = 0; i < tokens; i++)
        ids[i] = (int32_t)json_integer_value(json_array_get(prompt, (size_t)i));
    tiny_engine_add(&e, 0, ids, 0, tokens, NULL);
    tiny_engine_run(&e, NULL);
    int32_t last = tokens - 1;
    struct tensor rows = tensor_1d(e.device, DTYPE_I32, &last, 1);
    struct tensor logits = stage_logits(executor_stage(e.executor), tokens, &rows);
    CHECK_INT(json_array_size(want), logits.dim[1]);
    for (int64_t i = 0; i < logits.dim[1]; i++)
        CHECK_NEAR(((float *)logits.data)[i], json_real_value(json_array_get(want, (size_t)i)), 1e-4);
    tiny_engine_close(&e);
}

int main(void)
{
    snprintf(path, sizeof(path), "/tmp/lepton-test-execute-%d.gguf", (int)getpid());
    tiny_model_write(path, &tiny_standard);
    TEST(test_chunks_threads_pages_do_not_show, "chunks, threads and page sizes do not show in the tokens");
    TEST(test_neighbours_do_not_show, "neighbours in the batch do not show in the tokens");
    TEST(test_stages_do_not_show, "the number of pipeline stages does not show in the tokens");
    TEST(test_nan_logits_give_no_token, "NaN logits give no token");
    TEST(test_tied_output_is_the_embedding, "a tied output matrix is the embedding's memory");
    TEST(test_trained_model_continues_as_the_independent_one,
         "stories260K continues greedily as computed independently");
    TEST(test_trained_logits_agree, "stories260K's logits agree with float64 within 1e-4");
    tiny_kernels = "auto"; /* what lepton run uses: the fastest set that this processor has */
    TEST(test_chunks_threads_pages_do_not_show,
         "the fastest set: chunks, threads and page sizes do not show");
    TEST(test_neighbours_do_not_show, "the fastest set: neighbours in the batch do not show");
    TEST(test_stages_do_not_show, "the fastest set: the number of pipeline stages does not show");
    TEST(test_trained_model_continues_as_the_independent_one,
         "the fastest set: stories260K continues as computed");
    TEST(test_trained_logits_agree, "the fastest set: stories260K's logits agree within 1e-4");
    unlink(path);
    return test_result();
}
