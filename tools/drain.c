/* lepton drain, lepton undrain: whoever runs the cluster takes a group out of service, and puts it back: it
 * gets no new work, what it runs goes on at others where they have room, and it stays up. The coordinator
 * decides what is allowed, and keeps the word for the group's name: a job that starts again under it gets no
 * work either. */
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "tools/client.h"
#include "tools/command.h"

#define ANSWER_MS 5000
#define LOOK_MS   100
#define MOST      64 /* groups of one call */

struct drain_settings {
    struct client_settings client;
    int64_t wait_ms;
};

static const struct config_option drain_options[] = {
    CLIENT_OPTIONS(struct drain_settings, client),
    {.name = "wait_ms",
     .kind = CONFIG_INT,
     .offset = offsetof(struct drain_settings, wait_ms),
     .standard = "0",
     .max = 86400000,
     .value = "N",
     .help = "Wait so many milliseconds for the groups to run nothing any more; 0: return at once."},
};
static const struct config_option undrain_options[] = {CLIENT_OPTIONS(struct drain_settings, client)};

#define EXIT_CODES                                                                                           \
    "exit codes:\n  0 done   1 refused, or work was left after wait_ms   2 wrong usage   3 the coordinator " \
    "could "                                                                                                 \
    "not be\n  reached\n"

static const struct config_table drain_table = {
    .program = "lepton drain",
    .arguments = "GROUP...",
    .about =
        "Takes groups out of service: they get no new work, and what they run goes on at other groups where "
        "there "
        "is room, the rest ends there. They stay up, and `lepton status` shows them as held, until lepton "
        "undrain. The key must be named in the coordinator's option admins.",
    .after = "examples:\n  lepton drain --wait-ms 60000 node-a && ssh node-a reboot\n" EXIT_CODES,
    .max_arguments = MOST,
    .options = drain_options,
    .option_count = ARRAY_LEN(drain_options),
    .settings_bytes = sizeof(struct drain_settings),
};
static const struct config_table undrain_table = {
    .program = "lepton undrain",
    .arguments = "GROUP...",
    .about = "Puts groups back into service that lepton drain took out of it. The key must be named in the "
             "coordinator's option admins.",
    .after = EXIT_CODES,
    .max_arguments = MOST,
    .options = undrain_options,
    .option_count = ARRAY_LEN(undrain_options),
    .settings_bytes = sizeof(struct drain_settings),
};

/* Sequences that the groups still run; lost ones run none. */
static uint64_t work_left(const struct wire_status_reply *s, const char *const *groups, int count)
{
    uint64_t left = 0;
    for (uint32_t i = 0; i < s->group_count; i++)
        for (int k = 0; k < count; k++)
            if (wire_str_is(s->groups[i].group, groups[k]))
                left += s->groups[i].assigned;
    return left;
}

static int wait_empty(struct client *client, const char *const *groups, int count, uint64_t wait_ms,
                      struct err *err)
{
    uint64_t end_ms = clock_now_ms() + wait_ms, left;
    for (;;) {
        struct wire_message reply;
        if (client_status(client, false, ANSWER_MS, &reply, err))
            return -1;
        left = work_left(&reply.status_reply, groups, count);
        wire_release(&reply);
        if (left == 0 || wait_ms == 0)
            return 0;
        if (clock_now_ms() >= end_ms)
            return err_set_code(err, 408, "%llu sequences run there still after %llu ms",
                                (unsigned long long)left, (unsigned long long)wait_ms);
        clock_sleep_ms(LOOK_MS);
    }
}

static int change(const struct config_table *table, bool release, int argc, char **argv)
{
    struct drain_settings s;
    struct client *client = NULL;
    const char *words[MOST];
    struct err err = {0};
    int code = EXIT_USAGE, count = config_main(table, &s, argc, argv, words, MOST);
    struct wire_message m;
    wire_init(&m, WIRE_HOLD);
    m.hold.release = release;
    if (count == 0)
        err_set(&err, "expected the names of groups, as lepton status shows them");
    for (int i = 0; i < count; i++)
        if (!wire_id_valid(wire_string(words[i])))
            count = err_set(&err, "\"%.80s\": expected the name of a group", words[i]);
    if (count <= 0)
        goto out;
    code = EXIT_UNREACHABLE;
    if (client_open(&client, &s.client, ANSWER_MS, &err)) {
        code = err.code ? EXIT_UNREACHABLE : EXIT_FAILED;
        goto out;
    }
    for (int i = 0; i < count; i++) {
        m.hold.group = wire_string(words[i]);
        if (client_ask(client, &m, ANSWER_MS, &err))
            goto out;
    }
    if (!release && wait_empty(client, words, count, (uint64_t)s.wait_ms, &err))
        goto out;
    code = EXIT_OK;
out:
    if (code == EXIT_UNREACHABLE && err.code && err.code != 503)
        code = EXIT_FAILED;
    if (code != EXIT_OK)
        fprintf(stderr, "%s: %s\n", table->program, err.message);
    client_close(&client);
    config_release(table, &s);
    return code;
}

int command_drain(int argc, char **argv)
{
    return change(&drain_table, false, argc, argv);
}

int command_undrain(int argc, char **argv)
{
    return change(&undrain_table, true, argc, argv);
}
