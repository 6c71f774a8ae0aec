#include "tests/tiny_model.h"

static void test_operations_are_applied_in_order(void)
{
    char path[64];
    struct err err;
    struct tiny_engine e;
    struct kv_pool *pool;
    struct kv_pool_options options = {
        .dtype = DTYPE_F32, .pages = 4, .page_tokens = 2, .slots = 2, .pages_per_sequence = 3};
    snprintf(path, sizeof(path), "/tmp/lepton-test-kv-%d.gguf", (int)getpid());
    tiny_model_write(path, &tiny_standard);
    tiny_engine_open(&e, path, 1, 16, NULL);
    CHECK_INT(kv_pool_open(&pool, e.model, &options, 4, &err), 0);
    int64_t page = tensor_elements(&pool->layer[0].k) / 4;
    for (int64_t l = 0; l < pool->layers; l++)
        for (int64_t i = 0; i < 4 * page; i++) {
            ((float *)pool->layer[l].k.data)[i] = (float)(i / page + 1);
            ((float *)pool->layer[l].v.data)[i] = (float)(-i / page - 1);
        }
    struct page_op ops[] = {{PAGE_ASSIGN, 1, 0, 3}, {PAGE_ASSIGN, 1, 1, 2}, {PAGE_MOVE, 0, 1, 0},
                            {PAGE_MOVE, 1, 2, 0},   {PAGE_MOVE, -1, 0, 0},  {PAGE_ASSIGN, 0, 2, 1}};
    kv_pool_apply(pool, executor_stream(e.executor), ops, 6);
    const int32_t *table = pool->table.data;
    CHECK(table[3] == 3 && table[4] == 2 && table[2] == 1);
    for (int64_t l = 0; l < pool->layers; l++) {
        const float *k = pool->layer[l].k.data;
        CHECK(k[0] == 0 && k[page] == 1 && k[2 * page] == 1 && k[3 * page] == 4);
    }
    kv_pool_close(&pool);
    tiny_engine_close(&e);
    unlink(path);
}

int main(void)
{
    TEST(test_operations_are_applied_in_order, "page operations are applied in order on every layer");
    return test_result();
}
