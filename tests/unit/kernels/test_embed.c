#include "tests/unit/kernels/rig.h"

static void test_embed_gives_rows_of_the_table(void)
{
    static const enum dtype TYPES[] = {DTYPE_F32,  DTYPE_F16,  DTYPE_BF16, DTYPE_Q8_0, DTYPE_Q4_0,
                                       DTYPE_Q4_1, DTYPE_Q5_0, DTYPE_Q5_1, DTYPE_Q2_K, DTYPE_Q3_K,
                                       DTYPE_Q4_K, DTYPE_Q5_K, DTYPE_Q6_K};
    struct rig r;
    rig_open(&r, 1);
    for (size_t i = 0; i < ARRAY_LEN(TYPES); i++) {
        const int64_t V = 19, C = dtype_info(TYPES[i])->block_elements * 3, T = 5;
        struct weight table = rig_weight(&r, TYPES[i], V, C);
        struct tensor ids = RIG_I32(&r, T), out = RIG_F32(&r, T, C), all = RIG_F32(&r, V, C);
        dtype_to_f32(TYPES[i], table.packed, all.data, (uint64_t)(V * C));
        memcpy(ids.data, (int32_t[]){18, 0, 7, 7, 1}, 5 * sizeof(int32_t));
        kernel_embed(r.stream, &out, &table, &ids);
        for (int64_t t = 0; t < T; t++)
            CHECK(memcmp(floats(&out) + t * C, floats(&all) + ints(&ids)[t] * C, (size_t)C * 4) == 0);
        weight_release(&table);
    }
    rig_close(&r);
}

static void test_gather_gives_the_rows_that_are_asked_for(void)
{
    struct rig r;
    rig_open(&r, 1);
    struct tensor x = RIG_F32(&r, 6, 7), rows = RIG_I32(&r, 3), out = RIG_F32(&r, 3, 7);
    rig_random(&r, &x);
    memcpy(rows.data, (int32_t[]){5, 0, 5}, 3 * sizeof(int32_t));
    kernel_gather_rows(r.stream, &out, &x, &rows);
    for (int64_t b = 0; b < 3; b++)
        CHECK(memcmp(floats(&out) + b * 7, floats(&x) + ints(&rows)[b] * 7, 28) == 0);
    struct tensor none = tensor_rows(&rows, 0, 0), nothing = tensor_rows(&out, 0, 0);
    kernel_gather_rows(r.stream, &nothing, &x, &none); /* a step without logits */
    rig_close(&r);
}

int main(void)
{
    TEST(test_embed_gives_rows_of_the_table, "embed gives rows of the table, for every weight type");
    TEST(test_gather_gives_the_rows_that_are_asked_for, "gather gives the rows that are asked for, or none");
    return test_result();
}
