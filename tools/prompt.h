/* prompt: the options of a request, shared by every subcommand that sends one: what to ask (prompt or file),
 * how to sample, how the answer is printed. */
#ifndef LEPTON_TOOLS_PROMPT_H
#define LEPTON_TOOLS_PROMPT_H

#include "tools/client.h"

struct prompt_settings {
    char *prompt, *file, *model, *seed;
    int64_t tokens, top_k, timeout_ms, retry_ms, priority, draft_tokens,
        choices; /* choices: 0 where no option is */
    double temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty;
    bool ignore_eos, no_bos, special, json, usage;
    struct config_strings stop;
    char *class;
    char *logit_bias, *logprobs, *speculation, *cache_salt;
    /* what the strings above say, once prompt_fill has read them: what a job's request points to */
    struct wire_stop stops[WIRE_MAX_STOPS];
    struct wire_bias biases[WIRE_MAX_BIASES];
};

#define PROMPT_OPTION(type, member, key, letter_, kind_, low, high, preset, value_, sentence)             \
    {                                                                                                     \
        .name = #key, .letter = letter_, .kind = kind_, .offset = offsetof(type, member.key), .min = low, \
        .max = high, .standard = preset, .value = value_, .help = sentence                                \
    }

/* The rows for a table of options, where `member` of `type` is a struct prompt_settings: what is asked... */
#define PROMPT_TEXT_OPTIONS(type, member)                                                                 \
    PROMPT_OPTION(type, member, prompt, 'p', CONFIG_STRING, 0, 0, NULL, "TEXT", "The text to continue."), \
        PROMPT_OPTION(type, member, file, 'f', CONFIG_STRING, 0, 0, NULL, "PATH",                         \
                      "Read the prompt from a file; - is standard input."),                               \
        PROMPT_OPTION(type, member, model, 'm', CONFIG_STRING, 0, 0, NULL, "NAME",                        \
                      "The model to ask; needed where several are served."),                              \
        PROMPT_OPTION(type, member, no_bos, 0, CONFIG_BOOL, 0, 0, NULL, NULL,                             \
                      "Do not put the model's begin-of-text token in front."),                            \
        PROMPT_OPTION(type, member, special, 0, CONFIG_BOOL, 0, 0, NULL, NULL,                            \
                      "Special tokens written out in the prompt (as \"</s>\") are those tokens, not text.")

/* ...and how it is answered. */
#define PROMPT_REQUEST_OPTIONS(type, member)                                                                 \
    PROMPT_OPTION(type, member, tokens, 'n', CONFIG_INT, 1, 1 << 20, "256", "N",                             \
                  "Most tokens to generate."),                                                               \
        PROMPT_OPTION(type, member, temperature, 0, CONFIG_FLOAT, 0, 100, "1", "T",                          \
                      "Divides the logits; 0 always takes the likeliest token."),                            \
        PROMPT_OPTION(type, member, top_k, 0, CONFIG_INT, 0, INT32_MAX, "0", "K",                            \
                      "Keep this many of the likeliest tokens; 0 keeps all."),                               \
        PROMPT_OPTION(type, member, top_p, 0, CONFIG_FLOAT, 1e-9, 1, "1", "P",                               \
                      "Keep the likeliest tokens up to this probability together."),                         \
        PROMPT_OPTION(type, member, min_p, 0, CONFIG_FLOAT, 0, 1, "0", "P",                                  \
                      "Drop tokens below this share of the likeliest one's probability."),                   \
        PROMPT_OPTION(type, member, repetition_penalty, 0, CONFIG_FLOAT, 0.01, 10, "1", "R",                 \
                      "Divides the logits of tokens that came before; 1 does nothing."),                     \
        PROMPT_OPTION(type, member, presence_penalty, 0, CONFIG_FLOAT, -2, 2, "0", "R",                      \
                      "Subtracted from the logits of tokens that were generated before."),                   \
        PROMPT_OPTION(type, member, frequency_penalty, 0, CONFIG_FLOAT, -2, 2, "0", "R",                     \
                      "The same, once for each time."),                                                      \
        PROMPT_OPTION(type, member, logit_bias, 0, CONFIG_STRING, 0, 0, NULL, "ID=B,...",                    \
                      "Adds B (-100 to 100) to the logit of the token with this id; several with commas."),  \
        PROMPT_OPTION(type, member, stop, 0, CONFIG_STRINGS, 0, 0, NULL, "TEXT",                             \
                      "End the answer before this text; may be given up to 16 times."),                      \
        PROMPT_OPTION(type, member, seed, 0, CONFIG_STRING, 0, 0, NULL, "S",                                 \
                      "Makes the answer repeatable: 0 to 2^63-1; drawn by the coordinator when absent."),    \
        PROMPT_OPTION(type, member, ignore_eos, 0, CONFIG_BOOL, 0, 0, NULL, NULL,                            \
                      "Go on after the model's end-of-text token."),                                         \
        PROMPT_OPTION(type, member, timeout_ms, 0, CONFIG_INT, 0, 86400000, "0", "N",                        \
                      "Deadline in milliseconds; 0 leaves it to the coordinator."),                          \
        PROMPT_OPTION(type, member, retry_ms, 0, CONFIG_INT, 0, 86400000, "30000", "N",                      \
                      "Look so long for a coordinator that was lost; the stream then goes on. 0: do not."),  \
        {.name = "class",                                                                                    \
         .kind = CONFIG_STRING,                                                                              \
         .offset = offsetof(type, member.class),                                                             \
         .standard = "interactive",                                                                          \
         .choices = "realtime|interactive|batch",                                                            \
         .help = "Realtime work may take the place of batch work (docs/scheduling.md)."},                    \
        PROMPT_OPTION(type, member, priority, 0, CONFIG_INT, 0, 1000, "500", "N",                            \
                      "The lower one goes first in its group."),                                             \
        {.name = "speculation",                                                                              \
         .kind = CONFIG_STRING,                                                                              \
         .offset = offsetof(type, member.speculation),                                                       \
         .choices = "ngram|off",                                                                             \
         .help =                                                                                             \
             "Draft tokens from the text so far, or not; left to the group when absent. Changes no token."}, \
        PROMPT_OPTION(type, member, draft_tokens, 0, CONFIG_INT, 0, 64, "0", "N",                            \
                      "Most tokens of one draft; 0 leaves it to the group."),                                \
        PROMPT_OPTION(type, member, cache_salt, 0, CONFIG_STRING, 0, 0, NULL, "TEXT",                        \
                      "Share cached prompts only with requests of ours that give the same."),                \
        PROMPT_OPTION(type, member, usage, 0, CONFIG_BOOL, 0, 0, NULL, NULL,                                 \
                      "Print the request's tokens and times on standard error at the end."),                 \
        PROMPT_OPTION(                                                                                       \
            type, member, json, 'j', CONFIG_BOOL, 0, 0, NULL, NULL,                                          \
            "No streaming; the last line is one JSON object with tokens, text, finish_reason and timings.")

/* What a conversation has no use for. */
#define PROMPT_ANSWER_OPTIONS(type, member)                                            \
    PROMPT_OPTION(type, member, choices, 0, CONFIG_INT, 1, WIRE_MAX_CHOICES, "1", "N", \
                  "How many answers to the prompt."),                                  \
        PROMPT_OPTION(type, member, logprobs, 0, CONFIG_STRING, 0, 0, NULL, "N",       \
                      "Show each token's log-probability, and the N (0 to 20) likeliest ones in its place.")

#define PROMPT_OPTIONS(type, member)                                         \
    PROMPT_TEXT_OPTIONS(type, member), PROMPT_REQUEST_OPTIONS(type, member), \
        PROMPT_ANSWER_OPTIONS(type, member)

/* Reads the prompt that -p or -f names (exactly one of them) into *out; valid UTF-8 within the wire's bound.
 */
int prompt_read(const struct prompt_settings *s, struct buffer *out, struct err *err);
/* Fills job->ask; the settings and *prompt must outlive the job. Text is streamed to standard output unless
 * --json, or several answers are asked for: those are printed one after the other by prompt_report. */
int prompt_fill(struct prompt_settings *s, const struct buffer *prompt, struct client_job *job,
                struct err *err);
/* Ends the output (the JSON line; or a newline, the log-probabilities, the usage), says on standard error why
 * a job failed, and picks the exit code. */
int prompt_report(const char *program, const struct prompt_settings *s, const struct client_job *job,
                  bool interrupted);

/* Blocks SIGINT and SIGTERM and returns a descriptor that tells of them. */
int prompt_open_interrupt(void);

#endif
