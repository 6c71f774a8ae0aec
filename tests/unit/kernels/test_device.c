#include "kernels/device.h"

#include <limits.h>

#include "kernels/device_ops.h"
#include "kernels/kernels.h"
#include "tests/test.h"

static void test_the_cpu_opens_by_name(void)
{
    struct device *device;
    struct stream *stream;
    struct err err;
    struct device_options options = {.threads = 2};
    CHECK_INT(device_open(&device, "cpu", &options, &err), 0);
    CHECK_STR(device_name(device), "cpu");
    CHECK_STR(device_kernel_set(device), "cpu-reference");
    CHECK_INT(device_threads(device), 2);
    CHECK_INT(kernels_supported(device, ~0u >> (32 - KERNEL_OP_COUNT), &err), 0);
    CHECK_INT(stream_open(&stream, device, &err), 0);
    CHECK(stream_device(stream) == device);
    CHECK_INT(stream_sync(stream, &err), 0);
    stream_close(&stream);
    CHECK(stream == NULL);
    stream_close(&stream);
    device_close(&device);
    CHECK(device == NULL);
    device_close(&device);
}

static void test_memory_is_aligned_and_zeroed_and_copies_arrive(void)
{
    struct device *device;
    struct stream *stream;
    struct err err;
    CHECK_INT(device_open(&device, "cpu", &(struct device_options){.threads = 1}, &err), 0);
    CHECK_INT(stream_open(&stream, device, &err), 0);
    static const size_t SIZES[] = {0, 1, 1000, 3u << 20};
    for (size_t i = 0; i < ARRAY_LEN(SIZES); i++) {
        char *memory = device_alloc(device, SIZES[i], &err);
        CHECK(memory && (uintptr_t)memory % 64 == 0);
        size_t nonzero = 0;
        for (size_t k = 0; k < SIZES[i]; k++)
            nonzero += memory[k] != 0;
        CHECK_INT(nonzero, 0);
        device_free(device, memory);
    }
    char host[16] = "fifteen letters", back[16] = "";
    char *memory = device_alloc(device, 32, &err);
    stream_upload(stream, memory, host, 16);
    stream_copy(stream, memory + 16, memory, 16);
    stream_download(stream, back, memory + 16, 16);
    CHECK_INT(stream_sync(stream, &err), 0);
    CHECK_STR(back, host);
    device_free(device, memory);
    device_free(device, NULL);
    CHECK(device_alloc(device, SIZE_MAX - 4096, &err) == NULL);
    CHECK_CONTAINS(err.message, "cpu: no memory for 18446744073709547519 bytes");
    stream_close(&stream);
    device_close(&device);
}

static void test_unknown_names_are_refused(void)
{
    static const char *NAMES[] = {"",      "gpu",     "cuda:",      "cuda:x", "cuda:1x",
                                  "cuda0", "cuda:-1", "cuda:99999", "cpu:0"};
    struct device *device;
    struct err err;
    for (size_t i = 0; i < ARRAY_LEN(NAMES); i++) {
        CHECK_INT(device_open(&device, NAMES[i], NULL, &err), -1);
        CHECK_CONTAINS(err.message, "device: expected \"cpu\", \"cuda\" or \"cuda:N\"");
        CHECK_CONTAINS(err.message, NAMES[i]);
        CHECK(device == NULL);
    }
}

static void test_a_missing_plugin_is_named(void)
{
    struct device *device;
    struct err err;
    struct device_options options = {.plugin_path = "/nowhere/lepton_cuda.so"};
    CHECK_INT(device_open(&device, "cuda:0", &options, &err), -1);
    CHECK_CONTAINS(err.message, "cuda:0: GPU plug-in /nowhere/lepton_cuda.so: ");
    CHECK_INT(device_gpu_count(&options, &err), -1);
    CHECK_CONTAINS(err.message, "/nowhere/lepton_cuda.so");
    /* Nothing lies beside a test program: both places that were tried are named. */
    CHECK_INT(device_open(&device, "cuda", NULL, &err), -1);
    CHECK_CONTAINS(err.message, "cuda: no GPU plug-in: tried /");
    CHECK_CONTAINS(err.message, "/lepton_cuda.so and the library path: ");
}

/* ---- plug-ins of our own, made by the C compiler of the machine. */

static char directory[] = "/tmp/lepton-test-device-XXXXXX";

/* Compiles a plug-in from C text; false where there is no compiler. */
static bool make_plugin(const char *name, const char *text, char *path, size_t size)
{
    char command[3 * PATH_MAX], source[PATH_MAX];
    snprintf(path, size, "%s/%s.so", directory, name);
    snprintf(source, sizeof(source), "%s/%s.c", directory, name);
    FILE *f = fopen(source, "w");
    if (!f)
        return false;
    fputs(text, f);
    fclose(f);
    snprintf(command, sizeof(command), "cc -shared -fPIC -I. -o %s %s 2>/dev/null", path, source);
    return system(command) == 0;
}

static void check_plugin_refused(const char *name, const char *text, const char *expected)
{
    char path[PATH_MAX];
    struct device *device;
    struct err err;
    if (!make_plugin(name, text, path, sizeof(path)))
        SKIP("no C compiler at run time, or not started in the root of the checkout");
    struct device_options options = {.plugin_path = path};
    CHECK_INT(device_open(&device, "cuda:1", &options, &err), -1);
    CHECK_CONTAINS(err.message, "cuda:1: ");
    CHECK_CONTAINS(err.message, expected);
}

static void test_a_library_that_is_no_plugin_is_refused(void)
{
    check_plugin_refused("stranger", "int something;", "symbol lepton_plugin is missing");
}

static void test_a_plugin_of_another_version_is_refused(void)
{
    char expected[64];
    snprintf(expected, sizeof(expected), "has version %d, expected %d", LEPTON_PLUGIN_VERSION + 1,
             LEPTON_PLUGIN_VERSION);
    check_plugin_refused("old",
                         "#include \"kernels/device_ops.h\"\n"
                         "struct lepton_plugin lepton_plugin = {.version = LEPTON_PLUGIN_VERSION + 1};",
                         expected);
}

static void test_the_probe_speaks_for_itself(void)
{
    check_plugin_refused(
        "probe",
        "#include <string.h>\n#include \"kernels/device_ops.h\"\n"
        "static int probe(struct err *e)"
        "{ strcpy(e->message, \"cudaGetDeviceCount: 35 insufficient driver\"); return -1; }\n"
        "struct lepton_plugin lepton_plugin = {LEPTON_PLUGIN_VERSION, probe, 0};",
        "probing for GPUs: cudaGetDeviceCount: 35 insufficient driver");
}

static void test_a_gpu_that_is_not_there_is_refused(void)
{
    check_plugin_refused("single",
                         "#include \"kernels/device_ops.h\"\n"
                         "static int probe(struct err *e) { (void)e; return 1; }\n"
                         "struct lepton_plugin lepton_plugin = {LEPTON_PLUGIN_VERSION, probe, 0};",
                         "expected a GPU below 1: the plug-in found 1");
}

static void test_operations_that_a_device_lacks_are_named(void)
{
    static const struct device_ops EMPTY;
    struct device device = {.ops = &EMPTY, .name = "cuda:3", .kernel_set = "cuda-sm90"};
    struct err err;
    CHECK_INT(kernels_supported(&device, 1u << KERNEL_SOFTCAP, &err), -1);
    CHECK_CONTAINS(err.message, "cuda:3 (cuda-sm90) cannot serve a model: it lacks matmul, embed, ");
    CHECK_CONTAINS(err.message, ", sample, softcap"); /* softcap: asked for */
    CHECK(!strstr(err.message, "token_loss"));        /* not needed to serve */
    CHECK(!kernel_available(&device, KERNEL_TOKEN_LOSS));
    for (int op = 0; op < KERNEL_OP_COUNT; op++)
        CHECK(strlen(kernel_op_name((enum kernel_op)op)) > 0);
}

static void test_page_types_that_a_device_lacks_are_named(void)
{
    static const struct device_ops EMPTY;
    struct device gpu = {.ops = &EMPTY, .name = "cuda:3", .kernel_set = "cuda-sm90"}, *cpu = NULL;
    struct err err;
    CHECK_INT(kernels_kv_supported(&gpu, DTYPE_F16, 64, &err), 0);
    CHECK_INT(kernels_kv_supported(&gpu, DTYPE_Q8_0, 64, &err), -1);
    CHECK_CONTAINS(err.message, "kv_type q8_0: cuda:3 (cuda-sm90) has no attention over such pages");
    CHECK_INT(device_open(&cpu, "cpu", NULL, &err), 0);
    CHECK_INT(kernels_kv_supported(cpu, DTYPE_Q8_0, 64, &err), 0);
    CHECK_INT(kernels_kv_supported(cpu, DTYPE_BF16, 20, &err), 0);
    CHECK_INT(kernels_kv_supported(cpu, DTYPE_Q8_0, 80, &err), -1);
    CHECK_CONTAINS(err.message, "heads of 80 elements, expected a multiple of 32");
    CHECK_INT(kernels_kv_supported(cpu, DTYPE_Q4_0, 64, &err), -1);
    device_close(&cpu);
}

int main(void)
{
    if (!mkdtemp(directory))
        return 1;
    TEST(test_the_cpu_opens_by_name, "the CPU opens by name and has every operation");
    TEST(test_memory_is_aligned_and_zeroed_and_copies_arrive, "memory is aligned and zeroed, copies arrive");
    TEST(test_unknown_names_are_refused, "unknown device names are refused");
    TEST(test_a_missing_plugin_is_named, "a missing plug-in is named with the places that were tried");
    TEST(test_a_library_that_is_no_plugin_is_refused, "a library that is no plug-in is refused");
    TEST(test_a_plugin_of_another_version_is_refused, "a plug-in of another version is refused");
    TEST(test_the_probe_speaks_for_itself, "the probe's own message reaches the user");
    TEST(test_a_gpu_that_is_not_there_is_refused, "a GPU that is not there is refused");
    TEST(test_operations_that_a_device_lacks_are_named, "operations that a device lacks are named");
    TEST(test_page_types_that_a_device_lacks_are_named, "page types that a device lacks are named");
    char command[PATH_MAX];
    snprintf(command, sizeof(command), "rm -rf %s", directory);
    return system(command) == 0 ? test_result() : 1;
}
