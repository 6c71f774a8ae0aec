/* The streaming core of the commands that ask a coordinator for text: any number of prompts at once over one
 * connection (common/client.h). A stream that lost its coordinator goes on behind what it has had, over a new
 * connection. One thread. */
#ifndef LEPTON_TOOLS_CLIENT_H
#define LEPTON_TOOLS_CLIENT_H

#include "common/client.h"

/* What else might have stood in a token's place. */
struct client_alternative {
    uint32_t id;
    double logprob;
    char *piece; /* the token's text alone */
    size_t piece_bytes;
};

/* The log-probability of one token, when it was asked for. */
struct client_logprob {
    double logprob;
    char *piece;
    size_t piece_bytes;
    struct client_alternative *top; /* [top_count] */
    uint32_t top_count;
};

/* One answer to a prompt. */
struct client_choice {
    uint32_t *tokens;
    struct client_logprob *logprobs; /* [token_count], or NULL */
    size_t token_count;
    struct buffer text;
    bool over;
    char finish_reason[16];
};

/* One prompt and what became of it. */
struct client_job {
    struct wire_generate ask; /* wire_init'ed; the request id is chosen here */
    /* Called for every piece of text as it comes, the rest at the end included; may be NULL. */
    void (*on_text)(struct client_job *job, uint64_t choice, const char *text, size_t bytes);
    void (*on_token)(struct client_job *job); /* called for every token, with or without text; may be NULL */
    void *context;                            /* the caller's */
    /* the result */
    bool over;
    struct err error;             /* code 0: it went well */
    struct client_choice *choice; /* [ask.sampling.n], from client_generate_many on */
    size_t token_count;           /* of all choices */
    char group[WIRE_MAX_ID + 1];
    uint64_t numeric;       /* of the first token: names the numeric class */
    uint64_t began_context; /* of the first token: most tokens of a sequence of that group */
    uint64_t resumed;       /* how often it was asked for again after a loss */
    uint64_t epoch, stages, moves, seed, prompt_tokens, cached_tokens;
    bool mixed; /* groups of more than one numeric class generated it */
    uint64_t completion_tokens, drafted_tokens, accepted_tokens; /* of all choices */
    uint64_t queue_us, prefill_us, decode_us;  /* as the cluster measured, of the slowest choice */
    uint64_t sent_us, first_token_us, over_us; /* as we saw it, monotonic; 0 = never */
};

/* Runs all jobs at once until each has its outcome. Returns 0 then, though jobs may have failed (job->error);
 * -1 when the coordinator was lost for good or does not answer: the jobs that were not over carry that error
 * too. A coordinator that is lost is looked for again (client_retry_for), and every stream goes on behind
 * what it has had: nothing comes twice or is missing. *interrupted (may be NULL): they were cancelled through
 * client_interrupt_on. */
int client_generate_many(struct client *c, struct client_job *jobs, size_t count, bool *interrupted,
                         struct err *err);
void client_job_release(struct client_job *job);
double client_job_tokens_per_second(const struct client_job *job); /* 0 for less than two tokens */
/* "stop", "length", "cancelled" of a choice; "" when it did not end well. */
const char *client_job_finish(const struct client_job *job, uint64_t choice);
/* The result as one line of JSON: tokens, text, finish_reason and logprobs (when asked for) of choice 0,
 * prompt_tokens, cached_tokens, completion_tokens, drafted_tokens, accepted_tokens, seed, group, stages,
 * moves, mixed, resumed, timings{queue_ms, ttft_ms, total_ms, tokens_per_second}; with n > 1 choices[] with
 * index and the first four as well; of a failed one error{code, message}. */
char *client_job_json(const struct client_job *job);
/* The exit code that fits how the job ended (tools/command.h). */
int client_job_exit_code(const struct client_job *job);

#endif
