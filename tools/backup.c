/* lepton backup: a copy of a coordinator's store, taken while it runs, and checked. */
#include <stdio.h>

#include "coordinator/store_copy.h"
#include "tools/command.h"

struct backup_settings {
    char *store;
};

static const struct config_option options[] = {
    {.name = "store",
     .kind = CONFIG_STRING,
     .offset = offsetof(struct backup_settings, store),
     .value = "PATH",
     .help = "The database, as the coordinator's option store names it; always needed."},
};

static const struct config_table table = {
    .program = "lepton backup",
    .arguments = "FILE",
    .about = "Copies what a coordinator keeps on its disk to a new FILE, on the coordinator's host, while it "
             "runs or "
             "not: everything that was acknowledged before, as of one moment. The copy is synchronised, read "
             "again and checked before it gets its name; it is never written over another file.",
    .after =
        "It holds a read transaction: the coordinator goes on, but its log grows until the copy is done.\n"
        "exit codes:\n  0 done   1 failed: there is no FILE   2 wrong usage\n",
    .min_arguments = 1,
    .max_arguments = 1,
    .options = options,
    .option_count = ARRAY_LEN(options),
    .settings_bytes = sizeof(struct backup_settings),
};

int command_backup(int argc, char **argv)
{
    struct backup_settings s;
    struct store_facts facts;
    struct err err = {0};
    const char *to;
    int code = EXIT_USAGE;
    config_main(&table, &s, argc, argv, &to, 1);
    if (!s.store)
        err_set(&err, "--store: expected the path of the coordinator's database");
    else
        code = store_backup(s.store, to, &facts, &err) ? EXIT_FAILED : EXIT_OK;
    if (code == EXIT_OK)
        printf("%s: layout %llu, run %llu, %llu answers; checked\n", to, (unsigned long long)facts.version,
               (unsigned long long)facts.runs, (unsigned long long)facts.answers);
    else
        fprintf(stderr, "lepton backup: %s\n", err.message);
    config_release(&table, &s);
    return code;
}
