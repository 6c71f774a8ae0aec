/* lepton devices: what this machine can compute on, and why not on more. A machine without a GPU is no error:
 * the reason is printed and the exit code is 0. */
#include "tools/command.h"

#include <jansson.h>
#include <stdio.h>

#include "kernels/kernels.h"

struct devices_settings {
    bool json;
    char *plugin;
};

static const struct config_option options[] = {
    {.name = "plugin",
     .kind = CONFIG_STRING,
     .offset = offsetof(struct devices_settings, plugin),
     .value = "PATH",
     .help =
         "The GPU plug-in to try; without it lepton_cuda.so beside this program, then on the library path."},
    {.name = "json",
     .kind = CONFIG_BOOL,
     .offset = offsetof(struct devices_settings, json),
     .help = "Prints one JSON object."},
};

static const struct config_table table = {
    .program = "lepton devices",
    .about =
        "Lists the devices of this machine: the CPU, and the GPUs that the plug-in finds, or why there are "
        "none.",
    .options = options,
    .option_count = ARRAY_LEN(options),
    .settings_bytes = sizeof(struct devices_settings),
};

/* What is said of one device. */
struct found {
    char name[32];
    char kernel_set[32];
    int threads;     /* 0 for a GPU */
    char fault[500]; /* why it cannot serve a model; "" when it can */
};

static void describe(struct found *out, const char *name, const struct device_options *how)
{
    struct device *device = NULL;
    struct err err;
    *out = (struct found){.threads = 0};
    snprintf(out->name, sizeof(out->name), "%s", name);
    if (device_open(&device, name, how, &err) != 0) {
        snprintf(out->fault, sizeof(out->fault), "%s", err.message);
        return;
    }
    snprintf(out->kernel_set, sizeof(out->kernel_set), "%s", device_kernel_set(device));
    out->threads = device_threads(device);
    if (kernels_supported(device, 0, &err) != 0)
        snprintf(out->fault, sizeof(out->fault), "%s", err.message);
    device_close(&device);
}

static json_t *found_json(const struct found *f)
{
    json_t *row = json_pack("{s:s, s:s, s:b}", "name", f->name, "kernel_set", f->kernel_set, "serves",
                            f->fault[0] == '\0');
    if (f->threads > 0)
        json_object_set_new(row, "threads", json_integer(f->threads));
    if (f->fault[0])
        json_object_set_new(row, "reason", json_string(f->fault));
    return row;
}

static void found_text(const struct found *f)
{
    char threads[32] = "";
    if (f->threads > 0)
        snprintf(threads, sizeof(threads), "%d thread%s", f->threads, f->threads == 1 ? "" : "s");
    printf("%-8s %-16s %s%s\n", f->name, f->kernel_set[0] ? f->kernel_set : "-", threads,
           f->fault[0] ? f->fault : "");
}

int command_devices(int argc, char **argv)
{
    struct devices_settings settings;
    struct found found;
    struct err err;
    config_main(&table, &settings, argc, argv, NULL, 0);
    struct device_options how = {.plugin_path = settings.plugin, .kernels = "auto"};
    json_t *all = json_pack("{s:[]}", "devices");
    int gpus = device_gpu_count(&how, &err);
    for (int i = -1; i < (gpus > 0 ? gpus : 0); i++) { /* -1: the CPU */
        char name[32] = "cpu";
        if (i >= 0)
            snprintf(name, sizeof(name), "cuda:%d", i);
        describe(&found, name, &how);
        if (settings.json)
            json_array_append_new(json_object_get(all, "devices"), found_json(&found));
        else
            found_text(&found);
    }
    if (gpus == 0)
        err_set(&err, "the driver works, but there is no GPU that it lets this process use");
    if (settings.json) {
        if (gpus <= 0)
            json_object_set_new(all, "no_gpu", json_string(err.message));
        json_dumpf(all, stdout, JSON_COMPACT);
        putchar('\n');
    } else if (gpus <= 0) {
        printf("no GPU   %s\n", err.message);
    }
    json_decref(all);
    config_release(&table, &settings);
    return EXIT_OK;
}
