/* lepton audit: the audit log of a coordinator's store, and whether its chain of hashes is whole. */
#include <inttypes.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "coordinator/store.h"
#include "tools/command.h"

struct audit_settings {
    char *store;
    bool last;
};

static const struct config_option options[] = {
    {.name = "store",
     .kind = CONFIG_STRING,
     .offset = offsetof(struct audit_settings, store),
     .value = "PATH",
     .help = "The database, as the coordinator's option store names it, or a backup of it; always needed."},
    {.name = "last",
     .kind = CONFIG_BOOL,
     .offset = offsetof(struct audit_settings, last),
     .help = "Print only the number and the hash of the last row, to be kept elsewhere."},
};

static const struct config_table table = {
    .program = "lepton audit",
    .about = "Shows the audit log of a coordinator, while it runs or not: who was refused, cut, or changed "
             "something. "
             "Each row's hash covers the row and the hash before it; a chain that is broken is told.",
    .after =
        "columns:\n  row, time (UTC), kind, who, what happened\n"
        "exit codes:\n  0 shown, the chain is whole   1 it is broken, or cannot be read   2 wrong usage\n",
    .options = options,
    .option_count = ARRAY_LEN(options),
    .settings_bytes = sizeof(struct audit_settings),
};

struct view {
    bool quiet;
    uint64_t last;
    uint8_t hash[STORE_AUDIT_HASH];
};

static void show(void *context, const struct store_audit *row)
{
    struct view *v = context;
    time_t seconds = (time_t)(row->at_ms / 1000);
    struct tm utc;
    char when[32];
    v->last = row->sequence;
    memcpy(v->hash, row->hash, sizeof(v->hash));
    if (v->quiet)
        return;
    gmtime_r(&seconds, &utc);
    strftime(when, sizeof(when), "%Y-%m-%dT%H:%M:%S", &utc);
    printf("%" PRIu64 "\t%s.%03dZ\t%s\t%s\t%s\n", row->sequence, when, (int)(row->at_ms % 1000), row->kind,
           row->who, row->what);
}

int command_audit(int argc, char **argv)
{
    struct audit_settings s;
    struct err err = {0};
    uint64_t broken = 0;
    int code = EXIT_USAGE;
    config_main(&table, &s, argc, argv, NULL, 0);
    struct view view = {.quiet = s.last};
    if (!s.store)
        err_set(&err, "--store: expected the path of the coordinator's database");
    else if (store_audit_read(s.store, show, &view, &broken, &err))
        code = EXIT_FAILED;
    else
        code = EXIT_OK;
    if (code == EXIT_OK && s.last) {
        char hex[2 * STORE_AUDIT_HASH + 1];
        sodium_bin2hex(hex, sizeof(hex), view.hash, sizeof(view.hash));
        printf("%" PRIu64 " %s\n", view.last, hex);
    }
    if (code == EXIT_OK && broken) {
        err_set(&err, "the chain is broken: row %" PRIu64 " does not follow from the one before it", broken);
        code = EXIT_FAILED;
    }
    if (code != EXIT_OK)
        fprintf(stderr, "lepton audit: %s\n", err.message);
    config_release(&table, &s);
    return code;
}
