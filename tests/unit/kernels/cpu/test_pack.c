#include <stdatomic.h>

#include "kernels/cpu/device_cpu.h"
#include "tests/test.h"

/* Counts of what a pass did to each row. */
struct seen {
    _Atomic int *packed, *watched;
    _Atomic int early, strangers, cut;
    int threads;
    int64_t rows, unit;
};

static void on_pack(void *context, int64_t begin, int64_t end)
{
    struct seen *s = context;
    s->cut += begin % s->unit != 0 || (end % s->unit != 0 && end != s->rows) || begin >= end;
    for (int64_t r = begin; r < end; r++)
        s->packed[r]++;
}

static void on_watch(void *context, int64_t begin, int64_t end, int member)
{
    struct seen *s = context;
    s->strangers += member < 0 || member >= s->threads;
    for (int64_t r = begin; r < end; r++) {
        s->early += s->packed[r] != 1;
        s->watched[r]++;
    }
}

static void check_pass(int threads, int64_t rows, int64_t columns, int64_t unit)
{
    struct err err;
    struct device *device;
    CHECK(device_open(&device, "cpu", &(struct device_options){.threads = threads}, &err) == 0);
    struct seen s = {.packed = xcalloc((size_t)rows, sizeof(int)),
                     .watched = xcalloc((size_t)rows, sizeof(int)),
                     .threads = threads,
                     .rows = rows,
                     .unit = unit};
    struct tensor host = tensor_2d(NULL, DTYPE_F32, (void *)1, rows, columns);
    struct weight_watch watch = {.rows = on_watch, .context = &s};
    cpu_pack_pass(device, &host, unit, &watch, on_pack, &s);
    int bad = 0;
    for (int64_t r = 0; r < rows; r++)
        bad += s.packed[r] != 1 || s.watched[r] != 1;
    CHECK_INT(bad, 0);
    CHECK_INT(s.early, 0);
    CHECK_INT(s.cut, 0);
    CHECK_INT(s.strangers, 0);
    cpu_pack_pass(device, &host, unit, NULL, on_pack, &s);
    CHECK(s.packed[0] == 2 && s.packed[rows - 1] == 2 && s.watched[0] == 1);
    device_close(&device);
    free((void *)s.packed);
    free((void *)s.watched);
}

static void test_every_row_once(void)
{
    static const int64_t rows[] = {1, 15, 16, 17, 1000, 4099}, columns[] = {1, 31, 1024, 5632, 300000};
    static const int64_t units[] = {1, 16, 48};
    for (size_t r = 0; r < ARRAY_LEN(rows); r++)
        for (size_t c = 0; c < ARRAY_LEN(columns); c++)
            for (size_t u = 0; u < ARRAY_LEN(units); u++)
                check_pass(1 + (int)(r + c + u) % 3, rows[r], columns[c], units[u]);
}

int main(void)
{
    TEST(test_every_row_once, "a pass packs every row once and shows it after that");
    return test_result();
}
