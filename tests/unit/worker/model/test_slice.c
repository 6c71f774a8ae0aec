#include "worker/model/slice.h"

#include "tests/test.h"

static struct model_params shape(int64_t heads, int64_t kv_heads, int64_t head_length, int64_t ffn,
                                 int64_t vocab)
{
    return (struct model_params){
        .heads = heads, .kv_heads = kv_heads, .head_length = head_length, .ffn = ffn, .vocab = vocab};
}

/* All slots together hold everything once, in order; each slot's heads belong to its KV heads, evenly. */
static void check_cover(const struct model_params *p, const struct slice_blocks *b, int width)
{
    int64_t heads = 0, ffn = 0, vocab = 0, expert_ffn = 0, group = p->heads / p->kv_heads;
    struct err err;
    for (int slot = 0; slot < width; slot++) {
        struct model_part part;
        if (slice_part(&part, p, b, width, slot, &err)) {
            printf("# %s\n", err.message);
            CHECK(!"a shape that divides");
            return;
        }
        CHECK_INT(part.heads.first, heads);
        CHECK_INT(part.ffn.first, ffn);
        CHECK_INT(part.vocab.first, vocab);
        CHECK_INT(part.expert_ffn.first, expert_ffn);
        CHECK(part.heads.count > 0 && part.vocab.count > 0 && part.kv_heads.count > 0);
        CHECK_INT(part.heads.first * p->head_length % b->query, 0);
        CHECK_INT(part.ffn.first % b->ffn, 0);
        CHECK_INT(part.expert_ffn.first % b->expert_ffn, 0);
        /* Query head h of the slot reads its KV head h / (H / G). */
        CHECK_INT(part.heads.count % part.kv_heads.count, 0);
        for (int64_t h = 0; h < part.heads.count; h++)
            CHECK_INT(part.kv_heads.first + h / (part.heads.count / part.kv_heads.count),
                      (part.heads.first + h) / group);
        heads += part.heads.count;
        ffn += p->experts ? 0 : part.ffn.count;
        vocab += part.vocab.count;
        expert_ffn += part.expert_ffn.count;
    }
    CHECK_INT(heads, p->heads);
    CHECK_INT(ffn, p->experts ? 0 : p->ffn);
    CHECK_INT(vocab, p->vocab);
    CHECK_INT(expert_ffn, p->expert_ffn);
}

static void test_slots_cover_the_model(void)
{
    static const struct {
        int64_t heads, kv_heads, head_length, ffn, vocab, block;
        int width;
    } cases[] = {
        {32, 4, 64, 5632, 32000, 32, 2},
        {32, 4, 64, 5632, 32000, 256, 2},
        {32, 4, 64, 5632, 32000, 256, 3},
        {32, 4, 64, 5632, 32000, 256, 8},
        {9, 3, 64, 1536, 49152, 32, 2},
        {9, 3, 64, 1536, 49152, 1, 3},
        {8, 4, 8, 172, 512, 1, 2},
        {8, 4, 8, 172, 512, 1, 4},
        {14, 2, 64, 4864, 151936, 32, 2},
        {14, 2, 64, 4864, 151936, 32, 4},
        {12, 12, 64, 3072, 50257, 1, 5},
        {32, 8, 128, 14336, 128256, 256, 8},
        {32, 8, 128, 14336, 128256, 256, 16},
        {8, 1, 256, 16384, 256000, 256, 4},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct model_params p =
            shape(cases[i].heads, cases[i].kv_heads, cases[i].head_length, cases[i].ffn, cases[i].vocab);
        struct slice_blocks b = {cases[i].block, cases[i].ffn % cases[i].block ? 1 : cases[i].block, 1};
        check_cover(&p, &b, cases[i].width);
        check_cover(&p, &b, 1);
    }
}

static void test_experts_are_cut_like_a_feed_forward(void)
{
    struct model_params p = shape(16, 4, 64, 4096, 1000);
    struct slice_blocks b = {32, 1, 32};
    p.experts = 8;
    p.experts_used = 2;
    p.expert_ffn = 768;
    check_cover(&p, &b, 3);
    check_cover(&p, &b, 4);
}

static void test_cuts_are_at_block_borders_though_uneven(void)
{
    struct model_params p = shape(32, 4, 64, 5632, 32000);
    struct slice_blocks b = {256, 256, 1};
    struct model_part part;
    struct err err;
    CHECK_INT(slice_part(&part, &p, &b, 4, 0, &err), 0); /* 22 blocks among 4 */
    CHECK_INT(part.ffn.count, 5 * 256);
    CHECK_INT(slice_part(&part, &p, &b, 4, 1, &err), 0);
    CHECK_INT(part.ffn.count, 6 * 256);
}

static void test_what_does_not_divide_is_refused_with_the_numbers(void)
{
    struct model_params p = shape(4, 2, 64, 256, 300);
    struct slice_blocks b = {256, 256, 1};
    struct model_part part;
    struct err err;
    CHECK_INT(slice_part(&part, &p, &b, 2, 0, &err), -1); /* one block holds all heads */
    CHECK_CONTAINS(err.message, "tensor 2: 4 heads of 64 elements over 2 KV heads");
    CHECK_CONTAINS(err.message, "blocks of 256");
    b.query = 1;
    CHECK_INT(slice_part(&part, &p, &b, 2, 1, &err), -1);
    CHECK_CONTAINS(err.message, "feed-forward length of 256 is stored in blocks of 256");
    CHECK_CONTAINS(err.message, "at most 1 slots");
    b.ffn = 1;
    CHECK_INT(slice_part(&part, &p, &b, 5, 0, &err), -1); /* more slots than heads */
    CHECK_CONTAINS(err.message, "tensor 5: 4 heads");
    int64_t widest;
    CHECK_INT(slice_widest_kv_heads(&widest, &p, &b, 5, &err), -1);
}

static void test_slots_that_share_a_kv_head_have_a_copy_each(void)
{
    struct model_params p = shape(8, 2, 8, 64, 100);
    struct slice_blocks b = {1, 1, 1};
    struct model_part part;
    struct err err;
    int64_t widest = 0;
    for (int slot = 0; slot < 4; slot++) {
        CHECK_INT(slice_part(&part, &p, &b, 4, slot, &err), 0);
        CHECK_INT(part.kv_heads.first, slot / 2);
        CHECK_INT(part.kv_heads.count, 1);
        CHECK_INT(part.heads.first, 2 * slot);
        CHECK_INT(part.heads.count, 2);
    }
    CHECK_INT(slice_widest_kv_heads(&widest, &p, &b, 4, &err), 0);
    CHECK_INT(widest, 1);
    CHECK_INT(slice_widest_kv_heads(&p.kv_heads, &p, &b, 1, &err), 0); /* in place */
    CHECK_INT(p.kv_heads, 2);
}

static void test_dimensions_that_are_not_split_stay_whole(void)
{
    struct model_params p = shape(8, 4, 16, 96, 100);
    struct slice_blocks b = {1, 1, 1};
    struct model_part part;
    struct err err;
    p.embed = 128;
    p.experts = 0;
    CHECK_INT(slice_part(&part, &p, &b, 2, 1, &err), 0);
    CHECK_INT(slice_run(&part, &p, TENSOR_ATTN_NORM, DIM_EMBED).count, 128);
    CHECK_INT(slice_run(&part, &p, TENSOR_ATTN_Q_NORM, DIM_HEAD).count, 16);
    CHECK_INT(slice_run(&part, &p, TENSOR_TOKEN_EMBED, DIM_VOCAB).count, 100);
    CHECK_INT(slice_run(&part, &p, TENSOR_OUTPUT, DIM_VOCAB).count, part.vocab.count);
    CHECK_INT(slice_run(&part, &p, TENSOR_ATTN_K, DIM_KV).first, 2 * 16);
    CHECK_INT(slice_run(&part, &p, TENSOR_ATTN_Q, DIM_QUERY).first, 4 * 16);
    CHECK(slice_leaves_out(&part, TENSOR_ATTN_OUTPUT_BIAS) && slice_leaves_out(&part, TENSOR_FFN_DOWN_BIAS));
    CHECK(!slice_leaves_out(&part, TENSOR_ATTN_Q_BIAS));
    CHECK_INT(slice_part(&part, &p, &b, 2, 0, &err), 0);
    CHECK(!slice_leaves_out(&part, TENSOR_ATTN_OUTPUT_BIAS));
}

static void test_a_copy_has_the_columns_of_the_rows(void)
{
    float matrix[4][6], out[2][3];
    for (int i = 0; i < 24; i++)
        matrix[i / 6][i % 6] = (float)i;
    void *end = slice_copy(out, DTYPE_F32, matrix, 6, (struct slice_run){1, 2}, (struct slice_run){2, 3});
    CHECK(end == (void *)&out[2]);
    for (int r = 0; r < 2; r++)
        for (int c = 0; c < 3; c++)
            CHECK(out[r][c] == matrix[r + 1][c + 2]);
    struct block_q8_0 blocks[2][3] = {{{.scale = 1}, {.scale = 2}, {.scale = 3}},
                                      {{.scale = 4}, {.scale = 5}, {.scale = 6}}};
    struct block_q8_0 cut[2];
    slice_copy(cut, DTYPE_Q8_0, blocks, 96, (struct slice_run){0, 2}, (struct slice_run){32, 32});
    CHECK_INT(cut[0].scale, 2);
    CHECK_INT(cut[1].scale, 5);
}

int main(void)
{
    TEST(test_slots_cover_the_model, "the slots hold the whole model once, cut at blocks and heads");
    TEST(test_experts_are_cut_like_a_feed_forward, "each expert's feed-forward is cut");
    TEST(test_cuts_are_at_block_borders_though_uneven, "shares differ by a block where blocks do not divide");
    TEST(test_what_does_not_divide_is_refused_with_the_numbers, "what does not divide is refused by number");
    TEST(test_slots_that_share_a_kv_head_have_a_copy_each, "more slots than KV heads: each has a copy");
    TEST(test_dimensions_that_are_not_split_stay_whole, "norms, the embedding and biases of sums stay whole");
    TEST(test_a_copy_has_the_columns_of_the_rows, "a cut matrix has the right elements");
    return test_result();
}
