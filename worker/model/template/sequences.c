/* sequences: the filters over lists, strings and dicts. As in Python, map, select, unique, reverse and items
 * give iterators, which can be walked once. */
#include <string.h>

#include "worker/model/template/strings.h"

#define FILTER(name) \
    static int filter_##name(struct render *r, const struct node *n, struct value *args, struct value *out)

FILTER(length)
{
    size_t count;
    (void)n;
    if (value_length(r, &args[0], &count))
        return -1;
    *out = value_int((int64_t)count);
    return 0;
}

FILTER(list)
{
    struct list items;
    (void)n;
    if (value_iterate(r, &args[0], &items) || list_new(r, VALUE_LIST, items.count, out))
        return -1;
    if (items.count)
        memcpy(out->list->items, items.items, items.count * sizeof(struct value));
    out->list->count = items.count;
    return render_charge(r, items.count);
}

FILTER(first)
{
    struct list items;
    (void)n;
    if (args[0].kind == VALUE_ITERATOR) { /* takes one */
        struct list *l = args[0].list;
        if (l->next < l->count) {
            *out = l->items[l->next++];
            return 0;
        }
    } else if (value_iterate(r, &args[0], &items)) {
        return -1;
    } else if (items.count > 0) {
        *out = items.items[0];
        return 0;
    }
    return value_undefined(r, "No first item, sequence was empty.", NULL, out);
}

FILTER(last)
{
    struct list items;
    (void)n;
    if (args[0].kind == VALUE_ITERATOR)
        return render_fail(r, "a %s cannot be reversed", value_type(&args[0]));
    if (value_iterate(r, &args[0], &items))
        return -1;
    if (items.count == 0)
        return value_undefined(r, "No last item, sequence was empty.", NULL, out);
    *out = items.items[items.count - 1];
    return 0;
}

FILTER(reverse)
{
    struct list items;
    struct text t = {.r = r};
    (void)n;
    if (value_iterate(r, &args[0], &items))
        return -1;
    if (args[0].kind == VALUE_STRING) {
        for (size_t i = items.count; i > 0; i--)
            text_put(&t, items.items[i - 1].string->data, items.items[i - 1].string->bytes);
        return text_value(&t, out);
    }
    if (list_new(r, VALUE_ITERATOR, items.count, out))
        return -1;
    for (size_t i = items.count; i > 0; i--)
        if (list_push(r, out->list, items.items[i - 1]))
            return -1;
    return 0;
}

/* ---- attribute= ---- */

/* "a.b.0" of an item; where a part is undefined, `otherwise` when it is given. */
static int get_attribute(struct render *r, const struct value *item, const struct value *path,
                         const struct value *otherwise, struct value *out)
{
    *out = *item;
    if (path->kind == VALUE_INT)
        return value_item(r, item, path, out);
    const char *p = path->string->data, *end = p + path->string->bytes;
    for (;;) {
        const char *dot = memchr(p, '.', (size_t)(end - p));
        size_t bytes = (size_t)((dot ? dot : end) - p);
        struct value key;
        int64_t index = 0;
        bool digits = bytes > 0 && bytes < 10;
        for (size_t i = 0; i < bytes && digits; i++) {
            digits = p[i] >= '0' && p[i] <= '9';
            index = index * 10 + (p[i] - '0');
        }
        if (digits)
            key = value_int(index);
        else if (string_borrow(r, p, bytes, &key))
            return -1;
        if (value_item(r, out, &key, out))
            return -1;
        if (otherwise && otherwise->kind != VALUE_ABSENT && otherwise->kind != VALUE_NONE &&
            out->kind == VALUE_UNDEFINED)
            *out = *otherwise;
        if (!dot)
            return 0;
        p = dot + 1;
    }
}

static int check_attribute(struct render *r, const struct node *n, const struct value *v)
{
    if (v->kind == VALUE_STRING || v->kind == VALUE_INT || v->kind == VALUE_ABSENT || v->kind == VALUE_NONE)
        return 0;
    return render_fail(r, "%s: expected an attribute's name, found %s", n->callable->name, value_type(v));
}

static bool given(const struct value *v)
{
    return v->kind != VALUE_ABSENT && v->kind != VALUE_NONE;
}

/* What an item is sorted and compared by: its attribute where one is named, without case unless asked. */
static int get_key(struct render *r, const struct value *item, const struct value *attribute,
                   bool case_sensitive, struct value *out)
{
    *out = *item;
    if (given(attribute) && get_attribute(r, item, attribute, NULL, out))
        return -1;
    if (out->kind == VALUE_STRING && !case_sensitive)
        return string_case(r, out->string, CASE_LOWER, out);
    return 0;
}

/* ---- map, select, reject ---- */

/* The arguments of the filter or test inside; its subject, args[0], is set for each item. */
static int inner_arguments(struct render *r, const struct node *n, struct value *args)
{
    int code = n->b ? builtin_arguments(r, r->scope, n->b, args) : 0;
    r->at = n;
    return code;
}

/* These filters take whatever is false as empty. */
static int iterate_true(struct render *r, const struct value *v, struct list *items)
{
    *items = (struct list){0};
    return value_true(v) ? value_iterate(r, v, items) : 0;
}

FILTER(map)
{
    struct list items;
    struct value inner[1 + CALLABLE_MAX_PARAMETERS], v;
    if (check_attribute(r, n, &args[1]) || inner_arguments(r, n, inner) ||
        iterate_true(r, &args[0], &items) || list_new(r, VALUE_ITERATOR, items.count, out))
        return -1;
    for (size_t i = 0; i < items.count; i++) {
        struct value copy[1 + CALLABLE_MAX_PARAMETERS];
        memcpy(copy, inner, sizeof(copy));
        copy[0] = items.items[i];
        if (n->b ? n->b->callable->call(r, n->b, copy, &v)
                 : get_attribute(r, &items.items[i], &args[1], &args[2], &v))
            return -1;
        if (list_push(r, out->list, v))
            return -1;
    }
    return 0;
}

static int keep(struct render *r, const struct node *n, struct value *args, bool attribute, bool wanted,
                struct value *out)
{
    struct list items;
    struct value inner[1 + CALLABLE_MAX_PARAMETERS], passes;
    if ((attribute && check_attribute(r, n, &args[1])) || inner_arguments(r, n, inner) ||
        iterate_true(r, &args[0], &items) || list_new(r, VALUE_ITERATOR, 0, out))
        return -1;
    for (size_t i = 0; i < items.count; i++) {
        inner[0] = items.items[i];
        if (attribute && given(&args[1]) && get_attribute(r, &items.items[i], &args[1], NULL, &inner[0]))
            return -1;
        passes = inner[0];
        if (n->b && n->b->callable->call(r, n->b, inner, &passes))
            return -1;
        if (value_true(&passes) == wanted && list_push(r, out->list, items.items[i]))
            return -1;
    }
    return 0;
}

FILTER(select)
{
    return keep(r, n, args, false, true, out);
}
FILTER(reject)
{
    return keep(r, n, args, false, false, out);
}
FILTER(selectattr)
{
    return keep(r, n, args, true, true, out);
}
FILTER(rejectattr)
{
    return keep(r, n, args, true, false, out);
}

/* ---- order ---- */

struct keyed {
    struct value key, item;
};

/* a < b as Python sees it for keys inside a list: equal ones, of whatever type, are not compared. */
static int key_less(struct render *r, const struct value *a, const struct value *b, bool *out)
{
    bool equal;
    if (value_equal(r, a, b, &equal))
        return -1;
    *out = false;
    return equal ? 0 : value_less(r, a, b, out);
}

/* Stable merge sort: `from` and `to` change places at every level. */
static int merge_sort(struct render *r, struct keyed *from, struct keyed *to, size_t count, bool reverse)
{
    for (size_t width = 1; width < count; width *= 2) {
        for (size_t begin = 0; begin < count; begin += 2 * width) {
            size_t middle = begin + width < count ? begin + width : count;
            size_t end = begin + 2 * width < count ? begin + 2 * width : count;
            for (size_t i = begin, j = middle, k = begin; k < end; k++) {
                bool second = i == middle;
                if (i < middle && j < end &&
                    key_less(r, reverse ? &from[i].key : &from[j].key, reverse ? &from[j].key : &from[i].key,
                             &second))
                    return -1;
                to[k] = second ? from[j++] : from[i++];
            }
        }
        memcpy(from, to, count * sizeof(*from));
    }
    return 0;
}

/* Sorts pairs whose keys are set and makes a list of the items. */
static int sort_keyed(struct render *r, struct keyed *keyed, size_t count, bool reverse, struct value *out)
{
    struct keyed *scratch = render_take(r, count * sizeof(*scratch));
    if (!scratch || merge_sort(r, keyed, scratch, count, reverse) || list_new(r, VALUE_LIST, count, out))
        return -1;
    for (size_t i = 0; i < count; i++)
        if (list_push(r, out->list, keyed[i].item))
            return -1;
    return 0;
}

FILTER(sort)
{
    struct list items;
    if (check_attribute(r, n, &args[3]) || value_iterate(r, &args[0], &items))
        return -1;
    if (args[3].kind == VALUE_STRING && memchr(args[3].string->data, ',', args[3].string->bytes))
        return render_fail(r, "sort: several attributes are not supported");
    struct keyed *keyed = render_take(r, items.count * sizeof(*keyed));
    if (!keyed)
        return -1;
    for (size_t i = 0; i < items.count; i++) {
        keyed[i].item = items.items[i];
        if (get_key(r, &items.items[i], &args[3], value_true(&args[2]), &keyed[i].key))
            return -1;
    }
    return sort_keyed(r, keyed, items.count, value_true(&args[1]), out);
}

FILTER(dictsort)
{
    struct value pairs;
    (void)n;
    if (args[0].kind == VALUE_UNDEFINED)
        return value_undefined_error(r, &args[0]);
    if (args[0].kind != VALUE_DICT)
        return render_fail(r, "dictsort: expected a dict, found %s", value_type(&args[0]));
    bool by_value = args[2].kind == VALUE_STRING && string_is(args[2].string, "value");
    if (!by_value && args[2].kind != VALUE_ABSENT &&
        !(args[2].kind == VALUE_STRING && string_is(args[2].string, "key")))
        return render_fail(r, "dictsort: expected by = 'key' or 'value'");
    if (dict_items(r, args[0].dict, VALUE_LIST, &pairs))
        return -1;
    struct keyed *keyed = render_take(r, pairs.list->count * sizeof(*keyed));
    struct value no_attribute = {.kind = VALUE_ABSENT};
    if (!keyed)
        return -1;
    for (size_t i = 0; i < pairs.list->count; i++) {
        keyed[i].item = pairs.list->items[i];
        if (get_key(r, &keyed[i].item.list->items[by_value], &no_attribute, value_true(&args[1]),
                    &keyed[i].key))
            return -1;
    }
    return sort_keyed(r, keyed, pairs.list->count, value_true(&args[3]), out);
}

FILTER(unique)
{
    struct list items;
    struct value seen, key, *found;
    if (check_attribute(r, n, &args[2]) || value_iterate(r, &args[0], &items) ||
        dict_new(r, VALUE_DICT, &seen) || list_new(r, VALUE_ITERATOR, 0, out))
        return -1;
    for (size_t i = 0; i < items.count; i++) {
        if (get_key(r, &items.items[i], &args[2], value_true(&args[1]), &key) ||
            dict_find(r, seen.dict, &key, &found))
            return -1;
        if (!found && (dict_set(r, seen.dict, key, value_none()) || list_push(r, out->list, items.items[i])))
            return -1;
    }
    return 0;
}

static int extreme(struct render *r, const struct node *n, struct value *args, bool most, struct value *out)
{
    struct list items;
    struct value best = {0}, key;
    if (check_attribute(r, n, &args[2]) || value_iterate(r, &args[0], &items))
        return -1;
    if (items.count == 0)
        return value_undefined(r, "No aggregated item, sequence was empty.", NULL, out);
    for (size_t i = 0; i < items.count; i++) {
        bool better = i == 0;
        if (get_key(r, &items.items[i], &args[2], value_true(&args[1]), &key) ||
            (i > 0 && value_less(r, most ? &best : &key, most ? &key : &best, &better)))
            return -1;
        if (better) {
            best = key;
            *out = items.items[i];
        }
    }
    return 0;
}

FILTER(min)
{
    return extreme(r, n, args, false, out);
}
FILTER(max)
{
    return extreme(r, n, args, true, out);
}

FILTER(sum)
{
    struct list items;
    struct value v;
    if (check_attribute(r, n, &args[1]) || value_iterate(r, &args[0], &items))
        return -1;
    *out = args[2].kind == VALUE_ABSENT ? value_int(0) : args[2];
    if (out->kind == VALUE_STRING)
        return render_fail(r, "sum: strings cannot be summed");
    for (size_t i = 0; i < items.count; i++) {
        v = items.items[i];
        if ((given(&args[1]) && get_attribute(r, &items.items[i], &args[1], NULL, &v)) ||
            value_binary(r, OP_ADD, out, &v, out))
            return -1;
    }
    return 0;
}

FILTER(join)
{
    struct list items;
    struct value by, v;
    struct text t = {.r = r};
    if (check_attribute(r, n, &args[2]) || value_iterate(r, &args[0], &items))
        return -1;
    if (args[1].kind == VALUE_ABSENT ? string_borrow(r, "", 0, &by) : value_to_string(r, &args[1], &by))
        return -1;
    for (size_t i = 0; i < items.count; i++) {
        v = items.items[i];
        if (given(&args[2]) && get_attribute(r, &items.items[i], &args[2], NULL, &v))
            return -1;
        if (i > 0)
            text_put(&t, by.string->data, by.string->bytes);
        if (text_str(&t, &v) || render_charge(r, 1))
            return -1;
    }
    return text_value(&t, out);
}

FILTER(items)
{
    (void)n;
    if (args[0].kind == VALUE_UNDEFINED)
        return list_new(r, VALUE_ITERATOR, 0, out);
    if (args[0].kind != VALUE_DICT)
        return render_fail(r, "items: expected a mapping, found %s", value_type(&args[0]));
    return dict_items(r, args[0].dict, VALUE_ITERATOR, out);
}

const struct callable template_sequence_filters[] = {
    {"length", filter_length, 0, 0, {0}, 0},
    {"count", filter_length, 0, 0, {0}, 0},
    {"list", filter_list, 0, 0, {0}, 0},
    {"first", filter_first, 0, 0, {0}, 0},
    {"last", filter_last, 0, 0, {0}, 0},
    {"reverse", filter_reverse, 0, 0, {0}, 0},
    {"map", filter_map, 0, 2, {"attribute", "default"}, SPECIAL_FILTER_NAME},
    {"select", filter_select, 0, 0, {0}, SPECIAL_TEST_NAME},
    {"reject", filter_reject, 0, 0, {0}, SPECIAL_TEST_NAME},
    {"selectattr", filter_selectattr, 1, 1, {"attribute"}, SPECIAL_ATTRIBUTE_TEST},
    {"rejectattr", filter_rejectattr, 1, 1, {"attribute"}, SPECIAL_ATTRIBUTE_TEST},
    {"sort", filter_sort, 0, 3, {"reverse", "case_sensitive", "attribute"}, 0},
    {"dictsort", filter_dictsort, 0, 3, {"case_sensitive", "by", "reverse"}, 0},
    {"unique", filter_unique, 0, 2, {"case_sensitive", "attribute"}, 0},
    {"min", filter_min, 0, 2, {"case_sensitive", "attribute"}, 0},
    {"max", filter_max, 0, 2, {"case_sensitive", "attribute"}, 0},
    {"sum", filter_sum, 0, 2, {"attribute", "start"}, 0},
    {"join", filter_join, 0, 2, {"d", "attribute"}, 0},
    {"items", filter_items, 0, 0, {0}, 0},
    {0},
};
