/* What became of a request, for people and programs: its figures, its JSON, its exit code. */
#include "tools/client.h"

#include <jansson.h>
#include <stdlib.h>

#include "tools/command.h"

static void release_choice(struct client_choice *c)
{
    for (size_t i = 0; c->logprobs && i < c->token_count; i++) {
        struct client_logprob *l = &c->logprobs[i];
        for (uint32_t k = 0; k < l->top_count; k++)
            free(l->top[k].piece);
        free(l->top);
        free(l->piece);
    }
    free(c->logprobs);
    free(c->tokens);
    buffer_release(&c->text);
}

void client_job_release(struct client_job *job)
{
    for (uint64_t i = 0; job->choice && i < job->ask.sampling.n; i++)
        release_choice(&job->choice[i]);
    free(job->choice);
    job->choice = NULL;
}

double client_job_tokens_per_second(const struct client_job *job)
{
    if (job->token_count < 2 || job->over_us <= job->first_token_us)
        return 0;
    return (double)(job->token_count - 1) * 1e6 / (double)(job->over_us - job->first_token_us);
}

const char *client_job_finish(const struct client_job *job, uint64_t choice)
{
    return job->choice && choice < job->ask.sampling.n ? job->choice[choice].finish_reason : "";
}

int client_job_exit_code(const struct client_job *job)
{
    if (job->error.code == 0)
        return EXIT_OK;
    return job->error.code == 401 || job->error.code == 502 || job->error.code == 503 ? EXIT_UNREACHABLE
                                                                                      : EXIT_FAILED;
}

static json_t *timings_json(const struct client_job *job)
{
    json_t *t = json_object();
    json_object_set_new(t, "queue_ms", json_real((double)job->queue_us / 1e3));
    if (job->first_token_us)
        json_object_set_new(t, "ttft_ms", json_real((double)(job->first_token_us - job->sent_us) / 1e3));
    else
        json_object_set_new(t, "ttft_ms", json_null());
    json_object_set_new(t, "total_ms", json_real((double)(job->over_us - job->sent_us) / 1e3));
    json_object_set_new(t, "tokens_per_second", json_real(client_job_tokens_per_second(job)));
    return t;
}

/* JSON strings of jansson may hold NUL; texts are valid UTF-8 by the wire's rules. */
static json_t *text_json(const char *text, size_t bytes)
{
    return json_stringn(bytes ? text : "", bytes);
}

static json_t *token_json(const char *piece, size_t bytes, uint32_t id, double logprob)
{
    json_t *o = json_object();
    json_object_set_new(o, "token", text_json(piece, bytes));
    json_object_set_new(o, "id", json_integer(id));
    json_object_set_new(o, "logprob", json_real(logprob));
    return o;
}

/* As OpenAI's chat completions write them, with the ids. */
static json_t *logprobs_json(const struct client_choice *c)
{
    json_t *content = json_array();
    for (size_t i = 0; i < c->token_count; i++) {
        const struct client_logprob *l = &c->logprobs[i];
        json_t *o = token_json(l->piece, l->piece_bytes, c->tokens[i], l->logprob), *top = json_array();
        for (uint32_t k = 0; k < l->top_count; k++)
            json_array_append_new(
                top, token_json(l->top[k].piece, l->top[k].piece_bytes, l->top[k].id, l->top[k].logprob));
        json_object_set_new(o, "top_logprobs", top);
        json_array_append_new(content, o);
    }
    return content;
}

static void add_choice(json_t *o, const struct client_choice *c)
{
    json_t *tokens = json_array();
    for (size_t i = 0; i < c->token_count; i++)
        json_array_append_new(tokens, json_integer(c->tokens[i]));
    json_object_set_new(o, "tokens", tokens);
    json_object_set_new(o, "text", text_json((const char *)c->text.data, c->text.size));
    json_object_set_new(o, "finish_reason",
                        c->finish_reason[0] ? json_string(c->finish_reason) : json_null());
    if (c->logprobs)
        json_object_set_new(o, "logprobs", logprobs_json(c));
}

static void add_counts(json_t *o, const struct client_job *job)
{
    const struct {
        const char *name;
        uint64_t value;
    } counts[] = {{"prompt_tokens", job->prompt_tokens},         {"cached_tokens", job->cached_tokens},
                  {"completion_tokens", job->completion_tokens}, {"drafted_tokens", job->drafted_tokens},
                  {"accepted_tokens", job->accepted_tokens},     {"seed", job->seed}};
    for (size_t i = 0; i < ARRAY_LEN(counts); i++)
        json_object_set_new(o, counts[i].name, json_integer((json_int_t)counts[i].value));
}

char *client_job_json(const struct client_job *job)
{
    static const struct client_choice none;
    json_t *o = json_object();
    add_choice(o, job->choice ? &job->choice[0] : &none);
    add_counts(o, job);
    json_object_set_new(o, "group", job->group[0] ? json_string(job->group) : json_null());
    json_object_set_new(o, "stages", json_integer((json_int_t)job->stages));
    json_object_set_new(o, "moves", json_integer((json_int_t)job->moves));
    json_object_set_new(o, "mixed", json_boolean(job->mixed));
    json_object_set_new(o, "resumed", json_integer((json_int_t)job->resumed));
    json_object_set_new(o, "timings", timings_json(job));
    if (job->choice && job->ask.sampling.n > 1) {
        json_t *all = json_array();
        for (uint64_t i = 0; i < job->ask.sampling.n; i++) {
            json_t *one = json_object();
            json_object_set_new(one, "index", json_integer((json_int_t)i));
            add_choice(one, &job->choice[i]);
            json_array_append_new(all, one);
        }
        json_object_set_new(o, "choices", all);
    }
    if (job->error.code != 0) {
        json_t *e = json_object();
        json_object_set_new(e, "code", json_integer(job->error.code));
        json_object_set_new(e, "message", json_string(job->error.message));
        json_object_set_new(o, "error", e);
    }
    char *text = json_dumps(o, JSON_COMPACT | JSON_PRESERVE_ORDER);
    if (!text)
        die("json_dumps failed");
    json_decref(o);
    return text;
}
