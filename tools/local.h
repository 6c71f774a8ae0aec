/* local: a whole cluster on this machine: keys, a coordinator, and groups under their supervisors, in a
 * private directory that is removed at the end. What `lepton run` and `lepton demo` start. A coordinator that
 * dies is started again at the same endpoint; groups are restarted by their supervisors. */
#ifndef LEPTON_TOOLS_LOCAL_H
#define LEPTON_TOOLS_LOCAL_H

#include "tools/client.h"

struct local_options {
    const char *model;       /* path of a GGUF file, or "demo" for the model inside this program */
    const char *model_name;  /* NULL = from the path */
    const char *const *more; /* further models, NULL-terminated, each with groups of its own; may be NULL */
    const char *models;      /* the registry's directory; NULL = the default */
    const char *endpoint;    /* NULL = a free port on loopback */
    const char *store;  /* the coordinator's database: NULL = in the private directory, "none", or a path */
    int groups, stages; /* of each model */
    int tensor;         /* tensor slots of a stage; 0 = 1 */
    int threads;        /* per rank; 0 = the processors shared out */
    int64_t context, max_sequences; /* 0 = the worker's default */
    const char *log_level;
    const char *const *worker_arguments; /* further options of lepton-worker, NULL-terminated; may be NULL */
    bool publish;                        /* leave client.cfg in client_home() for other commands */
};

struct local;

/* Makes the directory and the keys and starts everything. The model is looked into first, so that a bad one
 * is refused here and not by a worker later. */
int local_start(struct local **out, const struct local_options *options, struct err *err);
/* Ends everything in order: the coordinator drains, the groups leave. Prints nothing. Accepts NULL. */
void local_stop(struct local **l, uint64_t drain_ms);

/* Connects to the coordinator and waits until every group is ready, or `interrupt_fd` is readable (returns 1
 * then). Shows progress on standard error when it is a terminal. */
int local_wait(struct local *l, struct client **client, int interrupt_fd, uint64_t timeout_ms,
               struct err *err);
/* Looks after the programs: to be called once in a while. -1 when a group's supervisor has given up. */
int local_check(struct local *l, struct err *err);

const char *local_directory(const struct local *l); /* where the logs are */
const char *local_endpoint(const struct local *l);

#endif
