/* safetensors: opening files and directories. Every tensor's record is checked against its file before the
 * tensor is added; what the directory's index says is checked against what the shards hold. */
#include "worker/model/safetensors.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "worker/model/json_file.h"
#include "worker/model/map_file.h"

#define NAME_BYTES_MAX  512
#define INDEX_BYTES_MAX SAFETENSORS_HEADER_MAX
#define SHARDS_MAX      4096

static const struct {
    const char *name;
    uint32_t bytes;
    int dtype; /* -1: known, so that it can be skipped, but no weight may have it */
} element_types[] = {
    {"F32", 4, DTYPE_F32}, {"F16", 2, DTYPE_F16}, {"BF16", 2, DTYPE_BF16}, {"F64", 8, -1},
    {"I64", 8, -1},        {"U64", 8, -1},        {"I32", 4, -1},          {"U32", 4, -1},
    {"I16", 2, -1},        {"U16", 2, -1},        {"I8", 1, -1},           {"U8", 1, -1},
    {"BOOL", 1, -1},       {"F8_E4M3", 1, -1},    {"F8_E5M2", 1, -1},      {"C64", 8, -1},
};

/* One mapped file and its header, whose strings the tensors' names point into. */
struct shard {
    char *path;
    const void *mapping; /* NULL when the bytes are the caller's */
    uint64_t mapping_bytes;
    json_t *header;
};

struct safetensors {
    struct shard *shard;
    size_t shard_count;
    json_t *index; /* NULL for one file */
    struct safetensors_tensor *tensor;
    uint64_t count, capacity;
};

static int by_name(const void *a, const void *b)
{
    const struct safetensors_tensor *x = a, *y = b;
    return strcmp(x->name, y->name);
}

static int by_place(const void *a, const void *b)
{
    const struct safetensors_tensor *x = a, *y = b;
    return x->data < y->data ? -1 : x->data > y->data;
}

/* ---- one file ----------------------------------------------------------------------------------------- */

/* What is wrong with a tensor: "file: tensor "name": ...". */
#define refuse(t, err, ...) \
    (err_set(err, __VA_ARGS__), err_prefix(err, "%s: tensor \"%s\"", (t)->file, json_show((t)->name, shown)))

static int read_dtype(struct safetensors_tensor *t, const json_t *record, uint64_t *element_bytes,
                      struct err *err)
{
    char shown[JSON_SHOW_BYTES], type_shown[JSON_SHOW_BYTES];
    const json_t *dtype = json_object_get(record, "dtype");
    if (!json_is_string(dtype))
        return refuse(t, err, "dtype: expected a string");
    for (size_t i = 0; i < ARRAY_LEN(element_types); i++) {
        if (strcmp(element_types[i].name, json_string_value(dtype)) != 0)
            continue;
        t->dtype_name = element_types[i].name;
        t->usable = element_types[i].dtype >= 0;
        t->dtype = t->usable ? (enum dtype)element_types[i].dtype : DTYPE_F32;
        *element_bytes = element_types[i].bytes;
        return 0;
    }
    return refuse(t, err, "unknown dtype \"%s\"", json_show(json_string_value(dtype), type_shown));
}

static int read_shape(struct safetensors_tensor *t, const json_t *record, uint64_t element_bytes,
                      struct err *err)
{
    char shown[JSON_SHOW_BYTES];
    const json_t *shape = json_object_get(record, "shape");
    if (!json_is_array(shape))
        return refuse(t, err, "shape: expected an array");
    if (json_array_size(shape) > SAFETENSORS_MAX_DIMS)
        return refuse(t, err, "shape: %zu dimensions, expected at most %d", json_array_size(shape),
                      SAFETENSORS_MAX_DIMS);
    t->ndim = (int)json_array_size(shape);
    t->bytes = element_bytes;
    for (int d = 0; d < t->ndim; d++) {
        const json_t *n = json_array_get(shape, (size_t)d);
        if (!json_is_integer(n) || json_integer_value(n) < 1)
            return refuse(t, err, "shape: dimension %d: expected an integer of 1 or more", d);
        t->dim[d] = json_integer_value(n);
        if (!checked_mul_u64(t->bytes, (uint64_t)t->dim[d], &t->bytes) || t->bytes > INT64_MAX)
            return refuse(t, err, "shape: its size does not fit 63 bits");
    }
    return 0;
}

static int read_offsets(struct safetensors_tensor *t, const json_t *record, const uint8_t *data,
                        uint64_t data_bytes, struct err *err)
{
    char shown[JSON_SHOW_BYTES];
    const json_t *offsets = json_object_get(record, "data_offsets");
    const json_t *begin = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);
    if (!json_is_array(offsets) || json_array_size(offsets) != 2 || !json_is_integer(begin) ||
        !json_is_integer(end))
        return refuse(t, err, "data_offsets: expected two integers");
    long long b = json_integer_value(begin), e = json_integer_value(end);
    if (b < 0 || e < b)
        return refuse(t, err, "data_offsets [%lld, %lld]: expected 0 <= begin <= end", b, e);
    if ((uint64_t)e > data_bytes)
        return refuse(t, err, "data_offsets [%lld, %lld] reach past the file's %llu bytes of data", b, e,
                      (unsigned long long)data_bytes);
    if ((uint64_t)(e - b) != t->bytes)
        return refuse(t, err, "data_offsets [%lld, %lld] hold %lld bytes, its shape and dtype %s need %llu",
                      b, e, e - b, t->dtype_name, (unsigned long long)t->bytes);
    t->data = data + b;
    return 0;
}

static int read_record(struct safetensors_tensor *t, const char *file, const char *name, const json_t *record,
                       const uint8_t *data, uint64_t data_bytes, struct err *err)
{
    char shown[JSON_SHOW_BYTES];
    const char *key;
    json_t *value;
    uint64_t element_bytes = 0;
    *t = (struct safetensors_tensor){.name = name, .file = file};
    if (!name[0] || strlen(name) > NAME_BYTES_MAX)
        return refuse(t, err, "a name of %zu bytes, expected 1 to %d", strlen(name), NAME_BYTES_MAX);
    if (!json_is_object(record))
        return refuse(t, err, "expected an object");
    json_object_foreach((json_t *)(uintptr_t)record, key, value)
    {
        if (strcmp(key, "dtype") != 0 && strcmp(key, "shape") != 0 && strcmp(key, "data_offsets") != 0) {
            char key_shown[JSON_SHOW_BYTES];
            return refuse(t, err, "unknown member \"%s\", expected dtype, shape, data_offsets",
                          json_show(key, key_shown));
        }
    }
    if (read_dtype(t, record, &element_bytes, err) || read_shape(t, record, element_bytes, err))
        return -1;
    return read_offsets(t, record, data, data_bytes, err);
}

static int check_metadata(const json_t *metadata, const char *file, struct err *err)
{
    const char *key;
    json_t *value;
    if (!json_is_object(metadata))
        return err_set(err, "%s: __metadata__: expected an object", file);
    json_object_foreach((json_t *)(uintptr_t)metadata, key, value)
    {
        char shown[JSON_SHOW_BYTES];
        if (!json_is_string(value))
            return err_set(err, "%s: __metadata__: \"%s\": expected a string", file, json_show(key, shown));
    }
    return 0;
}

/* The tensors, sorted by place, must lie end to end and fill the data. */
static int check_places(const struct safetensors_tensor *t, uint64_t count, const char *file,
                        const uint8_t *data, uint64_t data_bytes, struct err *err)
{
    char shown[JSON_SHOW_BYTES], before[JSON_SHOW_BYTES];
    uint64_t at = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t begin = (uint64_t)(t[i].data - data);
        if (begin < at)
            return refuse(&t[i], err, "overlaps tensor \"%s\"", json_show(t[i - 1].name, before));
        if (begin > at)
            return refuse(&t[i], err, "a hole of %llu bytes in front of its data",
                          (unsigned long long)(begin - at));
        at = begin + t[i].bytes;
    }
    if (at != data_bytes)
        return err_set(err, "%s: %llu bytes of data behind the last tensor's", file,
                       (unsigned long long)(data_bytes - at));
    return 0;
}

static struct safetensors_tensor *grow(struct safetensors *s, uint64_t more)
{
    if (s->count + more >= s->capacity) { /* one more, so that there is memory for no tensors too */
        s->capacity = s->count + more + 1;
        s->tensor = xrealloc(s->tensor, s->capacity * sizeof(*s->tensor));
    }
    return s->tensor + s->count;
}

static int parse_header(struct shard *shard, const uint8_t *bytes, uint64_t size, const uint8_t **data,
                        uint64_t *data_bytes, struct err *err)
{
    struct reader r;
    uint64_t header_bytes;
    const uint8_t *text;
    reader_init(&r, bytes, size, shard->path, err);
    if (reader_u64(&r, "header length", &header_bytes))
        return -1;
    if (header_bytes < 2 || header_bytes > SAFETENSORS_HEADER_MAX)
        return err_set(err, "%s:0: header length %llu, expected 2 to %u", shard->path,
                       (unsigned long long)header_bytes, SAFETENSORS_HEADER_MAX);
    if (header_bytes > reader_left(&r))
        return err_set(err, "%s:0: header length %llu: the file has only %llu bytes behind it", shard->path,
                       (unsigned long long)header_bytes, (unsigned long long)reader_left(&r));
    if (reader_bytes(&r, "header", header_bytes, &text))
        return -1;
    if (text[0] != '{')
        return err_set(err, "%s:8: header: expected it to begin with '{', found %02x", shard->path, text[0]);
    *data = bytes + r.offset;
    *data_bytes = reader_left(&r);
    shard->header = json_parse((const char *)text, header_bytes, shard->path, err);
    return shard->header ? 0 : -1;
}

/* Adds a file's tensors behind those already there. */
static int parse_file(struct safetensors *s, struct shard *shard, const uint8_t *bytes, uint64_t size,
                      struct err *err)
{
    const uint8_t *data = NULL;
    uint64_t data_bytes = 0, count = 0;
    const char *name;
    json_t *record;
    if (parse_header(shard, bytes, size, &data, &data_bytes, err))
        return -1;
    struct safetensors_tensor *t = grow(s, json_object_size(shard->header));
    json_object_foreach(shard->header, name, record)
    {
        if (strcmp(name, "__metadata__") == 0) {
            if (check_metadata(record, shard->path, err))
                return -1;
            continue;
        }
        if (read_record(&t[count], shard->path, name, record, data, data_bytes, err))
            return -1;
        count++;
    }
    if (count)
        qsort(t, count, sizeof(*t), by_place);
    if (check_places(t, count, shard->path, data, data_bytes, err))
        return -1;
    s->count += count;
    return 0;
}

static struct shard *add_shard(struct safetensors *s, const char *path)
{
    s->shard = xrealloc(s->shard, (s->shard_count + 1) * sizeof(*s->shard));
    s->shard[s->shard_count] = (struct shard){.path = xstrdup(path)};
    return &s->shard[s->shard_count++];
}

static int open_shard(struct safetensors *s, const char *path, struct err *err)
{
    struct shard *shard = add_shard(s, path);
    if (map_file(path, "a safetensors file", &shard->mapping, &shard->mapping_bytes, err))
        return -1;
    const void *bytes = shard->mapping ? shard->mapping : "";
    return parse_file(s, shard, bytes, shard->mapping_bytes, err);
}

static int finish(struct safetensors **out, struct safetensors *s, int rc)
{
    *out = NULL;
    if (rc) {
        safetensors_close(&s);
        return -1;
    }
    if (s->count)
        qsort(s->tensor, s->count, sizeof(*s->tensor), by_name);
    *out = s;
    return 0;
}

int safetensors_open(struct safetensors **out, const char *path, struct err *err)
{
    struct safetensors *s = xcalloc(1, sizeof(*s));
    return finish(out, s, open_shard(s, path, err));
}

int safetensors_parse(struct safetensors **out, const void *data, uint64_t size, const char *name,
                      struct err *err)
{
    struct safetensors *s = xcalloc(1, sizeof(*s));
    return finish(out, s, parse_file(s, add_shard(s, name), data, size, err));
}

/* ---- a directory -------------------------------------------------------------------------------------- */

static const char *const suffix = ".safetensors";

/* A name from the index: a plain file name of this directory. */
static int check_file_name(const char *index, const char *tensor, const json_t *value, struct err *err)
{
    char shown[JSON_SHOW_BYTES], name_shown[JSON_SHOW_BYTES];
    const char *name = json_string_value(value);
    if (!name)
        return err_set(err, "%s: weight_map: \"%s\": expected a file name", index, json_show(tensor, shown));
    size_t n = strlen(name), tail = strlen(suffix);
    if (strchr(name, '/') || name[0] == '.' || n > 255)
        return err_set(err, "%s: weight_map: \"%s\": \"%s\": expected the name of a file in this directory",
                       index, json_show(tensor, shown), json_show(name, name_shown));
    if (n <= tail || strcmp(name + n - tail, suffix) != 0)
        return err_set(err, "%s: weight_map: \"%s\": \"%s\": expected a .safetensors file", index,
                       json_show(tensor, shown), json_show(name, name_shown));
    return 0;
}

/* Opens every shard once and keeps, of its tensors, those that the index says are there. */
static int open_shards(struct safetensors *s, const char *directory, const char *index, const json_t *map,
                       struct err *err)
{
    json_t *seen = json_object(), *value, *file;
    const char *name;
    int rc = 0;
    json_object_foreach((json_t *)(uintptr_t)map, name, value)
    {
        if ((rc = check_file_name(index, name, value, err)))
            break;
        if (json_object_get(seen, json_string_value(value)))
            continue;
        json_object_set_new(seen, json_string_value(value), json_true());
    }
    if (rc == 0 && json_object_size(seen) > SHARDS_MAX)
        rc = err_set(err, "%s: %zu shards, expected at most %d", index, json_object_size(seen), SHARDS_MAX);
    json_object_foreach(seen, name, file)
    {
        if (rc)
            break;
        char *path = xasprintf("%s/%s", directory, name);
        uint64_t before = s->count, kept = before;
        rc = open_shard(s, path, err);
        if (rc && access(path, F_OK) != 0)
            err_set(err, "%s: shard %s is missing", index, path);
        free(path);
        for (uint64_t i = before; rc == 0 && i < s->count; i++) {
            const char *where = json_string_value(json_object_get(map, s->tensor[i].name));
            if (where && strcmp(where, name) == 0)
                s->tensor[kept++] = s->tensor[i];
        }
        if (rc == 0)
            s->count = kept;
    }
    json_decref(seen);
    return rc;
}

static int check_all_there(const struct safetensors *s, const char *index, const json_t *map, struct err *err)
{
    const char *name;
    json_t *value;
    char shown[JSON_SHOW_BYTES], file_shown[JSON_SHOW_BYTES];
    if (s->count == json_object_size(map))
        return 0;
    json_object_foreach((json_t *)(uintptr_t)map, name, value) if (!safetensors_find(s, name)) return err_set(
        err, "%s: weight_map: tensor \"%s\" is not in %s", index, json_show(name, shown),
        json_show(json_string_value(value), file_shown));
    return 0;
}

static int open_index(struct safetensors **out, const char *directory, const char *path, struct err *err)
{
    struct safetensors *s = xcalloc(1, sizeof(*s));
    bool found;
    json_t *map = NULL;
    int rc = -1;
    s->index = json_read(path, INDEX_BYTES_MAX, &found, err);
    if (s->index) {
        int has = json_get_object(s->index, path, "weight_map", &map, err);
        if (has == 0 || (has == 1 && json_object_size(map) == 0))
            err_set(err, "%s: weight_map is missing or empty", path);
        else if (has == 1)
            rc = open_shards(s, directory, path, map, err);
    }
    if (finish(out, s, rc))
        return -1;
    if (check_all_there(*out, path, map, err)) {
        safetensors_close(out);
        return -1;
    }
    return 0;
}

int safetensors_open_directory(struct safetensors **out, const char *directory, struct err *err)
{
    char *single = xasprintf("%s/model.safetensors", directory);
    char *index = xasprintf("%s/model.safetensors.index.json", directory);
    char *pickle = xasprintf("%s/pytorch_model.bin", directory);
    char *pickles = xasprintf("%s/pytorch_model.bin.index.json", directory);
    int rc;
    *out = NULL;
    if (access(single, F_OK) == 0)
        rc = safetensors_open(out, single, err);
    else if (access(index, F_OK) == 0)
        rc = open_index(out, directory, index, err);
    else if (access(pickle, F_OK) == 0 || access(pickles, F_OK) == 0)
        rc = err_set(err,
                     "%s: holds pytorch_model.bin, which is a program and not only data: expected "
                     "model.safetensors",
                     directory);
    else
        rc = err_set(err, "%s: neither model.safetensors nor model.safetensors.index.json is there",
                     directory);
    free(single);
    free(index);
    free(pickle);
    free(pickles);
    return rc;
}

void safetensors_close(struct safetensors **ps)
{
    struct safetensors *s = *ps;
    if (!s)
        return;
    for (size_t i = 0; i < s->shard_count; i++) {
        map_file_release(s->shard[i].mapping, s->shard[i].mapping_bytes);
        json_decref(s->shard[i].header);
        free(s->shard[i].path);
    }
    json_decref(s->index);
    free(s->shard);
    free(s->tensor);
    free(s);
    *ps = NULL;
}

/* ---- questions ---------------------------------------------------------------------------------------- */

uint64_t safetensors_count(const struct safetensors *s)
{
    return s->count;
}

const struct safetensors_tensor *safetensors_at(const struct safetensors *s, uint64_t index)
{
    ASSERT(index < s->count);
    return &s->tensor[index];
}

const struct safetensors_tensor *safetensors_find(const struct safetensors *s, const char *name)
{
    struct safetensors_tensor key = {.name = name};
    return s->count ? bsearch(&key, s->tensor, s->count, sizeof(key), by_name) : NULL;
}

const char *safetensors_metadata(const struct safetensors *s, const char *key)
{
    return json_string_value(json_object_get(json_object_get(s->shard[0].header, "__metadata__"), key));
}
