/* command: the subcommands of `lepton`, one file each. Exit codes: 0 done, 1 the work failed (message on
 * standard error), 2 wrong usage, 3 the coordinator or a group could not be reached or was lost, 130 ended by
 * Ctrl-C. */
#ifndef LEPTON_TOOLS_COMMAND_H
#define LEPTON_TOOLS_COMMAND_H

#include "common/config.h"

#define EXIT_OK          0
#define EXIT_FAILED      1
#define EXIT_USAGE       2
#define EXIT_UNREACHABLE 3
#define EXIT_INTERRUPTED 130

/* Each takes its own argv (argv[0] = the subcommand's name) and returns an exit code. */
int command_devices(int argc, char **argv);
int command_generate(int argc, char **argv);
int command_group(int argc, char **argv);
int command_inspect(int argc, char **argv);
int command_keygen(int argc, char **argv);
int command_perplexity(int argc, char **argv);
int command_run(int argc, char **argv);
int command_status(int argc, char **argv);
int command_synth(int argc, char **argv);
int command_tokenize(int argc, char **argv);
int command_version(int argc, char **argv);

#endif
