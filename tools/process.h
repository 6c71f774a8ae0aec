/* process: child processes of the command line: started in a process group of their own (so that Ctrl-C
 * reaches only us), tied to our life (they are told to end when we die), always waited for with a bound. */
#ifndef LEPTON_TOOLS_PROCESS_H
#define LEPTON_TOOLS_PROCESS_H

#include <sys/types.h>

#include "common/base.h"

struct process {
    pid_t pid;     /* 0 = none */
    int status;    /* of waitpid, once it ended */
    int log_errno; /* why its log has no room even for last words; 0: it has, as far as anybody says */
};

/* Starts argv[0] (a path, or a name on PATH). Standard input is /dev/null; output goes to `log_path`
 * (appended) or, when NULL, stays ours. */
int process_start(struct process *p, char *const argv[], const char *log_path, struct err *err);
/* True while it runs; when it has ended, *p keeps its status and pid becomes 0. */
bool process_running(struct process *p);
/* Waits up to timeout_ms for the end; true when it has ended. */
bool process_wait(struct process *p, uint64_t timeout_ms);
void process_signal(const struct process *p, int signal_number);
/* Asks with `first` and waits, then SIGTERM, then SIGKILL to its whole process group. */
void process_stop(struct process *p, int first, uint64_t patience_ms);
/* The exit code; 128 + signal when a signal ended it. */
int process_exit_code(const struct process *p);
/* Adds to the error that it failed what its log says last (a worker's words before those of who watched it),
 * or why it says nothing. */
void process_last_words(const struct process *p, const char *log_path, struct err *err);

/* Path of a program that lies beside the running one: "lepton-worker" -> "/.../build/release/lepton-worker".
 * free(). */
char *process_sibling(const char *name);
/* True when `name` is found on PATH. */
bool process_on_path(const char *name);

#endif
