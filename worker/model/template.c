#include "worker/model/template.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "worker/model/template/impl.h"

#define STANDARD_STEPS  20000000ull
#define STANDARD_MEMORY ((size_t)32 << 20)
#define STANDARD_OUTPUT ((size_t)8 << 20)

int render_fail(struct render *r, const char *fmt, ...)
{
    char message[460];
    va_list ap;
    if (r->failed)
        return -1;
    r->failed = true;
    va_start(ap, fmt);
    vsnprintf(message, sizeof(message), fmt, ap);
    va_end(ap);
    if (r->at)
        return err_set(r->err, "%s:%u:%u: %s", r->template->name, r->at->line, r->at->column, message);
    return err_set(r->err, "%s: %s", r->template->name, message);
}

int render_charge(struct render *r, uint64_t steps)
{
    if (r->failed)
        return -1;
    if (steps > r->max_steps - r->steps)
        return render_fail(r, "the template takes more than %llu steps", (unsigned long long)r->max_steps);
    r->steps += steps;
    return 0;
}

void *render_take(struct render *r, size_t bytes)
{
    void *p = r->failed || bytes > r->arena.limit ? NULL : arena_take(&r->arena, bytes);
    if (!p)
        render_fail(r, "the template takes more than %zu bytes of memory", r->arena.limit);
    return p;
}

int render_enter(struct render *r)
{
    if (r->depth >= RENDER_MAX_DEPTH)
        return render_fail(r, "nested too deep: expected at most %d levels of values and calls",
                           RENDER_MAX_DEPTH);
    r->depth++;
    return 0;
}

locale_t render_locale(struct render *r)
{
    if (!r->locale && !(r->locale = newlocale(LC_CTYPE_MASK, "C.UTF-8", NULL)) &&
        !(r->locale = newlocale(LC_CTYPE_MASK, "C", NULL)))
        die("newlocale: no locale C");
    return r->locale;
}

/* ---- the variables ---- */

static int from_json(struct render *r, const json_t *j, struct value *out);

static int from_object(struct render *r, const json_t *j, struct value *out)
{
    const char *key;
    json_t *member;
    struct value name, v;
    size_t i = 0;
    if (dict_new(r, VALUE_DICT, out))
        return -1;
    struct dict *d = out->dict;
    d->count = d->capacity = json_object_size(j);
    if (d->count && !(d->entries = render_take(r, d->count * sizeof(*d->entries))))
        return -1;
    /* jansson's keys are unique and iterate in the order of insertion. */
    json_object_foreach((json_t *)(uintptr_t)j, key, member)
    {
        if (string_borrow(r, key, strlen(key), &name) || from_json(r, member, &v))
            return -1;
        d->entries[i++] = (struct entry){name, v};
    }
    return 0;
}

static int from_array(struct render *r, const json_t *j, struct value *out)
{
    struct value v;
    if (list_new(r, VALUE_LIST, json_array_size(j), out))
        return -1;
    for (size_t i = 0; i < json_array_size(j); i++)
        if (from_json(r, json_array_get(j, i), &v) || list_push(r, out->list, v))
            return -1;
    return 0;
}

static int from_json(struct render *r, const json_t *j, struct value *out)
{
    int code = 0;
    if (render_enter(r))
        return -1;
    switch (json_typeof(j)) {
    case JSON_OBJECT:
        code = from_object(r, j, out);
        break;
    case JSON_ARRAY:
        code = from_array(r, j, out);
        break;
    case JSON_STRING:
        code = string_borrow(r, json_string_value(j), json_string_length(j), out);
        break;
    case JSON_INTEGER:
        *out = value_int(json_integer_value(j));
        break;
    case JSON_REAL:
        *out = value_float(json_real_value(j));
        break;
    case JSON_TRUE:
    case JSON_FALSE:
        *out = value_bool(json_is_true(j));
        break;
    default:
        *out = value_none();
    }
    r->depth--;
    return code;
}

static int set_variables(struct render *r, struct scope *s, const json_t *variables)
{
    struct value all;
    if (!json_is_object(variables))
        return render_fail(r, "expected the variables as a JSON object");
    if (from_json(r, variables, &all))
        return -1;
    for (size_t i = 0; i < all.dict->count; i++)
        if (scope_set(r, s, all.dict->entries[i].key.string, all.dict->entries[i].value))
            return -1;
    return 0;
}

int template_render(const struct template *t, const json_t *variables, const struct template_options *options,
                    struct buffer *out, struct err *err)
{
    static const struct template_options standard;
    const struct template_options *o = options ? options : &standard;
    struct render r = {.template = t, .err = err, .now = o->now};
    struct scope globals = {0}, top = {.parent = &globals};
    r.max_steps = o->max_steps ? o->max_steps : STANDARD_STEPS;
    r.arena.limit = o->max_memory_bytes ? o->max_memory_bytes : STANDARD_MEMORY;
    r.max_output_bytes = o->max_output_bytes ? o->max_output_bytes : STANDARD_OUTPUT;
    if (err)
        err->code = 0;
    int code = set_variables(&r, &globals, variables) || exec_body(&r, &top, t->body) == FLOW_FAILED ? -1 : 0;
    ASSERT(r.failed == (code != 0) && (r.failed || r.depth == 0));
    if (code == 0 && r.output.size)
        buffer_append(out, r.output.data, r.output.size);
    if (r.locale)
        freelocale(r.locale);
    buffer_release(&r.output);
    arena_release(&r.arena);
    return code;
}
