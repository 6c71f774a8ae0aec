#include "worker/load_progress.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/test.h"
#include "tests/tiny_model.h"
#include "worker/model/model.h"

static char directory[] = "/tmp/lepton-progress-XXXXXX";

/* A path in the directory; one each for up to eight. */
static char *below(const char *name)
{
    static char path[8][128];
    static int next;
    char *one = path[next++ % 8];
    snprintf(one, sizeof(path[0]), "%s/%s", directory, name);
    return one;
}

static void test_the_file_holds_the_share(void)
{
    struct load_progress p;
    char text[8] = "";
    load_progress_begin(&p, below("one"), 3, 1000);
    CHECK_INT(load_progress_read(directory, "one", 1), 0);
    load_progress_tell(&p, 7, 23);
    FILE *f = fopen(below("one.3"), "r");
    CHECK(f && fread(text, 1, sizeof(text), f) == 4);
    CHECK_STR(text, " 30\n");
    if (f)
        fclose(f);
    load_progress_tell(&p, 23, 23);
    CHECK_INT(load_progress_read(directory, "one", 1), 100);
    CHECK_INT(unlink(below("one.3")), 0);
}

static void test_ranks_are_averaged(void)
{
    struct load_progress p[2];
    load_progress_begin(&p[0], below("g-0"), 0, 1000);
    load_progress_begin(&p[1], below("g-1"), 0, 1000);
    load_progress_tell(&p[0], 1, 2);
    CHECK_INT(load_progress_read(directory, "g-", 4), 12); /* two have not begun */
    load_progress_tell(&p[1], 1, 1);
    CHECK_INT(load_progress_read(directory, "g-", 2), 75);
    CHECK_INT(load_progress_read(directory, "g-", 1), 100); /* never more */
    CHECK_INT(load_progress_read(directory, "other", 2), 0);
    CHECK_INT(load_progress_read("/nowhere", "g-", 2), 0);
}

static void test_a_file_that_cannot_be_stops_no_load(void)
{
    struct load_progress p;
    load_progress_begin(&p, "/nowhere/at/all", 0, 1000);
    CHECK(p.file == NULL);
    load_progress_tell(&p, 1, 2);
}

/* Every layer is told of, in order, and the end is the whole. */
struct told {
    int64_t calls, all;
};

static void tell(void *context, int64_t done, int64_t all)
{
    struct told *t = context;
    t->calls++;
    CHECK_INT(done, t->calls);
    t->all = all;
}

static void test_a_model_tells_of_each_layer(void)
{
    char path[64];
    struct gguf *g = NULL;
    struct device *device = NULL;
    struct model *m = NULL;
    struct model_params params;
    struct err err = {0};
    snprintf(path, sizeof(path), "/tmp/lepton-load-%d.gguf", (int)getpid());
    tiny_model_write(path, &tiny_standard);
    CHECK(gguf_open(&g, path, &err) == 0 && device_open(&device, "cpu", NULL, &err) == 0 &&
          model_params_read(&params, g, &err) == 0);
    struct told told = {0};
    struct model_slice slice = {
        .last_layer = params.layers, .embed = true, .head = true, .loaded = tell, .loaded_context = &told};
    CHECK(params.layers > 1);
    CHECK_INT(model_open(&m, g, device, &slice, &err), 0);
    CHECK_INT(told.calls, params.layers + 1);
    CHECK_INT(told.all, told.calls);
    model_params_release(&params);
    model_close(&m);
    device_close(&device);
    gguf_close(&g);
    unlink(path);
}

int main(void)
{
    if (!mkdtemp(directory))
        die("mkdtemp: no directory");
    TEST(test_the_file_holds_the_share, "the file of a rank holds the share that is loaded");
    TEST(test_ranks_are_averaged, "the share of all ranks is their mean");
    TEST(test_a_file_that_cannot_be_stops_no_load, "a file that cannot be written stops no load");
    TEST(test_a_model_tells_of_each_layer, "a model that is opened tells of each of its layers");
    unlink(below("g-0.0"));
    unlink(below("g-1.0"));
    CHECK_INT(rmdir(directory), 0);
    return test_result();
}
