/* lepton bench engine: a model through the whole engine, beside the limits of the machine in the same run.
 * What is measured here; how the engine is reached is bench_engine.h's, how it is shown bench_report's. */
#include "tools/bench_engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "kernels/kernels.h"
#include "tools/bench_report.h"
#include "tools/command.h"
#include "worker/model/registry.h"

struct engine_settings {
    char *prompts, *batches, *kernels, *kv_type, *models;
    int64_t tokens, start, threads, stages, tensor, step_tokens, repeats, prefix;
    bool json, speculation;
};

#define MOST_NUMBERS   16
#define MOST_WORDS     24
#define OPTION(member) offsetof(struct engine_settings, member)

static const struct config_option options[] = {
    {"prompts", 'p', CONFIG_STRING, OPTION(prompts), 0, 0, "512", "N,N...", NULL,
     "lengths of the prompts to process, in tokens; 0 = none", false},
    {"tokens", 'n', CONFIG_INT, OPTION(tokens), 0, 1 << 20, "128", "N", NULL,
     "tokens that each stream generates; 0 = no generation", false},
    {"batches", 'b', CONFIG_STRING, OPTION(batches), 0, 0, "1", "B,B...", NULL,
     "streams that generate together", false},
    {"start", 0, CONFIG_INT, OPTION(start), 1, 1 << 20, "64", "N", NULL,
     "tokens of a stream's prompt where generation is measured", false},
    {"prefix", 0, CONFIG_INT, OPTION(prefix), 0, 1 << 20, "0", "N", NULL,
     "a prompt of N tokens twice: the second one's share of the first one's time; 0 = not", false},
    {"speculation", 0, CONFIG_BOOL, OPTION(speculation), 0, 0, NULL, NULL, NULL,
     "generate without and with prompt lookup too: tokens/s, drafted and accepted tokens", false},
    {"repeats", 'r', CONFIG_INT, OPTION(repeats), 1, 1000, "3", "N", NULL,
     "counted runs of each test, after a warm-up", false},
    {"threads", 't', CONFIG_INT, OPTION(threads), 0, 1024, "0", "N", NULL,
     "threads of a rank; 0 = the processors shared out over groups and slots", false},
    {"kernels", 0, CONFIG_STRING, OPTION(kernels), 0, 0, NULL, "NAME", NULL,
     "kernel set (default: the fastest here)", false},
    {"stages", 's', CONFIG_INT, OPTION(stages), 1, 256, "1", "P", NULL,
     "pipeline stages; more than one starts a real group", false},
    {"tensor", 0, CONFIG_INT, OPTION(tensor), 1, 256, "1", "T", NULL,
     "tensor slots of a stage; more than one starts a real group", false},
    {"kv_type", 0, CONFIG_STRING, OPTION(kv_type), 0, 0, NULL, "TYPE", NULL,
     "element type of the KV cache (default: the worker's)", false},
    {"step_tokens", 0, CONFIG_INT, OPTION(step_tokens), 0, 65536, "0", "N", NULL,
     "rows of one step; 0 = the worker's default", false},
    {"json", 'j', CONFIG_BOOL, OPTION(json), 0, 0, NULL, NULL, NULL, "print one JSON object", false},
    MODELS_OPTION(struct engine_settings),
};

const struct config_table bench_engine_table = {
    .program = "lepton bench engine",
    .arguments = "MODEL [-- WORKER-OPTION...]",
    .about =
        "Measures prompt processing (pp512: a prompt of 512 random tokens until its first token), generation "
        "(tg128: tokens of all streams together from when all generate until the first ends), load time and "
        "memory, "
        "beside the limits of the machine in the same run. One rank runs inside this program, behind the "
        "mailbox that the "
        "link uses; more stages start a whole group as `lepton run` does. Method: one warm-up, then the "
        "median of the "
        "counted runs; the spread is (highest - lowest) / median. Prompts differ from run to run, so that no "
        "cache helps. A "
        "fraction is of the limit that binds: bytes of weights and KV read against the best read rate of the "
        "run, or operations of "
        "the matrices against the peak of the type's arithmetic. Idle is the share of the processors' "
        "time in which they computed no step; bubbles that of the stages' time in which they ran none "
        "though no other stage had their processors (how long each waits stands beside it); both over "
        "the counted runs with their prompts, beginning and end.",
    .after = "examples:\n"
             "  lepton synth tl.gguf && lepton bench engine tl.gguf -p 512,2048 -n 128 -b 1,2,4,8,16,32\n"
             "  lepton bench engine model.gguf --stages 2 -b 8,32 --json\n"
             "  lepton bench engine model.gguf -p 0 -b 1,4 --speculation\n",
    .min_arguments = 1,
    .max_arguments = 1 + MOST_WORDS,
    .options = options,
    .option_count = ARRAY_LEN(options),
    .settings_bytes = sizeof(struct engine_settings),
};

struct numbers {
    int32_t value[MOST_NUMBERS];
    int count;
};

struct bench_run {
    const struct engine_settings *s;
    struct bench_target *target;
    struct bench_report report;
    struct numbers prompts, batches;
    uint64_t next_prompt; /* every run has prompts of its own */
    bool energy;
    struct bench_energy counter;
    struct stage_time before[STEP_MAX_STAGES]; /* of each stage, when the counted runs of a test began */
};

/* "512,2048": zeros are left out. */
static int read_numbers(struct numbers *out, const char *option, const char *text, struct err *err)
{
    for (const char *at = text; *at;) {
        char *end;
        long n = strtol(at, &end, 10);
        if (end == at || n < 0 || n > 1 << 20 || (*end && *end != ',') || (*end && !end[1]))
            return err_set(err, "--%s: expected numbers from 0 to %d with commas between, found \"%s\"",
                           option, 1 << 20, text);
        if (n > 0 && out->count == MOST_NUMBERS)
            return err_set(err, "--%s: more than %d numbers", option, MOST_NUMBERS);
        if (n > 0)
            out->value[out->count++] = (int32_t)n;
        at = *end ? end + 1 : end;
    }
    return 0;
}

static int32_t largest(const struct numbers *n, int32_t least)
{
    for (int i = 0; i < n->count; i++)
        if (n->value[i] > least)
            least = n->value[i];
    return least;
}

/* Prompts of a large batch are processed in several steps, and the streams that are ready go on meanwhile: so
 * many tokens more, for all to generate together for `tokens` steps. */
static int32_t tokens_asked(const struct engine_settings *s, int32_t batch)
{
    return (int32_t)(s->tokens + 1 + (batch > 1 ? batch * s->start / 96 + 2 : 0));
}

/* ---- the model's work ---- */

static bool name_is(const struct gguf_tensor *t, const char *name)
{
    return t->name.size == strlen(name) && memcmp(t->name.data, name, t->name.size) == 0;
}

/* Bytes and operations of one token, from the file: every matrix but the embeddings, which cost a row. */
static int read_work(struct bench_work *w, const struct gguf *g, struct err *err)
{
    struct model_params p;
    uint64_t bytes_of[DTYPE_COUNT] = {0};
    if (model_params_read(&p, g, err))
        return -1;
    bool tied = !gguf_tensor_find(g, "output.weight");
    for (uint64_t i = 0; i < gguf_tensor_count(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        double elements = 1, bytes = (double)t->bytes;
        for (int d = 0; d < t->ndim; d++)
            elements *= (double)t->dim[d];
        w->file_bytes += t->bytes;
        bool head = name_is(t, "output.weight") || (tied && name_is(t, "token_embd.weight"));
        bool embedding = name_is(t, "token_embd.weight") || name_is(t, "position_embd.weight");
        if (t->ndim < 2 || (embedding && !head))
            continue;
        if (t->ndim == 3) { /* experts: those that a token uses */
            elements *= (double)p.experts_used / (double)p.experts;
            bytes *= (double)p.experts_used / (double)p.experts;
        }
        bytes_of[t->dtype] += t->bytes;
        w->bytes += bytes;
        w->ops += 2 * elements;
        if (head)
            w->head_ops += 2 * elements;
    }
    for (int d = 0; d < DTYPE_COUNT; d++)
        if (bytes_of[d] > bytes_of[w->type])
            w->type = (enum dtype)d;
    w->context = p.context;
    w->kv_elements = 2.0 * (double)p.layers * (double)p.kv_heads * (double)p.head_length;
    model_params_release(&p);
    return 0;
}

/* ---- tests ---- */

static void energy_begin(struct bench_run *b)
{
    b->energy = bench_energy_begin(&b->counter);
}

/* ---- what a test took each stage */

static int stages_begin(struct bench_run *b, struct err *err)
{
    int stages = 0;
    memset(b->before, 0, sizeof(b->before));
    return b->target->times(b->target, b->before, &stages, err);
}

/* Since stages_begin, into the row. */
static int stages_end(struct bench_run *b, struct bench_row *row, struct err *err)
{
    row->stages = xcalloc(STEP_MAX_STAGES, sizeof(*row->stages));
    if (b->target->times(b->target, row->stages, &row->stage_count, err)) {
        free(row->stages);
        return -1;
    }
    for (int i = 0; i < row->stage_count; i++) {
        row->stages[i].busy_us -= b->before[i].busy_us;
        row->stages[i].wait_us -= b->before[i].wait_us;
        row->stages[i].bubble_us -= b->before[i].bubble_us;
        row->stages[i].processor_us -= b->before[i].processor_us;
    }
    return 0;
}

static int measure_prompt(struct bench_run *b, int32_t tokens, struct err *err)
{
    double *rates = xcalloc((size_t)b->s->repeats, sizeof(*rates)), joules = 0;
    uint64_t arrival;
    int code = 0;
    for (int64_t r = -1; r < b->s->repeats && code == 0; r++) {
        struct bench_stream q = {.prompt = b->next_prompt++,
                                 .prompt_tokens = tokens < b->report.work.context ? tokens : tokens - 1,
                                 .max_tokens = 1,
                                 .token_us = &arrival};
        if (r == 0 && (code = stages_begin(b, err)))
            break;
        energy_begin(b);
        code = b->target->run(b->target, &q, 1, err);
        if (r < 0 || code)
            continue;
        rates[r] = (double)q.prompt_tokens * 1e6 / (double)(q.prefill_us ? q.prefill_us : 1);
        joules += b->energy ? bench_energy_joules(&b->counter) / q.prompt_tokens : 0;
    }
    struct bench_row row = {.batch = 1, .tokens_per_step = tokens, .sampled_per_step = 1};
    snprintf(row.test, sizeof(row.test), "pp%d", tokens);
    code = code ? code : stages_end(b, &row, err);
    if (code == 0)
        bench_report_add(&b->report, &row, rates, b->s->repeats, joules / (double)b->s->repeats);
    free(rates);
    return code;
}

/* Tokens per second of all streams between the moment when all of them generate and the end of the first. */
static double batch_rate(const struct bench_stream *streams, int32_t batch)
{
    uint64_t begun_us = 0, over_us = UINT64_MAX;
    for (int32_t i = 0; i < batch; i++) {
        const struct bench_stream *q = &streams[i];
        if (q->token_us[0] > begun_us)
            begun_us = q->token_us[0];
        if (q->token_us[q->tokens - 1] < over_us)
            over_us = q->token_us[q->tokens - 1];
    }
    int64_t count = 0;
    for (int32_t i = 0; i < batch; i++)
        for (int32_t t = 0; t < streams[i].tokens; t++)
            count += streams[i].token_us[t] > begun_us && streams[i].token_us[t] <= over_us;
    return over_us > begun_us ? (double)count * 1e6 / (double)(over_us - begun_us) : 0;
}

/* Streams that generate together, and the memory for what comes of them. */
struct batch {
    int32_t count, asked; /* tokens of each */
    struct bench_stream *streams;
    uint64_t *arrivals;
};

static void batch_open(struct batch *t, const struct engine_settings *s, int32_t count)
{
    t->count = count;
    t->asked = tokens_asked(s, count);
    t->streams = xcalloc((size_t)count, sizeof(*t->streams));
    t->arrivals = xcalloc((size_t)count * (size_t)t->asked, sizeof(*t->arrivals));
}

static void batch_close(struct batch *t)
{
    free(t->streams);
    free(t->arrivals);
}

/* One run, over prompts from `prompt` on; *rate = its tokens per second, 0 where they never ran together. */
static int batch_once(struct bench_run *b, struct batch *t, uint64_t prompt, enum speculation how,
                      double *rate, struct err *err)
{
    for (int32_t i = 0; i < t->count; i++)
        t->streams[i] = (struct bench_stream){.prompt = prompt + (uint64_t)i,
                                              .prompt_tokens = (int32_t)b->s->start,
                                              .max_tokens = t->asked,
                                              .speculation = how,
                                              .token_us = t->arrivals + (size_t)i * (size_t)t->asked};
    if (b->target->run(b->target, t->streams, t->count, err))
        return -1;
    *rate = batch_rate(t->streams, t->count);
    return 0;
}

/* As batch_once(). Of a group on a busy host all tokens may be read in one microsecond: that run is repeated.
 */
static int batch_run(struct bench_run *b, struct batch *t, uint64_t prompt, enum speculation how,
                     double *rate, struct err *err)
{
    enum { TRIES = 5 };
    for (int i = 0; i < TRIES; i++) {
        if (batch_once(b, t, prompt, how, rate, err))
            return -1;
        if (*rate > 0)
            return 0;
    }
    return err_set(err, "%d streams of %lld tokens never ran together: expected a larger -n", t->count,
                   (long long)b->s->tokens);
}

static int measure_batch(struct bench_run *b, int32_t count, struct err *err)
{
    const struct engine_settings *s = b->s;
    double *rates = xcalloc((size_t)s->repeats, sizeof(*rates)), joules = 0;
    struct batch t;
    int code = 0;
    batch_open(&t, s, count);
    for (int64_t r = -1; r < s->repeats && code == 0; r++) {
        double rate = 0;
        if (r == 0 && (code = stages_begin(b, err)))
            break;
        energy_begin(b);
        code = batch_run(b, &t, b->next_prompt, SPECULATION_DEFAULT, &rate, err);
        b->next_prompt += (uint64_t)count;
        if (r < 0 || code)
            continue;
        joules += b->energy ? bench_energy_joules(&b->counter) / ((double)count * t.asked) : 0;
        rates[r] = rate;
    }
    struct bench_row row = {.batch = count,
                            .tokens_per_step = count,
                            .sampled_per_step = count,
                            .context = (double)s->start + (double)t.asked / 2};
    snprintf(row.test, sizeof(row.test), "tg%lld", (long long)s->tokens);
    code = code ? code : stages_end(b, &row, err);
    if (code == 0)
        bench_report_add(&b->report, &row, rates, s->repeats, joules / (double)s->repeats);
    free(rates);
    batch_close(&t);
    return code;
}

/* Each counted run twice, over the same prompts: the tokens are the same, with drafts and without. */
static int measure_lookup(struct bench_run *b, int32_t count, struct err *err)
{
    int64_t repeats = b->s->repeats;
    double *off = xcalloc((size_t)repeats, sizeof(*off)), *on = xcalloc((size_t)repeats, sizeof(*on));
    struct bench_lookup lookup = {.batch = count};
    struct batch t;
    int code = 0;
    batch_open(&t, b->s, count);
    for (int64_t r = -1; r < repeats && code == 0; r++) {
        double without = 0, with = 0;
        code = batch_run(b, &t, b->next_prompt, SPECULATION_OFF, &without, err) ||
                       batch_run(b, &t, b->next_prompt, SPECULATION_NGRAM, &with, err)
                   ? -1
                   : 0;
        b->next_prompt += (uint64_t)count;
        if (r < 0 || code)
            continue;
        off[r] = without;
        on[r] = with;
        for (int32_t i = 0; i < count; i++) {
            lookup.drafted += t.streams[i].drafted;
            lookup.accepted += t.streams[i].accepted;
            lookup.tokens += (uint64_t)t.streams[i].tokens;
        }
    }
    snprintf(lookup.test, sizeof(lookup.test), "tg%lld", (long long)b->s->tokens);
    if (code == 0)
        bench_report_add_lookup(&b->report, &lookup, off, on, repeats);
    free(off);
    free(on);
    batch_close(&t);
    return code;
}

static int measure_prefix(struct bench_run *b, struct err *err)
{
    int64_t repeats = b->s->repeats;
    double *first = xcalloc((size_t)repeats, sizeof(double)),
           *second = xcalloc((size_t)repeats, sizeof(double));
    uint64_t arrival;
    int code = 0;
    for (int64_t r = -1; r < repeats && code == 0; r++) {
        uint64_t prompt = b->next_prompt++;
        for (int again = 0; again < 2 && code == 0; again++) {
            struct bench_stream q = {.prompt = prompt,
                                     .prompt_tokens = (int32_t)b->s->prefix,
                                     .max_tokens = 1,
                                     .token_us = &arrival};
            code = b->target->run(b->target, &q, 1, err);
            if (r >= 0)
                (again ? second : first)[r] = (double)q.prefill_us / 1e3;
        }
    }
    if (code == 0) {
        b->report.prefix_tokens = b->s->prefix;
        b->report.prefix_first_ms = bench_summarise(first, repeats).median;
        b->report.prefix_second_ms = bench_summarise(second, repeats).median;
    }
    free(first);
    free(second);
    return code;
}

/* One token of one token: the load is over when something came out. */
static int measure_first_token(struct bench_run *b, struct err *err)
{
    uint64_t arrival;
    struct bench_stream q = {
        .prompt = b->next_prompt++, .prompt_tokens = 2, .max_tokens = 1, .token_us = &arrival};
    if (b->target->run(b->target, &q, 1, err))
        return -1;
    b->report.load_ms = (double)b->target->load_us / 1e3;
    b->report.first_token_ms = b->report.load_ms + (double)(q.over_us - q.sent_us) / 1e3;
    return 0;
}

static int measure_all(struct bench_run *b, struct err *err)
{
    if (measure_first_token(b, err))
        return -1;
    for (int i = 0; i < b->prompts.count; i++)
        if (measure_prompt(b, b->prompts.value[i], err))
            return -1;
    for (int i = 0; i < b->batches.count && b->s->tokens > 0; i++)
        if (measure_batch(b, b->batches.value[i], err))
            return -1;
    for (int i = 0; i < b->batches.count && b->s->tokens > 0 && b->s->speculation; i++)
        if (measure_lookup(b, b->batches.value[i], err))
            return -1;
    if (b->s->prefix > 0 && measure_prefix(b, err))
        return -1;
    return b->target->resident(b->target, &b->report.resident_bytes, &b->report.anonymous_bytes, err);
}

/* ---- the run ---- */

static int measure_limits(struct bench_run *b, bool kernels, struct err *err)
{
    struct device *device = NULL;
    struct device_options how = {.threads = b->report.limit_threads,
                                 .kernels = b->s->kernels ? b->s->kernels : "auto"};
    int repeats = b->s->repeats < 5 ? 5 : (int)b->s->repeats;
    if (device_open(&device, "cpu", &how, err))
        return -1;
    b->report.limit_threads = device_threads(device);
    int code = bench_limits_measure(device, repeats, &b->report.limits, err);
    if (code == 0 && kernels)
        code = bench_limits_kernels(device, repeats, &b->report.limits, err);
    device_close(&device);
    return code;
}

static int open_target(struct bench_run *b, const char *const *words, struct err *err)
{
    const struct engine_settings *s = b->s;
    const char *arguments[MOST_WORDS + 8] = {NULL};
    char step_tokens[24];
    int n = 0;
    if (s->kernels)
        arguments[n++] = "--kernels", arguments[n++] = s->kernels;
    if (s->kv_type)
        arguments[n++] = "--kv-type", arguments[n++] = s->kv_type;
    if (s->step_tokens) {
        snprintf(step_tokens, sizeof(step_tokens), "%lld", (long long)s->step_tokens);
        arguments[n++] = "--step-tokens", arguments[n++] = step_tokens;
    }
    for (int i = 1; words[i]; i++)
        arguments[n++] = words[i];
    int32_t batch = largest(&b->batches, 1), context = largest(&b->prompts, (int32_t)s->prefix) + 1;
    int32_t generated = (int32_t)s->start + tokens_asked(s, batch);
    if (generated > context)
        context = generated;
    else if (context == b->report.work.context + 1)
        context--; /* a prompt as long as the context gives its last position to the token that is drawn */
    struct bench_target_options o = {.model = words[0],
                                     .models = s->models,
                                     .worker_arguments = arguments,
                                     .stages = (int)s->stages,
                                     .tensor = (int)s->tensor,
                                     .threads = (int)s->threads,
                                     .context = context,
                                     .max_sequences = batch};
    return s->stages * s->tensor > 1 ? bench_group_open(&b->target, &o, err)
                                     : bench_rank_open(&b->target, &o, err);
}

static int read_model(struct bench_run *b, const char *word, struct err *err)
{
    struct registry_model source = {0};
    struct gguf *gguf = NULL;
    int code = registry_find(&source, b->s->models, word, VERIFY_NEVER, err) ||
                       registry_open(&gguf, &source, 0, err) || read_work(&b->report.work, gguf, err)
                   ? -1
                   : 0;
    gguf_close(&gguf);
    registry_release(&source);
    return code;
}

static int run(struct bench_run *b, const char *const *words, struct err *err)
{
    const struct engine_settings *s = b->s;
    if (read_numbers(&b->prompts, "prompts", s->prompts, err) ||
        read_numbers(&b->batches, "batches", s->batches, err)) {
        err->code = EXIT_USAGE;
        return -1;
    }
    b->report.model = words[0];
    b->report.stages = (int)s->stages;
    b->report.tensor = (int)s->tensor;
    b->report.threads = (int)s->threads;
    b->report.repeats = s->repeats;
    b->report.limit_threads = (int)(s->threads * s->stages * s->tensor); /* 0 = all that there are */
    if (b->report.limit_threads > sysconf(_SC_NPROCESSORS_ONLN))
        b->report.limit_threads = 0;
    if (read_model(b, words[0], err) || measure_limits(b, true, err) || open_target(b, words, err))
        return -1;
    snprintf(b->report.kernel_set, sizeof(b->report.kernel_set), "%s", b->target->kernel_set);
    b->report.kv_budget_bytes = b->target->kv_bytes;
    const struct dtype_info *kv = dtype_info(b->target->kv_type);
    b->report.kv_element_bytes = (double)kv->block_bytes / (double)kv->block_elements;
    int code = measure_all(b, err);
    b->report.energy = b->energy;
    b->target->close(b->target);
    return code ? code : measure_limits(b, false, err);
}

int command_bench_engine(int argc, char **argv)
{
    struct engine_settings s;
    struct bench_run b = {.s = &s, .next_prompt = 1};
    struct err err = {0};
    const char *words[2 + MOST_WORDS] = {NULL};
    config_main(&bench_engine_table, &s, argc, argv, words, 1 + MOST_WORDS);
    int code = run(&b, words, &err) ? (err.code == EXIT_USAGE ? EXIT_USAGE : EXIT_FAILED) : EXIT_OK;
    if (code != EXIT_OK)
        fprintf(stderr, "lepton bench engine: %s\n", err.message);
    else if (s.json)
        bench_report_json(&b.report);
    else
        bench_report_text(&b.report);
    bench_report_release(&b.report);
    config_release(&bench_engine_table, &s);
    return code;
}
