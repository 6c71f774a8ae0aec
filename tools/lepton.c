/* The main of `lepton`: picks the subcommand and hands it the rest of the command line. It knows no
 * subcommand's options and does no work of its own. */
#include "tools/command.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

struct command {
    const char *name;
    const char *about;
    int (*run)(int argc, char **argv);
};

#define COMMAND_ROW(name, about) {#name, about, command_##name},
static const struct command commands[] = {LEPTON_COMMANDS(COMMAND_ROW)};

static const struct command *find(const char *name)
{
    for (size_t i = 0; i < ARRAY_LEN(commands); i++)
        if (strcmp(commands[i].name, name) == 0)
            return &commands[i];
    return NULL;
}

static const char *command_name(const void *context, size_t i)
{
    (void)context;
    return i < ARRAY_LEN(commands) ? commands[i].name : NULL;
}

static void print_help(FILE *out)
{
    fprintf(out, "usage: lepton COMMAND [options]\n\n"
                 "Lepton serves AI models on clusters: a coordinator takes requests and spreads them over\n"
                 "groups of MPI processes, each of which holds a part of the model.\n\ncommands:\n");
    for (size_t i = 0; i < ARRAY_LEN(commands); i++)
        fprintf(out, "  %-12s%s\n", commands[i].name, commands[i].about);
    fprintf(out, "\n`lepton COMMAND --help` explains the options of a command; `lepton --version` shows the "
                 "version.\n\n"
                 "exit codes:\n"
                 "  0    done\n"
                 "  1    the work failed; standard error says why\n"
                 "  2    wrong usage\n"
                 "  3    the coordinator or a group could not be reached, or was lost\n"
                 "  130  ended by Ctrl-C\n");
}

/* Output that never arrived (a full disk) must not look like success. */
static int finish(int code)
{
    if ((fflush(stdout) != 0 || ferror(stdout)) && code == EXIT_OK) {
        fprintf(stderr, "lepton: standard output: %s\n", strerror(errno));
        return EXIT_FAILED;
    }
    return code;
}

static int unknown(const char *name)
{
    const char *near = config_nearest(name, command_name, NULL);
    const char *what = name[0] == '-' ? "option" : "command";
    if (near)
        fprintf(stderr, "lepton: \"%s\": unknown %s; did you mean `lepton %s`?\n", name, what, near);
    else
        fprintf(stderr, "lepton: \"%s\": unknown %s; `lepton --help` lists the commands\n", name, what);
    return EXIT_USAGE;
}

int main(int argc, char **argv)
{
    char help_flag[] = "--help";
    if (argc < 2) {
        print_help(stderr);
        return EXIT_USAGE;
    }
    const char *name = argv[1];
    if (strcmp(name, "--version") == 0 || strcmp(name, "-V") == 0) {
        printf("lepton %s\n", LEPTON_VERSION);
        return finish(EXIT_OK);
    }
    bool help = strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0;
    if (help && argc == 2) {
        print_help(stdout);
        return finish(EXIT_OK);
    }
    /* `lepton help run` is `lepton run --help`. */
    const struct command *command = find(help ? argv[2] : name);
    if (!command)
        return unknown(help ? argv[2] : name);
    if (help) {
        char *rest[] = {argv[2], help_flag, NULL};
        return finish(command->run(2, rest));
    }
    return finish(command->run(argc - 1, argv + 1));
}
