/* lepton group: supervises one MPI job on whatever nodes it has: starts it, starts it again with growing
 * back-off when it dies (the coordinator gives it a new epoch), passes signals on. It knows nothing of
 * models: all behind `--` goes to lepton-worker as it stands. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <poll.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/last_words.h"
#include "common/log.h"
#include "tools/command.h"
#include "tools/process.h"

#define MAX_ARGUMENTS 256
#define EXIT_CONFIG   78    /* of lepton-worker: starting again does not help */
#define EXIT_GROUP    72    /* the same: another rank is gone, and is the cause */
#define LOOK_MS       10000 /* between two looks at how often memory ran out */

struct group_settings {
    char *config, *hostfile, *launcher, *launcher_arguments, *worker, *log_level, *log_format;
    int64_t stages, tensor, back_off_ms, back_off_most_ms, steady_ms, drain_ms, restarts;
};

#define OPTION(member) offsetof(struct group_settings, member)

static const struct config_option options[] = {
    {"config", 'c', CONFIG_STRING, OPTION(config), 0, 0, NULL, "PATH", NULL,
     "read options from this file first", true},
    {"stages", 's', CONFIG_INT, OPTION(stages), 1, 4096, "1", "N", NULL,
     "pipeline stages: runs of layers, one after the other", false},
    {"tensor", 0, CONFIG_INT, OPTION(tensor), 1, 256, "1", "T", NULL,
     "tensor slots: ranks that share each layer of a stage; the job has stages x T ranks", false},
    {"hostfile", 0, CONFIG_STRING, OPTION(hostfile), 0, 0, NULL, "PATH", NULL,
     "hosts of the job, in the launcher's format (default: this host, or the Slurm allocation)", false},
    {"launcher", 'l', CONFIG_STRING, OPTION(launcher), 0, 0, "auto", "NAME", "auto|local|mpirun|srun",
     "what starts the job: local = this host, a single rank without MPI (it starts in half the time), "
     "several "
     "by mpirun; auto = srun inside a Slurm allocation, mpirun with a hostfile or launcher_arguments, else "
     "local",
     false},
    {"launcher_arguments", 0, CONFIG_STRING, OPTION(launcher_arguments), 0, 0, NULL, "WORDS", NULL,
     "further arguments for the launcher, separated by spaces", false},
    {"worker", 0, CONFIG_STRING, OPTION(worker), 0, 0, NULL, "PATH", NULL,
     "the worker program (default: lepton-worker beside this program)", false},
    {"restarts", 0, CONFIG_INT, OPTION(restarts), -1, 1e9, "-1", "N", NULL,
     "how often a dead job is started again; -1 = always", false},
    {"back_off_ms", 0, CONFIG_INT, OPTION(back_off_ms), 1, 86400000, "200", "MS", NULL,
     "wait before the first restart; doubles with each", false},
    {"back_off_most_ms", 0, CONFIG_INT, OPTION(back_off_most_ms), 1, 86400000, "30000", "MS", NULL,
     "longest such wait", false},
    {"steady_ms", 0, CONFIG_INT, OPTION(steady_ms), 1, 86400000, "30000", "MS", NULL,
     "a job that ran so long was healthy: the back-off begins anew", false},
    {"drain_ms", 0, CONFIG_INT, OPTION(drain_ms), 0, 86400000, "30000", "MS", NULL,
     "time for running requests to finish after a signal, before the job is ended", false},
    {"log_level", 0, CONFIG_STRING, OPTION(log_level), 0, 0, "info", "LEVEL", "debug|info|warn|error",
     "least level logged", false},
    {"log_format", 0, CONFIG_STRING, OPTION(log_format), 0, 0, "text", "FORMAT", "text|json",
     "form of a log line", false},
};

static const struct config_table table = {
    .program = "lepton group",
    .arguments = "[-- WORKER-OPTION...]",
    .about = "Supervises one worker group: an MPI job of lepton-worker ranks on this host, the hosts of a "
             "hostfile or the "
             "nodes of a Slurm allocation. What stands behind -- goes to every lepton-worker (see "
             "lepton-worker --help).",
    .after = "SIGTERM, SIGINT and SIGUSR2 drain the group: what runs is finished, then the job ends; a "
             "second one\n"
             "ends it at once.\n"
             "exit codes:\n"
             "  0 drained   1 the job died and no restart was left   2 wrong usage\n"
             "  78 the workers' model or configuration cannot be served\n"
             "example:\n"
             "  lepton group --stages 2 --hostfile hosts -- --config worker.cfg\n"
             "  lepton group --tensor 2 -- --config worker.cfg      # two ranks that share each layer\n",
    .max_arguments = MAX_ARGUMENTS / 2,
    .options = options,
    .option_count = ARRAY_LEN(options),
    .settings_bytes = sizeof(struct group_settings),
};

/* A growing argument vector; the strings are its own. */
struct arguments {
    char *word[MAX_ARGUMENTS + 1];
    int count;
};

static void add(struct arguments *a, const char *word)
{
    if (a->count == MAX_ARGUMENTS)
        die("more than %d arguments for the launcher", MAX_ARGUMENTS);
    a->word[a->count++] = xstrdup(word);
}

static void add_words(struct arguments *a, const char *words)
{
    char *copy = xstrdup(words), *rest = copy, *word;
    while ((word = strsep(&rest, " ")))
        if (*word)
            add(a, word);
    free(copy);
}

static void release_arguments(struct arguments *a)
{
    for (int i = 0; i < a->count; i++)
        free(a->word[i]);
}

static bool use_srun(const struct group_settings *s)
{
    return strcmp(s->launcher, "srun") == 0 ||
           (strcmp(s->launcher, "auto") == 0 && getenv("SLURM_JOB_ID") && process_on_path("srun"));
}

static int64_t rank_count(const struct group_settings *s)
{
    return s->stages * s->tensor;
}

/* One rank on this host is a process like any other: no launcher, no MPI. */
static bool use_none(const struct group_settings *s)
{
    bool plain = !s->hostfile && !s->launcher_arguments;
    return rank_count(s) == 1 && !use_srun(s) && strcmp(s->launcher, "mpirun") != 0 && plain;
}

static void build_command(struct arguments *a, const struct group_settings *s, const char *const *worker,
                          int count, const char *ended, const char *last_words)
{
    char number[32];
    snprintf(number, sizeof(number), "%lld", (long long)rank_count(s));
    if (use_srun(s)) {
        add(a, "srun");
        add(a, "--mpi=pmix");
        add(a, "--kill-on-bad-exit=1");
        add(a, "-n");
        add(a, number);
    } else if (!use_none(s)) {
        add(a, "mpirun");
        add(a, "--oversubscribe");
        add(a, "--bind-to");
        add(a, "none");
        add(a, "-np");
        add(a, number);
        if (s->hostfile) {
            add(a, "--hostfile");
            add(a, s->hostfile);
        }
    }
    if (s->launcher_arguments)
        add_words(a, s->launcher_arguments);
    char *program = s->worker ? xstrdup(s->worker) : process_sibling("lepton-worker");
    add(a, program);
    free(program);
    if (s->tensor > 1) {
        char width[32];
        snprintf(width, sizeof(width), "%lld", (long long)s->tensor);
        add(a, "--tensor");
        add(a, width);
    }
    if (use_none(s))
        add(a, "--alone");
    for (int i = 0; i < count; i++)
        add(a, worker[i]);
    if (ended[0]) {
        add(a, "--ended");
        add(a, ended);
    }
    if (last_words[0]) {
        add(a, "--last-words");
        add(a, last_words);
    }
}

/* How often the kernel has ended a process of this host for want of memory. */
static uint64_t count_oom_kills(void)
{
    char line[128];
    unsigned long long count = 0;
    FILE *f = fopen("/proc/vmstat", "r");
    while (f && fgets(line, sizeof(line), f) && sscanf(line, "oom_kill %llu", &count) != 1)
        ;
    if (f)
        fclose(f);
    return count;
}

/* How the job ended, in a word for the coordinator: what a rank said it dies of, else what the launcher makes
 * of it, which passes a rank's signal on as 128 + its number. `memory`: the kernel has just ended something.
 */
static void describe_end(int code, bool memory, const char *said, char out[LAST_WORDS_MOST])
{
    const char *signal = last_words_signal(code - 128);
    bool killed = code == 128 + SIGKILL || code == EXIT_GROUP;
    if (said[0])
        snprintf(out, LAST_WORDS_MOST, "%s", said);
    else if (code == EXIT_NO_MEMORY || (killed && memory))
        snprintf(out, LAST_WORDS_MOST, "out of memory");
    else if (signal)
        snprintf(out, LAST_WORDS_MOST, "%s", signal);
    else
        snprintf(out, LAST_WORDS_MOST, "exit %d", code);
}

/* What a signal asks for. The launcher ends its ranks hard on SIGTERM; SIGUSR2 it passes on, and the leader
 * drains. A rank without a launcher drains on both. */
struct supervisor {
    const struct group_settings *s;
    struct process job;
    int signals; /* signalfd */
    int asked;   /* signals so far */
    uint64_t drain_until_ms;
};

static void take_signals(struct supervisor *v, int timeout_ms)
{
    struct pollfd poll_fd = {.fd = v->signals, .events = POLLIN};
    if (poll(&poll_fd, 1, timeout_ms) <= 0)
        return;
    struct signalfd_siginfo info;
    while (read(v->signals, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
        if (info.ssi_signo == SIGCHLD)
            continue;
        if (v->asked++ == 0) {
            log_info("group", "draining");
            v->drain_until_ms = clock_now_ms() + (uint64_t)v->s->drain_ms;
            process_signal(&v->job, SIGUSR2);
        } else {
            v->drain_until_ms = 0;
        }
    }
}

/* Until the job has ended; true when the kernel has ended something for want of memory shortly before. */
static bool watch_job(struct supervisor *v)
{
    uint64_t kills = count_oom_kills(), before = kills, looked_ms = clock_now_ms();
    while (process_running(&v->job)) {
        take_signals(v, v->asked ? 100 : LOOK_MS); /* SIGCHLD ends the wait at once */
        if (v->asked && clock_now_ms() >= v->drain_until_ms)
            process_stop(&v->job, SIGTERM, 5000);
        if (clock_now_ms() - looked_ms >= LOOK_MS) {
            before = kills;
            kills = count_oom_kills();
            looked_ms = clock_now_ms();
        }
    }
    return count_oom_kills() > before;
}

/* Runs the job once. Returns its exit code, and in `ended` how that came about; -1: it cannot be started. */
static int run_job(struct supervisor *v, const char *const *worker, int count, char ended[LAST_WORDS_MOST])
{
    struct arguments a = {0};
    struct err err;
    char address[LAST_WORDS_ADDRESS] = "", said[LAST_WORDS_MOST] = "";
    int words = -1;
    if (!use_none(v->s) && (words = last_words_listen(address, &err)) < 0) {
        address[0] = '\0';
        log_warn("group", "%s: what a rank dies of is taken from the launcher", err.message);
    }
    build_command(&a, v->s, worker, count, ended, address);
    int code = process_start(&v->job, a.word, NULL, &err);
    if (code)
        log_error("group", "%s", err.message);
    else
        log_info("group", "job started: %lld ranks under %s (pid %d)", (long long)rank_count(v->s), a.word[0],
                 (int)v->job.pid);
    release_arguments(&a);
    if (code == 0) {
        bool memory = watch_job(v);
        code = process_exit_code(&v->job);
        if (words >= 0)
            last_words_heard(words, said);
        describe_end(code, memory, said, ended);
    }
    if (words >= 0)
        close(words);
    return code;
}

static int supervise(struct supervisor *v, const char *const *worker, int count)
{
    const struct group_settings *s = v->s;
    uint64_t back_off_ms = (uint64_t)s->back_off_ms;
    char ended[LAST_WORDS_MOST] = "";
    for (int64_t starts = 0;; starts++) {
        uint64_t begun_ms = clock_now_ms();
        int code = run_job(v, worker, count, ended);
        if (code < 0)
            return EXIT_FAILED;
        if (code == 0 || v->asked) {
            log_info("group", "job ended with %d", code);
            return code == 0 ? EXIT_OK : EXIT_FAILED;
        }
        if (code == EXIT_CONFIG || code == EXIT_USAGE) {
            log_error("group", "job ended with %d: it cannot be served as configured; not starting again",
                      code);
            return EXIT_CONFIG;
        }
        if (s->restarts >= 0 && starts >= s->restarts) {
            log_error("group", "job ended with %d (%s); no restart is left", code, ended);
            return EXIT_FAILED;
        }
        if (clock_now_ms() - begun_ms >= (uint64_t)s->steady_ms)
            back_off_ms = (uint64_t)s->back_off_ms;
        log_warn("group", "job ended with %d (%s); starting again in %llu ms", code, ended,
                 (unsigned long long)back_off_ms);
        uint64_t now_ms = clock_now_ms(), until_ms = now_ms + back_off_ms;
        for (; now_ms < until_ms && !v->asked; now_ms = clock_now_ms())
            take_signals(v, (int)(until_ms - now_ms)); /* one look at the clock: never a negative wait */
        if (v->asked)
            return EXIT_OK;
        back_off_ms =
            2 * back_off_ms < (uint64_t)s->back_off_most_ms ? 2 * back_off_ms : (uint64_t)s->back_off_most_ms;
    }
}

static int open_signals(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGUSR2);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN); /* who read the log may be gone: the group goes on */
    int fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    if (fd < 0)
        die("no descriptor for signals");
    return fd;
}

int command_group(int argc, char **argv)
{
    struct group_settings s;
    const char *worker[MAX_ARGUMENTS / 2];
    int count = config_main(&table, &s, argc, argv, worker, MAX_ARGUMENTS / 2);
    enum log_level level = LOG_INFO;
    log_level_from_name(s.log_level, &level);
    log_setup("group", level, strcmp(s.log_format, "json") == 0 ? LOG_JSON : LOG_TEXT);
    if (geteuid() == 0) {
        /* Open MPI refuses root unless told twice; containers and tests run as root. */
        setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 0);
        setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 0);
    }
    setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);
    /* hwloc would ask ten X servers for GPUs, in the launcher and in every rank. */
    setenv("HWLOC_COMPONENTS", "-gl", 0);
    struct supervisor v = {.s = &s, .signals = open_signals()};
    int code = supervise(&v, worker, count);
    close(v.signals);
    config_release(&table, &s);
    return code;
}
