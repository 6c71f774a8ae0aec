/* access: what is inside of values: attributes, subscripts, slices, iteration; lists and dicts under
 * construction. An attribute is a member of the data, or the name of a method; nothing else can be reached.
 */
#include <string.h>

#include "worker/model/template/impl.h"

int value_undefined(struct render *r, const char *of, const struct value *key, struct value *out)
{
    struct undefined *u = render_take(r, sizeof(*u));
    if (!u)
        return -1;
    u->of = of;
    if (key)
        u->key = *key;
    *out = (struct value){.kind = VALUE_UNDEFINED, .undefined = u};
    return 0;
}

/* ---- lists and dicts ---- */

int list_new(struct render *r, enum value_kind kind, size_t capacity, struct value *out)
{
    struct list *l = render_take(r, sizeof(*l));
    uint64_t bytes;
    if (!l)
        return -1;
    if (!checked_mul_u64(capacity, sizeof(struct value), &bytes))
        return render_fail(r, "this list is too long");
    if (capacity && !(l->items = render_take(r, (size_t)bytes)))
        return -1;
    l->capacity = capacity;
    *out = (struct value){.kind = kind, .list = l};
    return 0;
}

int list_push(struct render *r, struct list *l, struct value v)
{
    if (render_charge(r, 1))
        return -1;
    if (l->count == l->capacity) {
        size_t capacity = l->capacity ? 2 * l->capacity : 4;
        struct value *items = render_take(r, capacity * sizeof(*items));
        if (!items)
            return -1;
        if (l->count)
            memcpy(items, l->items, l->count * sizeof(*items));
        l->items = items;
        l->capacity = capacity;
    }
    l->items[l->count++] = v;
    return 0;
}

int dict_new(struct render *r, enum value_kind kind, struct value *out)
{
    struct dict *d = render_take(r, sizeof(*d));
    if (!d)
        return -1;
    *out = (struct value){.kind = kind, .dict = d};
    return 0;
}

static bool hashable(const struct value *v)
{
    if (v->kind == VALUE_LIST || v->kind == VALUE_DICT)
        return false;
    for (size_t i = 0; v->kind == VALUE_TUPLE && i < v->list->count; i++)
        if (v->list->items[i].kind == VALUE_LIST || v->list->items[i].kind == VALUE_DICT)
            return false;
    return true;
}

int dict_find(struct render *r, const struct dict *d, const struct value *key, struct value **out)
{
    *out = NULL;
    if (!hashable(key))
        return render_fail(r, "unhashable type: a %s cannot be a key", value_type(key));
    if (key->kind == VALUE_STRING) {
        *out = dict_find_name(d, key->string->data, key->string->bytes);
        return render_charge(r, 1 + d->count / 8);
    }
    for (size_t i = 0; i < d->count && !*out; i++) {
        bool equal;
        if (value_equal(r, key, &d->entries[i].key, &equal))
            return -1;
        if (equal)
            *out = &d->entries[i].value;
    }
    return 0;
}

struct value *dict_find_name(const struct dict *d, const char *name, size_t bytes)
{
    for (size_t i = 0; i < d->count; i++) {
        const struct value *k = &d->entries[i].key;
        if (k->kind == VALUE_STRING && k->string->bytes == bytes && memcmp(k->string->data, name, bytes) == 0)
            return &d->entries[i].value;
    }
    return NULL;
}

int dict_set(struct render *r, struct dict *d, struct value key, struct value v)
{
    struct value *found;
    if (dict_find(r, d, &key, &found))
        return -1;
    if (found) {
        *found = v;
        return 0;
    }
    if (d->count == d->capacity) {
        size_t capacity = d->capacity ? 2 * d->capacity : 4;
        struct entry *entries = render_take(r, capacity * sizeof(*entries));
        if (!entries)
            return -1;
        if (d->count)
            memcpy(entries, d->entries, d->count * sizeof(*entries));
        d->entries = entries;
        d->capacity = capacity;
    }
    d->entries[d->count++] = (struct entry){key, v};
    return 0;
}

/* ---- attributes and subscripts ---- */

static int loop_attribute(struct render *r, const struct loop *l, const struct string *name,
                          struct value *out)
{
    const struct {
        const char *name;
        struct value value;
    } members[] = {
        {"index", value_int((int64_t)l->index + 1)},
        {"index0", value_int((int64_t)l->index)},
        {"revindex", value_int((int64_t)(l->count - l->index))},
        {"revindex0", value_int((int64_t)(l->count - l->index) - 1)},
        {"first", value_bool(l->index == 0)},
        {"last", value_bool(l->index + 1 == l->count)},
        {"length", value_int((int64_t)l->count)},
        {"depth", value_int(l->depth)},
        {"depth0", value_int(l->depth - 1)},
    };
    for (size_t i = 0; i < ARRAY_LEN(members); i++)
        if (string_is(name, members[i].name)) {
            *out = members[i].value;
            return 0;
        }
    if (string_is(name, "previtem") && l->index > 0)
        *out = l->items[l->index - 1];
    else if (string_is(name, "nextitem") && l->index + 1 < l->count)
        *out = l->items[l->index + 1];
    else if (string_is(name, "previtem"))
        return value_undefined(r, "there is no previous item", NULL, out);
    else if (string_is(name, "nextitem"))
        return value_undefined(r, "there is no next item", NULL, out);
    else
        return value_undefined(
            r, "loop object",
            &(struct value){.kind = VALUE_STRING, .string = (struct string *)(uintptr_t)name}, out);
    return 0;
}

/* A member of the object that Python would find before it looks into the data; 1 = none. */
static int object_attribute(struct render *r, const struct value *v, const struct value *name,
                            struct value *out)
{
    struct value *found;
    if (v->kind == VALUE_LOOP)
        return loop_attribute(r, v->loop, name->string, out);
    if (v->kind == VALUE_NAMESPACE &&
        (found = dict_find_name(v->dict, name->string->data, name->string->bytes))) {
        *out = *found;
        return 0;
    }
    if (!method_exists(v, name->string))
        return 1;
    *out = (struct value){.kind = VALUE_METHOD, .string = name->string};
    return 0;
}

static int at_index(struct render *r, const struct value *v, int64_t i, struct value *out)
{
    size_t count;
    if (value_length(r, v, &count))
        return -1;
    if (i < 0)
        i += (int64_t)count;
    if (i < 0 || (uint64_t)i >= count)
        return 1;
    if (v->kind == VALUE_STRING)
        return string_slice(r, v->string, (size_t)i, (size_t)i + 1, out);
    *out = v->list->items[i];
    return 0;
}

/* obj[key] alone; 1 = Python raises a TypeError or a LookupError. */
static int subscript(struct render *r, const struct value *v, const struct value *key, struct value *out)
{
    int64_t i;
    struct value *found;
    switch (v->kind) {
    case VALUE_DICT:
        if (!hashable(key))
            return 1;
        if (dict_find(r, v->dict, key, &found))
            return -1;
        if (!found)
            return 1;
        *out = *found;
        return 0;
    case VALUE_STRING:
    case VALUE_LIST:
    case VALUE_TUPLE:
    case VALUE_RANGE:
        return value_integer(key, &i) ? at_index(r, v, i, out) : 1;
    default:
        return 1;
    }
}

int value_attribute(struct render *r, const struct value *v, const struct value *name, struct value *out)
{
    if (v->kind == VALUE_UNDEFINED)
        return value_undefined_error(r, v);
    int code = object_attribute(r, v, name, out);
    if (code == 1)
        code = subscript(r, v, name, out);
    return code == 1 ? value_undefined(r, value_object(v), name, out) : code;
}

int value_item(struct render *r, const struct value *v, const struct value *key, struct value *out)
{
    if (v->kind == VALUE_UNDEFINED)
        return value_undefined_error(r, v);
    int code = subscript(r, v, key, out);
    if (code == 1 && key->kind == VALUE_STRING)
        code = object_attribute(r, v, key, out);
    return code == 1 ? value_undefined(r, value_object(v), key, out) : code;
}

/* One bound of a slice, clipped as Python does; `absent` where it is none. */
static int slice_bound(struct render *r, const struct value *v, int64_t count, bool backwards, int64_t absent,
                       int64_t *out)
{
    if (v->kind == VALUE_NONE) {
        *out = absent;
        return 0;
    }
    if (v->kind == VALUE_UNDEFINED)
        return value_undefined_error(r, v);
    if (!value_integer(v, out))
        return render_fail(r, "slice indices must be integers or none, found %s", value_type(v));
    if (*out < 0)
        *out += count;
    int64_t low = backwards ? -1 : 0, high = backwards ? count - 1 : count;
    *out = *out < low ? low : *out > high ? high : *out;
    return 0;
}

static int slice_items(struct render *r, const struct value *v, int64_t start, int64_t stop, int64_t step,
                       struct value *out)
{
    struct text t = {.r = r};
    struct value item;
    if (v->kind == VALUE_STRING && step == 1)
        return string_slice(r, v->string, (size_t)start, (size_t)(stop > start ? stop : start), out);
    if (v->kind == VALUE_STRING && string_chars(v->string) != v->string->bytes &&
        render_charge(r, v->string->bytes))
        return -1;
    if (v->kind != VALUE_STRING && list_new(r, v->kind, 0, out))
        return -1;
    if (v->kind == VALUE_RANGE) { /* a slice of a range is one; wrapping, for nobody can reach those ends */
        const uint64_t begin = (uint64_t)v->list->range[0], by = (uint64_t)v->list->range[2];
        out->list->range[0] = (int64_t)(begin + by * (uint64_t)start);
        out->list->range[1] = (int64_t)(begin + by * (uint64_t)stop);
        out->list->range[2] = (int64_t)(by * (uint64_t)step);
    }
    struct list characters = {0};
    if (v->kind == VALUE_STRING && value_iterate(r, v, &characters))
        return -1;
    for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
        item = v->kind == VALUE_STRING ? characters.items[i] : v->list->items[i];
        if (v->kind == VALUE_STRING)
            text_put(&t, item.string->data, item.string->bytes);
        else if (list_push(r, out->list, item))
            return -1;
        if (r->failed || __builtin_add_overflow(i, step, &i))
            break;
    }
    return v->kind == VALUE_STRING ? text_value(&t, out) : r->failed ? -1 : 0;
}

int value_slice(struct render *r, const struct value *v, const struct value bounds[3], struct value *out)
{
    size_t count;
    int64_t start, stop, step = 1;
    if (v->kind == VALUE_UNDEFINED)
        return value_undefined_error(r, v);
    if (v->kind != VALUE_STRING && v->kind != VALUE_LIST && v->kind != VALUE_TUPLE && v->kind != VALUE_RANGE)
        return render_fail(r, "a %s cannot be sliced", value_type(v));
    if (bounds[2].kind == VALUE_UNDEFINED)
        return value_undefined_error(r, &bounds[2]);
    if (bounds[2].kind != VALUE_NONE && !value_integer(&bounds[2], &step))
        return render_fail(r, "slice indices must be integers or none, found %s", value_type(&bounds[2]));
    if (step == 0)
        return render_fail(r, "the step of a slice cannot be zero");
    if (value_length(r, v, &count))
        return -1;
    int64_t n = (int64_t)count;
    if (slice_bound(r, &bounds[0], n, step < 0, step < 0 ? n - 1 : 0, &start) ||
        slice_bound(r, &bounds[1], n, step < 0, step < 0 ? -1 : n, &stop))
        return -1;
    return slice_items(r, v, start, stop, step, out);
}

/* ---- iteration ---- */

int value_length(struct render *r, const struct value *v, size_t *out)
{
    switch (v->kind) {
    case VALUE_UNDEFINED:
        *out = 0;
        return 0;
    case VALUE_STRING:
        if (v->string->chars == SIZE_MAX && render_charge(r, v->string->bytes / 32))
            return -1;
        *out = string_chars(v->string);
        return 0;
    case VALUE_LIST:
    case VALUE_TUPLE:
    case VALUE_RANGE:
    case VALUE_VIEW:
        *out = v->list->count;
        return 0;
    case VALUE_DICT:
        *out = v->dict->count;
        return 0;
    case VALUE_LOOP:
        *out = v->loop->count;
        return 0;
    default:
        return render_fail(r, "a %s has no length", value_type(v));
    }
}

static int iterate_string(struct render *r, struct string *s, struct list *items)
{
    struct value all;
    if (list_new(r, VALUE_LIST, string_chars(s), &all))
        return -1;
    for (size_t i = 0, n; i < s->bytes; i += n) {
        struct value c;
        n = (size_t)utf8_sequence_bytes((uint8_t)s->data[i]);
        if (string_borrow(r, s->data + i, n, &c) || list_push(r, all.list, c))
            return -1;
    }
    *items = *all.list;
    return 0;
}

static int iterate_dict(struct render *r, const struct dict *d, struct list *items)
{
    struct value all;
    if (list_new(r, VALUE_LIST, d->count, &all))
        return -1;
    for (size_t i = 0; i < d->count; i++)
        if (list_push(r, all.list, d->entries[i].key))
            return -1;
    *items = *all.list;
    return 0;
}

int value_iterate(struct render *r, const struct value *v, struct list *items)
{
    *items = (struct list){0};
    switch (v->kind) {
    case VALUE_UNDEFINED:
        return 0;
    case VALUE_LIST:
    case VALUE_TUPLE:
    case VALUE_RANGE:
    case VALUE_VIEW:
        *items = *v->list;
        return 0;
    case VALUE_ITERATOR:
        items->items = v->list->count ? v->list->items + v->list->next : NULL;
        items->count = v->list->count - v->list->next;
        v->list->next = v->list->count;
        return 0;
    case VALUE_STRING:
        return iterate_string(r, v->string, items);
    case VALUE_DICT:
        return iterate_dict(r, v->dict, items);
    default:
        return render_fail(r, "a %s is not iterable", value_type(v));
    }
}
