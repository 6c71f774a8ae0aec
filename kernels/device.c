/* device: opens devices by name and forwards their calls through the table. It knows where the plug-in may
 * lie and which version of its table this program understands; it knows no CUDA. */
#include "kernels/device.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/device_ops.h"

#define PLUGIN_FILE "lepton_cuda.so"

/* ---- the plug-in */

/* "<directory of this program>/lepton_cuda.so"; false when that directory cannot be told. */
static bool plugin_beside_program(char *path, size_t size)
{
    ssize_t n = readlink("/proc/self/exe", path, size - 1);
    if (n <= 0)
        return false;
    path[n] = '\0';
    char *slash = strrchr(path, '/');
    if (!slash || (size_t)(slash + 1 - path) + sizeof(PLUGIN_FILE) > size)
        return false;
    strcpy(slash + 1, PLUGIN_FILE);
    return true;
}

/* Opens the plug-in that was asked for, or the one beside the program, or the one on the library path, and
 * only that: a plug-in that is there but broken is an error, not a reason to look further. It is never closed
 * again: the GPU runtime keeps threads and handlers alive until the process ends. */
static void *plugin_dlopen(const char *wanted, char *path, size_t size, struct err *err)
{
    char beside[PATH_MAX];
    bool known = plugin_beside_program(beside, sizeof(beside));
    if (wanted)
        snprintf(path, size, "%s", wanted);
    else
        snprintf(path, size, "%s", known && access(beside, F_OK) == 0 ? beside : PLUGIN_FILE);
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library)
        return library;
    const char *reason = dlerror();
    if (!wanted && strcmp(path, PLUGIN_FILE) == 0)
        err_set(err, "no GPU plug-in: tried %s and the library path: %s",
                known ? beside : "(no /proc/self/exe)", reason ? reason : "unknown error");
    else
        err_set(err, "GPU plug-in %s: %s", path, reason ? reason : "unknown error");
    return NULL;
}

static const struct lepton_plugin *plugin_open(const struct device_options *options, struct err *err)
{
    char path[PATH_MAX];
    void *library = plugin_dlopen(options ? options->plugin_path : NULL, path, sizeof(path), err);
    if (!library)
        return NULL;
    const struct lepton_plugin *plugin = dlsym(library, LEPTON_PLUGIN_SYMBOL);
    if (!plugin) {
        err_set(err, "GPU plug-in %s: symbol %s is missing: it is no plug-in of Lepton", path,
                LEPTON_PLUGIN_SYMBOL);
        return NULL;
    }
    if (plugin->version != LEPTON_PLUGIN_VERSION) {
        err_set(err, "GPU plug-in %s: has version %u, expected %u: build it together with this program", path,
                plugin->version, LEPTON_PLUGIN_VERSION);
        return NULL;
    }
    return plugin;
}

int device_gpu_count(const struct device_options *options, struct err *err)
{
    const struct lepton_plugin *plugin = plugin_open(options, err);
    return plugin ? plugin->probe(err) : -1;
}

static int open_gpu(struct device **out, const char *name, int index, const struct device_options *options,
                    struct err *err)
{
    const struct lepton_plugin *plugin = plugin_open(options, err);
    if (!plugin)
        return err_prefix(err, "%s", name);
    int count = plugin->probe(err);
    if (count < 0)
        return err_prefix(err, "%s: probing for GPUs", name);
    if (index >= count)
        return err_set(err, "%s: expected a GPU below %d: the plug-in found %d", name, count, count);
    if (plugin->open(out, index, err) != 0)
        return err_prefix(err, "%s", name);
    return 0;
}

/* ---- devices */

/* "cuda" or "cuda:N", N in plain decimal digits. */
static bool gpu_index(const char *name, int *index)
{
    if (strncmp(name, "cuda", 4) != 0)
        return false;
    *index = 0;
    if (name[4] == '\0')
        return true;
    size_t digits = strlen(name + 4) - 1;
    if (name[4] != ':' || digits == 0 || digits > 4 || strspn(name + 5, "0123456789") != digits)
        return false;
    *index = atoi(name + 5);
    return true;
}

int device_open(struct device **out, const char *name, const struct device_options *options, struct err *err)
{
    int index;
    *out = NULL;
    if (strcmp(name, "cpu") == 0)
        return device_cpu_open(out, options, err);
    if (gpu_index(name, &index))
        return open_gpu(out, name, index, options, err);
    return err_set(err, "device: expected \"cpu\", \"cuda\" or \"cuda:N\", found \"%s\"", name);
}

void device_close(struct device **device)
{
    if (!*device)
        return;
    (*device)->ops->close(*device);
    *device = NULL;
}

const char *device_name(const struct device *device)
{
    return device->name;
}

const char *device_kernel_set(const struct device *device)
{
    return device->kernel_set;
}

int device_threads(const struct device *device)
{
    return device->threads;
}

void *device_alloc(struct device *device, size_t bytes, struct err *err)
{
    return device->ops->alloc(device, bytes, err);
}

void device_free(struct device *device, void *memory)
{
    if (memory)
        device->ops->free(device, memory);
}

/* ---- streams */

int stream_open(struct stream **out, struct device *device, struct err *err)
{
    *out = NULL;
    return device->ops->stream_open(out, device, err);
}

void stream_close(struct stream **stream)
{
    if (!*stream)
        return;
    (*stream)->device->ops->stream_close(*stream);
    *stream = NULL;
}

struct device *stream_device(const struct stream *stream)
{
    return stream->device;
}

int stream_sync(struct stream *stream, struct err *err)
{
    return stream->device->ops->stream_sync(stream, err);
}

void stream_upload(struct stream *stream, void *device_memory, const void *host, size_t bytes)
{
    if (bytes)
        stream->device->ops->upload(stream, device_memory, host, bytes);
}

void stream_download(struct stream *stream, void *host, const void *device_memory, size_t bytes)
{
    if (bytes)
        stream->device->ops->download(stream, host, device_memory, bytes);
}

void stream_copy(struct stream *stream, void *to, const void *from, size_t bytes)
{
    if (bytes)
        stream->device->ops->copy(stream, to, from, bytes);
}

/* A device without these entries runs inline: its work is done when the call returned. */
void stream_wait(struct stream *stream, struct stream *other)
{
    ASSERT(stream->device == other->device);
    if (stream->device->ops->wait)
        stream->device->ops->wait(stream, other);
}

int stream_idle(struct stream *stream, struct err *err)
{
    return stream->device->ops->idle ? stream->device->ops->idle(stream, err) : 1;
}

void *stream_native(struct stream *stream)
{
    return stream->device->ops->native ? stream->device->ops->native(stream) : NULL;
}
