#include "tools/sim/speed.h"

#include <jansson.h>
#include <string.h>

#include "worker/mock/speed.h"

/* Sums of a straight line through (batch, microseconds of a step). */
struct line {
    double n, x, y, xx, xy;
};

static void line_add(struct line *l, double x, double y)
{
    l->n++;
    l->x += x;
    l->y += y;
    l->xx += x * x;
    l->xy += x * y;
}

static int from_bench(struct engine_speed *speed, const json_t *results, const char *path, struct err *err)
{
    struct line steps = {0};
    double prefill = 0;
    size_t i;
    const json_t *r;
    json_array_foreach(results, i, r)
    {
        const char *test = json_string_value(json_object_get(r, "test"));
        double rate = json_number_value(json_object_get(r, "tokens_per_second"));
        double batch = json_number_value(json_object_get(r, "batch"));
        if (!test || !(rate > 0))
            return err_set(err, "%s: results[%zu]: expected \"test\" and a \"tokens_per_second\" above 0",
                           path, i);
        if (strncmp(test, "pp", 2) == 0 && rate > prefill)
            prefill = rate;
        if (strncmp(test, "tg", 2) == 0)
            line_add(&steps, batch >= 1 ? batch : 1, (batch >= 1 ? batch : 1) * 1e6 / rate);
    }
    if (prefill <= 0 || steps.n == 0)
        return err_set(err, "%s: expected at least one \"pp…\" and one \"tg…\" among the results", path);
    double spread = steps.n * steps.xx - steps.x * steps.x;
    speed->prefill_us = 1e6 / prefill;
    speed->decode_us = spread > 0 ? (steps.n * steps.xy - steps.x * steps.y) / spread : 0;
    speed->decode_us = speed->decode_us > 0 ? speed->decode_us : 0;
    speed->base_us = (steps.y - speed->decode_us * steps.x) / steps.n;
    speed->base_us = speed->base_us > 0 ? speed->base_us : 0;
    return 0;
}

/* Reads one number when it is there. */
static int number(const json_t *o, const char *name, double low, double high, double *out, const char *path,
                  struct err *err)
{
    const json_t *v = json_object_get(o, name);
    if (!v)
        return 0;
    if (!json_is_number(v) || !(json_number_value(v) >= low && json_number_value(v) <= high))
        return err_set(err, "%s: \"%s\": expected a number from %g to %g", path, name, low, high);
    *out = json_number_value(v);
    return 0;
}

static int from_numbers(struct engine_speed *speed, const json_t *o, const char *path, struct err *err)
{
    double step = speed->step_tokens, sequences = speed->max_sequences, kv = (double)speed->kv_tokens;
    double places = speed->cache_places;
    if (number(o, "base_us", 0, 1e9, &speed->base_us, path, err) ||
        number(o, "decode_us", 0, 1e9, &speed->decode_us, path, err) ||
        number(o, "prefill_us", 1e-3, 1e9, &speed->prefill_us, path, err) ||
        number(o, "step_tokens", 1, 1e6, &step, path, err) ||
        number(o, "max_sequences", 1, 65536, &sequences, path, err) ||
        number(o, "kv_tokens", 1, 1e12, &kv, path, err) ||
        number(o, "cache_places", 0, 1e6, &places, path, err))
        return -1;
    speed->step_tokens = (uint32_t)step;
    speed->max_sequences = (uint32_t)sequences;
    speed->kv_tokens = (uint64_t)kv;
    speed->cache_places = (uint32_t)places;
    return 0;
}

int speed_read(struct engine_speed *speed, const char *path, struct err *err)
{
    const char *ending = strrchr(path, '.');
    if (ending && strcmp(ending, ".cfg") == 0)
        return engine_speed_load(speed, NULL, path, err);
    json_error_t where;
    json_t *o = json_load_file(path, 0, &where);
    if (!o)
        return err_set(err, "%s:%d: %s", path, where.line, where.text);
    const json_t *results = json_object_get(o, "results");
    int code = !json_is_object(o)       ? err_set(err, "%s: expected a JSON object", path)
               : json_is_array(results) ? from_bench(speed, results, path, err)
                                        : from_numbers(speed, o, path, err);
    json_decref(o);
    return code;
}
