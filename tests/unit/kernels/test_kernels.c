#include <signal.h>
#include <sys/wait.h>

#include "tests/unit/kernels/rig.h"

/* Runs one wrong call in a child: it must end by the ASSERT's abort, before any kernel ran. */
static void check_refused(void (*call)(struct rig *r))
{
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        struct rig r;
        if (!freopen("/dev/null", "w", stderr))
            _exit(3);
        rig_open(&r, 1);
        call(&r);
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

static void matmul_of_wrong_width(struct rig *r)
{
    struct weight w = rig_weight(r, DTYPE_F32, 4, 8);
    struct tensor x = RIG_F32(r, 2, 7), out = RIG_F32(r, 2, 4);
    kernel_matmul(r->stream, &out, &x, &w, NULL);
}

static void matmul_of_wrong_type(struct rig *r)
{
    struct weight w = rig_weight(r, DTYPE_F32, 4, 8);
    struct tensor x = RIG_I32(r, 2, 8), out = RIG_F32(r, 2, 4);
    kernel_matmul(r->stream, &out, &x, &w, NULL);
}

static void matmul_without_a_weight(struct rig *r)
{
    struct weight w = {.owned = false};
    struct tensor x = RIG_F32(r, 2, 8), out = RIG_F32(r, 2, 4);
    kernel_matmul(r->stream, &out, &x, &w, NULL);
}

static void add_of_another_device(struct rig *r)
{
    struct tensor x = RIG_F32(r, 3), y = RIG_F32(r, 3);
    y.device = NULL;
    kernel_add(r->stream, &x, &y);
}

static void norm_of_wrong_gain(struct rig *r)
{
    struct tensor x = RIG_F32(r, 2, 8), gain = RIG_F32(r, 7);
    kernel_rmsnorm(r->stream, &x, &x, &gain, 1e-5f);
}

static void rope_of_too_long_a_frequency(struct rig *r)
{
    struct tensor x = RIG_F32(r, 2, 1, 8), positions = RIG_I32(r, 2), frequency = RIG_F32(r, 5);
    kernel_rope(r->stream, &x, &positions, &frequency, ROPE_HALVES, 1.0f);
}

static void embed_of_an_unknown_id(struct rig *r)
{
    struct weight w = rig_weight(r, DTYPE_F32, 4, 8);
    struct tensor ids = RIG_I32(r, 1), out = RIG_F32(r, 1, 8);
    ints(&ids)[0] = 4;
    kernel_embed(r->stream, &out, &w, &ids);
}

static void attention_of_heads_that_do_not_divide(struct rig *r)
{
    struct tensor q = RIG_F32(r, 1, 3, 8), out = RIG_F32(r, 1, 3, 8), k = RIG_F32(r, 1, 2, 8);
    struct seq_view view = {.row_begin = RIG_I32(r, 2), .positions = RIG_I32(r, 1)};
    memcpy(view.row_begin.data, (int32_t[]){0, 1}, 8);
    ints(&view.positions)[0] = 0;
    kernel_attention(r->stream, &out, &q, &k, &k, &view, &(struct attention_options){.scale = 1.0f});
}

static void store_outside_the_page_table(struct rig *r)
{
    struct tensor pages = RIG_F32(r, 2, 4, 1, 8), k = RIG_F32(r, 1, 1, 8);
    struct seq_view view = {.row_begin = RIG_I32(r, 2),
                            .positions = RIG_I32(r, 1),
                            .slots = RIG_I32(r, 1),
                            .page_table = RIG_I32(r, 1, 2),
                            .page_tokens = 4};
    memcpy(view.row_begin.data, (int32_t[]){0, 1}, 8);
    memcpy(view.page_table.data, (int32_t[]){0, 1}, 8);
    ints(&view.slots)[0] = 0;
    ints(&view.positions)[0] = 8; /* two pages hold positions 0..7 */
    kernel_kv_store(r->stream, &pages, &pages, &k, &k, &view);
}

static void test_wrong_calls_end_the_process(void)
{
    check_refused(matmul_of_wrong_width);
    check_refused(matmul_of_wrong_type);
    check_refused(matmul_without_a_weight);
    check_refused(add_of_another_device);
    check_refused(norm_of_wrong_gain);
    check_refused(rope_of_too_long_a_frequency);
    check_refused(attention_of_heads_that_do_not_divide);
}

static void test_indices_outside_their_table_end_the_process(void)
{
    check_refused(embed_of_an_unknown_id);
    check_refused(store_outside_the_page_table);
}

static void test_empty_steps_do_nothing(void)
{
    struct rig r;
    rig_open(&r, 2);
    struct weight w = rig_weight(&r, DTYPE_Q8_0, 4, 32);
    struct tensor x = RIG_F32(&r, 0, 32), out = RIG_F32(&r, 0, 4), gain = RIG_F32(&r, 32),
                  ids = RIG_I32(&r, 0);
    struct tensor history = RIG_I32(&r, 1, 1);
    kernel_matmul(r.stream, &out, &x, &w, NULL);
    kernel_rmsnorm(r.stream, &x, &x, &gain, 1e-5f);
    kernel_embed(r.stream, &x, &w, &ids);
    kernel_sample(r.stream, &ids, &out, NULL, &history, NULL);
    struct err err;
    CHECK_INT(stream_sync(r.stream, &err), 0);
    weight_release(&w);
    rig_close(&r);
}

int main(void)
{
    TEST(test_wrong_calls_end_the_process, "wrong shapes, types and devices end the process");
    TEST(test_indices_outside_their_table_end_the_process, "indices outside their table end the process");
    TEST(test_empty_steps_do_nothing, "an empty step does nothing");
    return test_result();
}
