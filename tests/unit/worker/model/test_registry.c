#include "worker/model/registry.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "tests/test.h"

#define DEMO "tools/demo/lepton-demo.gguf"

/* A registry of its own in a temporary directory, with the demo model added. */
struct bench {
    char root[32], *models, *file;
    char digest[2 * MANIFEST_HASH + 1];
};

static int add(const struct bench *b, const char *path, const char *name, bool link, struct err *err)
{
    char digest[2 * MANIFEST_HASH + 1];
    struct registry_addition a = {.path = path, .name = name, .link = link, .threads = 2};
    return registry_add(b->models, &a, digest, err);
}

static void bench_open(struct bench *b)
{
    struct err err = {0};
    struct registry_addition a = {.path = DEMO, .name = "tiny", .threads = 2};
    strcpy(b->root, "/tmp/lepton-test-XXXXXX");
    CHECK(mkdtemp(b->root) != NULL);
    b->models = xasprintf("%s/data/models", b->root);
    b->file = xasprintf("%s/tiny/model.gguf", b->models);
    if (registry_add(b->models, &a, b->digest, &err)) {
        printf("# %s\n", err.message);
        test_failures++;
    }
    chmod(b->file, 0644);
}

static void bench_close(struct bench *b)
{
    char *command = xasprintf("rm -rf %s", b->root);
    CHECK(system(command) == 0);
    free(command);
    free(b->models);
    free(b->file);
}

static void flip(const char *path, uint64_t offset, int bit)
{
    uint8_t byte = 0;
    int fd = open(path, O_RDWR);
    CHECK(fd >= 0 && pread(fd, &byte, 1, (off_t)offset) == 1);
    byte ^= (uint8_t)(1 << bit);
    CHECK(pwrite(fd, &byte, 1, (off_t)offset) == 1);
    close(fd);
}

/* Opens and loads "tiny" as a rank does: slice after slice. */
static int load(const struct bench *b, const struct model_slice *slices, int count, enum registry_verify how,
                struct err *err)
{
    struct registry_model m;
    struct gguf *g = NULL;
    struct device *device = NULL;
    struct device_options options = {.threads = 1};
    int code = registry_find(&m, b->models, "tiny", how, err) || registry_open(&g, &m, 2, err) ||
                       device_open(&device, "cpu", &options, err)
                   ? -1
                   : 0;
    for (int i = 0; i < count && code == 0; i++) {
        struct model *model = NULL;
        struct model_check check = registry_check(&m);
        code = model_open_checked(&model, g, device, &slices[i], &check, err);
        model_close(&model);
    }
    device_close(&device);
    gguf_close(&g);
    registry_release(&m);
    return code;
}

static const struct model_slice whole[] = {{.first_layer = 0, .last_layer = 4, .embed = true, .head = true}};

static void test_loads(void)
{
    struct bench b;
    struct err err = {0};
    struct registry_model m;
    bench_open(&b);
    CHECK(load(&b, whole, 1, VERIFY_REGISTERED, &err) == 0);
    CHECK(load(&b, whole, 1, VERIFY_ALWAYS, &err) == 0);
    CHECK_STR(err.message, "");
    CHECK(registry_find(&m, b.models, "tiny", VERIFY_REGISTERED, &err) == 0);
    CHECK_STR(m.path, b.file);
    CHECK_STR(m.name, "tiny");
    registry_release(&m);
    /* The path of the file is the same model. */
    CHECK(registry_find(&m, NULL, b.file, VERIFY_REGISTERED, &err) == 0);
    CHECK(m.manifest != NULL);
    CHECK_STR(m.name, "tiny");
    registry_release(&m);
    CHECK(registry_find(&m, b.models, DEMO, VERIFY_REGISTERED, &err) == 0);
    CHECK(!m.manifest && !m.name);
    registry_release(&m);
    CHECK(registry_find(&m, b.models, DEMO, VERIFY_ALWAYS, &err) == -1);
    CHECK_CONTAINS(err.message, "has no hashes to verify");
    registry_release(&m);
    bench_close(&b);
}

/* One random bit of every tensor: the message names tensor, chunk and bytes; two stages find it between
 * them. */
static void test_every_tensor(void)
{
    struct bench b;
    struct err err = {0};
    struct gguf *g;
    unsigned long long random = 4;
    bench_open(&b);
    CHECK(gguf_open(&g, DEMO, &err) == 0);
    const struct model_slice stages[] = {{.first_layer = 0, .last_layer = 2, .embed = true},
                                         {.first_layer = 2, .last_layer = 4, .head = true}};
    for (uint64_t i = 0; i < gguf_tensor_count(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        uint64_t at = test_random(&random) % t->bytes;
        int bit = (int)(test_random(&random) % 8);
        char *expected =
            xasprintf("tiny: tensor %.*s: chunk %llu (bytes %llu-%llu of the file) does not match",
                      (int)t->name.size, t->name.data, (unsigned long long)(at / MANIFEST_CHUNK),
                      (unsigned long long)t->offset, (unsigned long long)(t->offset + t->bytes - 1));
        CHECK(t->bytes <= MANIFEST_CHUNK); /* of the demo model: one chunk each */
        flip(b.file, t->offset + at, bit);
        err.message[0] = '\0';
        CHECK(load(&b, i % 2 ? whole : stages, i % 2 ? 1 : 2, VERIFY_REGISTERED, &err) == -1);
        CHECK_CONTAINS(err.message, expected);
        CHECK(load(&b, whole, 1, VERIFY_NEVER, &err) == 0);
        flip(b.file, t->offset + at, bit);
        free(expected);
    }
    CHECK(load(&b, whole, 1, VERIFY_REGISTERED, &err) == 0);
    gguf_close(&g);
    bench_close(&b);
}

static void test_header(void)
{
    struct bench b;
    struct err err = {0};
    struct gguf *g;
    uint64_t header_bytes;
    unsigned long long random = 5;
    bench_open(&b);
    CHECK(gguf_open(&g, DEMO, &err) == 0);
    gguf_header(g, &header_bytes);
    for (int i = 0; i < 200; i++) {
        uint64_t at = i < 24 ? (uint64_t)i : test_random(&random) % header_bytes;
        flip(b.file, at, i % 8);
        CHECK(load(&b, whole, 1, VERIFY_REGISTERED, &err) == -1);
        CHECK_CONTAINS(err.message, "tiny: header, metadata and tensor table (bytes 0-");
        flip(b.file, at, i % 8);
    }
    gguf_close(&g);
    bench_close(&b);
}

static void test_sizes(void)
{
    struct bench b;
    struct err err = {0};
    struct stat st;
    bench_open(&b);
    CHECK(stat(b.file, &st) == 0);
    CHECK(truncate(b.file, st.st_size - 1) == 0);
    CHECK(load(&b, whole, 1, VERIFY_REGISTERED, &err) == -1);
    CHECK_CONTAINS(err.message, "bytes, it had 1766592 when it was added");
    CHECK(truncate(b.file, 10) == 0);
    CHECK(load(&b, whole, 1, VERIFY_REGISTERED, &err) == -1);
    CHECK_CONTAINS(err.message, "10 bytes, it had 1766592");
    bench_close(&b);
}

struct found {
    int count;
    char last[500];
};

static void on_found(void *context, const char *message)
{
    struct found *f = context;
    f->count++;
    snprintf(f->last, sizeof(f->last), "%s", message);
}

static int check_all(const struct bench *b, struct found *f, uint64_t *mismatches, bool forge)
{
    struct registry_model m;
    struct gguf *g;
    struct err err = {0};
    struct integrity_watch watch = {.context = f};
    CHECK(registry_find(&m, b->models, "tiny", VERIFY_ALWAYS, &err) == 0);
    CHECK(registry_open(&g, &m, 3, &err) == 0);
    if (forge)
        m.manifest->tensor[3].hash[0] ^= 1;
    int code = integrity_check_all(m.integrity, m.manifest, g, &watch, on_found, mismatches, &err);
    gguf_close(&g);
    registry_release(&m);
    return code;
}

static void test_verify_all(void)
{
    struct bench b;
    struct found f = {0};
    uint64_t mismatches = 9;
    struct gguf *g;
    struct err err = {0};
    bench_open(&b);
    CHECK(check_all(&b, &f, &mismatches, false) == 0 && mismatches == 0 && f.count == 0);
    /* What no chunk's hash sees: as if chunks had been replaced by others of the same XXH3. */
    CHECK(check_all(&b, &f, &mismatches, true) == 0 && mismatches == 1 && f.count == 1);
    CHECK_CONTAINS(f.last, "was changed on purpose");
    CHECK(gguf_open(&g, DEMO, &err) == 0);
    for (uint64_t i = 0; i < gguf_tensor_count(g); i++)
        flip(b.file, gguf_tensor_at(g, i)->offset, 7);
    f.count = 0;
    CHECK(check_all(&b, &f, &mismatches, false) == 0);
    CHECK(mismatches == gguf_tensor_count(g) && (uint64_t)f.count == mismatches);
    gguf_close(&g);
    bench_close(&b);
}

static void refused(const struct bench *b, const char *path, const char *name, const char *message)
{
    struct err err = {0};
    CHECK(add(b, path, name, false, &err) == -1);
    CHECK_CONTAINS(err.message, message);
}

static void test_refused(void)
{
    static const char *const names[] = {"",         ".",           "..",   ".x",   "a/b", "../a",
                                        "/etc/x",   "a b",         "a\nb", "a\\b", "a:b", "a\x7f",
                                        "\xff\xfe", "caf\xC3\xA9", "~",    "*"};
    struct bench b;
    struct err err = {0};
    struct registry_entry *list;
    size_t count;
    char long_name[130] = {0};
    bench_open(&b);
    memset(long_name, 'n', 129);
    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        refused(&b, DEMO, names[i], "expected a name of 1 to 128 of [A-Za-z0-9._-] without a leading dot");
    refused(&b, DEMO, long_name, "expected a name of 1 to 128");
    refused(&b, DEMO, "tiny", "a model of this name is there already");
    refused(&b, "/no/such/file", "x", "/no/such/file: No such file");
    refused(&b, "tools", "x", "is a directory: the registry takes GGUF files");
    refused(&b, "README.md", "x", "magic: expected");
    refused(&b, "tests/fuzz/seeds/fuzz_gguf/scalars.gguf", "x", "general.architecture");
    CHECK(registry_list(b.models, &list, &count, &err) == 0 && count == 1);
    registry_list_free(&list, count);
    /* Nothing else is left either. */
    char *command = xasprintf("test $(ls -A %s | wc -l) = 1", b.models);
    CHECK(system(command) == 0);
    free(command);
    bench_close(&b);
}

static void test_escapes(void)
{
    struct bench b;
    struct err err = {0};
    struct registry_model m;
    bench_open(&b);
    char *outside = xasprintf("%s/outside", b.root), *inside = xasprintf("%s/sly", b.models);
    char *entry = xasprintf("%s/tiny", b.models), *json = xasprintf("%s/tiny/manifest.json", b.models);
    /* A link in the place of a model's directory. */
    CHECK(rename(entry, outside) == 0 && symlink(outside, entry) == 0);
    CHECK(registry_find(&m, b.models, "tiny", VERIFY_REGISTERED, &err) == -1);
    CHECK_CONTAINS(err.message, "expected a directory: models lie beneath");
    registry_release(&m);
    CHECK(registry_remove(b.models, "tiny", &err) == -1);
    CHECK(unlink(entry) == 0 && rename(outside, entry) == 0);
    /* A link in the place of a copied file. */
    CHECK(rename(b.file, outside) == 0 && symlink(outside, b.file) == 0);
    CHECK(registry_find(&m, b.models, "tiny", VERIFY_NEVER, &err) == -1);
    CHECK_CONTAINS(err.message, "expected a regular file, as the manifest says");
    registry_release(&m);
    CHECK(unlink(b.file) == 0 && rename(outside, b.file) == 0);
    /* Another name than the one in the manifest. */
    CHECK(rename(entry, inside) == 0);
    CHECK(registry_find(&m, b.models, "sly", VERIFY_REGISTERED, &err) == -1);
    CHECK_CONTAINS(err.message, "is of a model called tiny, expected sly");
    registry_release(&m);
    CHECK(rename(inside, entry) == 0 && unlink(json) == 0);
    CHECK(registry_find(&m, b.models, "tiny", VERIFY_REGISTERED, &err) == -1);
    CHECK_CONTAINS(err.message, "manifest.json: No such file");
    registry_release(&m);
    CHECK(registry_find(&m, b.models, "../models/tiny", VERIFY_REGISTERED, &err) == -1 && err.code == 404);
    registry_release(&m);
    CHECK(registry_find(&m, b.models, "nobody", VERIFY_REGISTERED, &err) == -1 && err.code == 404);
    CHECK_CONTAINS(err.message, "nobody: no such file, and no model of this name in");
    registry_release(&m);
    free(outside);
    free(inside);
    free(entry);
    free(json);
    bench_close(&b);
}

static void test_links(void)
{
    struct bench b;
    struct err err = {0};
    struct registry_model m;
    struct stat st;
    bench_open(&b);
    char *source = xasprintf("%s/source.gguf", b.root), *linked = xasprintf("%s/linked/model.gguf", b.models);
    char *command = xasprintf("cp %s %s", DEMO, source);
    CHECK(system(command) == 0);
    CHECK(add(&b, source, "linked", true, &err) == 0);
    CHECK(lstat(linked, &st) == 0 && S_ISLNK(st.st_mode));
    CHECK(registry_find(&m, b.models, "linked", VERIFY_REGISTERED, &err) == 0);
    CHECK(m.manifest && m.manifest->linked);
    registry_release(&m);
    CHECK(truncate(source, 1000) == 0);
    CHECK(registry_find(&m, b.models, "linked", VERIFY_REGISTERED, &err) == -1);
    CHECK_CONTAINS(err.message, "1000 bytes, it had 1766592 when it was added");
    registry_release(&m);
    CHECK(unlink(source) == 0);
    CHECK(registry_find(&m, b.models, "linked", VERIFY_REGISTERED, &err) == -1);
    CHECK_CONTAINS(err.message, "source.gguf: No such file");
    registry_release(&m);
    /* The link leads elsewhere than the manifest says. */
    CHECK(unlink(linked) == 0 && symlink("/etc/passwd", linked) == 0);
    CHECK(registry_find(&m, b.models, "linked", VERIFY_REGISTERED, &err) == -1);
    CHECK_CONTAINS(err.message, "links to /etc/passwd, the manifest says");
    registry_release(&m);
    CHECK(registry_remove(b.models, "linked", &err) == 0);
    CHECK(access("/etc/passwd", F_OK) == 0);
    free(source);
    free(linked);
    free(command);
    bench_close(&b);
}

static void test_remove(void)
{
    struct bench b;
    struct err err = {0};
    struct registry_model m;
    struct gguf *g = NULL;
    struct device *device;
    struct device_options options = {.threads = 1};
    struct model *model;
    bench_open(&b);
    CHECK(registry_find(&m, b.models, "tiny", VERIFY_REGISTERED, &err) == 0);
    CHECK(registry_open(&g, &m, 1, &err) == 0 && device_open(&device, "cpu", &options, &err) == 0);
    CHECK(registry_remove(b.models, "tiny", &err) == 0);
    CHECK(access(b.file, F_OK) != 0);
    /* Who has it open keeps it. */
    struct model_check check = registry_check(&m);
    CHECK(model_open_checked(&model, g, device, NULL, &check, &err) == 0);
    model_close(&model);
    device_close(&device);
    gguf_close(&g);
    registry_release(&m);
    CHECK(registry_remove(b.models, "tiny", &err) == -1 && err.code == 404);
    CHECK(registry_remove(b.models, "..", &err) == -1);
    CHECK_CONTAINS(err.message, "expected a name");
    bench_close(&b);
}

static void test_list(void)
{
    struct bench b;
    struct err err = {0};
    struct registry_entry *list;
    size_t count;
    bench_open(&b);
    char *broken = xasprintf("%s/broken", b.models);
    CHECK(add(&b, DEMO, "alpha", true, &err) == 0 && mkdir(broken, 0755) == 0);
    CHECK(registry_list(b.models, &list, &count, &err) == 0 && count == 3);
    CHECK_STR(list[0].name, "alpha");
    CHECK_STR(list[1].name, "broken");
    CHECK_STR(list[2].name, "tiny");
    CHECK(list[0].manifest && list[2].manifest && !list[1].manifest);
    CHECK_CONTAINS(list[1].problem, "manifest.json: No such file");
    registry_list_free(&list, count);
    CHECK(registry_list("/no/such/directory", &list, &count, &err) == 0 && count == 0);
    free(broken);
    bench_close(&b);
}

static void test_directory(void)
{
    struct err err = {0};
    static const struct {
        const char *given, *home, *data, *user, *expected;
    } cases[] = {{"/a", "/b", "/c", "/d", "/a"},
                 {NULL, "/b", "/c", "/d", "/b/models"},
                 {NULL, NULL, "/c", "/d", "/c/lepton/models"},
                 {NULL, "", "", "/d", "/d/.local/share/lepton/models"}};
    static const char *const variables[] = {"LEPTON_HOME", "XDG_DATA_HOME", "HOME"};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        const char *values[] = {cases[i].home, cases[i].data, cases[i].user};
        for (int v = 0; v < 3; v++) {
            unsetenv(variables[v]);
            if (values[v])
                setenv(variables[v], values[v], 1);
        }
        char *found = registry_directory(cases[i].given, &err);
        CHECK_STR(found, cases[i].expected);
        free(found);
    }
    unsetenv("HOME");
    unsetenv("XDG_DATA_HOME");
    unsetenv("LEPTON_HOME");
    CHECK(registry_directory(NULL, &err) == NULL);
    CHECK_CONTAINS(err.message, "expected --models DIR");
}

int main(void)
{
    TEST(test_loads, "a registered model loads, by name and by the path of its file");
    TEST(test_every_tensor, "a flipped bit in any tensor is named with its chunk at load");
    TEST(test_header, "a flipped bit in header, metadata or tensor table is named before parsing");
    TEST(test_sizes, "a file of another size is refused");
    TEST(test_verify_all, "verify names every damaged part and knows forged chunks");
    TEST(test_refused, "bad names, taken names and what is no model are refused, and leave nothing");
    TEST(test_escapes, "nothing outside of the directory is reached");
    TEST(test_links, "a linked model must stay what and where the manifest says");
    TEST(test_remove, "a model that is in use can be removed");
    TEST(test_list, "the list is by name and says what is broken");
    TEST(test_directory, "the directory follows the option, then the environment");
    return test_result();
}
