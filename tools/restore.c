/* lepton restore: puts a backup in the place of a coordinator's store. */
#include <stdio.h>
#include <stdlib.h>

#include "coordinator/store_copy.h"
#include "tools/command.h"

struct restore_settings {
    char *store;
};

static const struct config_option options[] = {
    {.name = "store",
     .kind = CONFIG_STRING,
     .offset = offsetof(struct restore_settings, store),
     .value = "PATH",
     .help = "The database, as the coordinator's option store names it; always needed."},
};

static const struct config_table table = {
    .program = "lepton restore",
    .arguments = "FILE",
    .about =
        "Puts FILE, which `lepton backup` made, in the place of a coordinator's database. FILE is checked "
        "first; what is in the place is kept beside it, damaged or not. Refused while the coordinator "
        "runs; interrupted, it can be run again, and no coordinator starts before it is done.",
    .after = "What was promised after the backup is forgotten: answers are generated anew. Epochs go on far "
             "above\n"
             "those of the backup, so that none is given twice.\n"
             "exit codes:\n  0 done   1 failed   2 wrong usage\n",
    .min_arguments = 1,
    .max_arguments = 1,
    .options = options,
    .option_count = ARRAY_LEN(options),
    .settings_bytes = sizeof(struct restore_settings),
};

int command_restore(int argc, char **argv)
{
    struct restore_settings s;
    struct store_facts facts;
    struct err err = {0};
    const char *from;
    char *aside = NULL;
    int code = EXIT_USAGE;
    config_main(&table, &s, argc, argv, &from, 1);
    if (!s.store)
        err_set(&err, "--store: expected the path of the coordinator's database");
    else
        code = store_restore(from, s.store, &aside, &facts, &err) ? EXIT_FAILED : EXIT_OK;
    if (code == EXIT_OK)
        printf("%s: restored: run %llu, %llu answers, epochs above %llu%s%s\n", s.store,
               (unsigned long long)facts.runs, (unsigned long long)facts.answers,
               (unsigned long long)facts.epoch_ceiling, aside ? "; what was there is " : "",
               aside ? aside : "");
    else
        fprintf(stderr, "lepton restore: %s\n", err.message);
    free(aside);
    config_release(&table, &s);
    return code;
}
