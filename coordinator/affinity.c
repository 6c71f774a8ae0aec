#include "coordinator/affinity.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/log.h"
#include "coordinator/together.h"

#define LOOK_MS     500
#define MAX_LOOK_MS 10000
/* Its own, libzmq's and the ZAP handler are four; more than this is no coordinator. */
#define MAX_THREADS 64
/* A line of /proc/stat: "cpu1023 " and ten numbers. */
#define LINE_BYTES 256

struct thread {
    pid_t id;
    int file;                         /* its schedstat */
    uint64_t run_ns, wait_ns, rounds; /* as last read */
};

struct processor {
    uint32_t number;
    uint64_t idle, all; /* as last read, in ticks */
};

struct affinity {
    const char *proc;
    bool automatic; /* false: off, a fixed processor, or given up */
    struct together together;
    cpu_set_t allowed; /* as the process was started, or was told since */
    cpu_set_t set;     /* what the threads were last set to */
    struct processor processors[CPU_SETSIZE];
    uint32_t idle[CPU_SETSIZE]; /* of the last look */
    uint32_t processor_count;
    pid_t spared[MAX_THREADS];
    uint32_t spared_count;
    struct thread threads[MAX_THREADS];
    uint32_t thread_count; /* 0: not looked for yet */
    int stat;              /* /proc/stat */
    char *text;            /* [text_bytes] of it */
    size_t text_bytes;
    uint64_t looked_us, next_ms;
    char state[24];
};

/* ---- the options ---- */

static void take_allowed(struct affinity *a, const cpu_set_t *allowed)
{
    a->allowed = a->set = *allowed;
    a->processor_count = 0;
    for (uint32_t i = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, allowed))
            a->processors[a->processor_count++] = (struct processor){.number = i};
    a->looked_us = 0;
}

static void tell_state(struct affinity *a)
{
    uint32_t on = a->together.on;
    if (on == TOGETHER_APART)
        snprintf(a->state, sizeof(a->state), "auto: any");
    else
        snprintf(a->state, sizeof(a->state), "auto: %u", a->processors[on].number);
}

/* Of all threads: those that come later inherit it. */
static int bind_all(struct affinity *a, const char *text, struct err *err)
{
    cpu_set_t set;
    size_t digits = strspn(text, "0123456789");
    if (digits == 0 || digits > 4 || text[digits])
        return err_set(err, "processor: \"%.40s\": expected auto, off, or the number of a processor", text);
    unsigned long number = strtoul(text, NULL, 10);
    CPU_ZERO(&set);
    if (number < CPU_SETSIZE)
        CPU_SET(number, &set);
    if (sched_setaffinity(0, sizeof(set), &set) != 0)
        return err_set(err, "processor: %lu: %s; expected one that this process may run on", number,
                       strerror(errno));
    snprintf(a->state, sizeof(a->state), "%lu", number);
    return 0;
}

/* A thread that ended needs no place any more. */
static int set_threads(struct affinity *a, const cpu_set_t *set)
{
    for (uint32_t i = 0; i < a->thread_count; i++)
        if (sched_setaffinity(a->threads[i].id, sizeof(*set), set) != 0 && errno != ESRCH)
            return -1;
    a->set = *set;
    return 0;
}

/* The threads run where the process was started, from now on; errno says why. */
static void give_up(struct affinity *a, const char *what)
{
    log_info("affinity", "processor auto: its threads run on any: %s/%s: %s", a->proc, what, strerror(errno));
    a->automatic = false;
    snprintf(a->state, sizeof(a->state), "any");
    set_threads(a, &a->allowed);
}

int affinity_open(struct affinity **out, const char *processor, const char *proc, struct err *err)
{
    struct affinity *a = *out = xcalloc(1, sizeof(*a));
    a->proc = proc;
    a->stat = -1;
    together_init(&a->together);
    snprintf(a->state, sizeof(a->state), "any");
    if (strcmp(processor, "off") == 0)
        return 0;
    if (strcmp(processor, "auto") != 0)
        return bind_all(a, processor, err);
    cpu_set_t allowed;
    a->automatic = true;
    if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) {
        give_up(a, "self: sched_getaffinity");
        return 0;
    }
    take_allowed(a, &allowed);
    tell_state(a);
    return 0;
}

void affinity_close(struct affinity **a)
{
    if (!*a)
        return;
    for (uint32_t i = 0; i < (*a)->thread_count; i++)
        close((*a)->threads[i].file);
    if ((*a)->stat >= 0)
        close((*a)->stat);
    free((*a)->text);
    free(*a);
    *a = NULL;
}

const char *affinity_state(const struct affinity *a)
{
    return a->state;
}

/* ---- the threads ---- */

/* The ids of all threads of this process into out[MAX_THREADS]; -1: errno says why not. */
static int list_threads(const struct affinity *a, pid_t *out, uint32_t *count)
{
    char *path = xasprintf("%s/self/task", a->proc);
    DIR *tasks = opendir(path);
    struct dirent *entry;
    free(path);
    *count = 0;
    if (!tasks)
        return -1;
    while ((entry = readdir(tasks)) && *count <= MAX_THREADS) {
        if (entry->d_name[0] < '1' || entry->d_name[0] > '9')
            continue;
        if (*count < MAX_THREADS)
            out[*count] = (pid_t)strtol(entry->d_name, NULL, 10);
        ++*count;
    }
    closedir(tasks);
    if (*count <= MAX_THREADS)
        return 0;
    errno = E2BIG;
    return -1;
}

void affinity_spare(struct affinity *a)
{
    if (!a->automatic)
        return;
    if (list_threads(a, a->spared, &a->spared_count) != 0) {
        give_up(a, "self/task");
        return;
    }
    for (uint32_t i = 0; i < a->spared_count; i++)
        if (a->spared[i] == getpid())
            a->spared[i] = a->spared[--a->spared_count];
}

static bool is_spared(const struct affinity *a, pid_t id)
{
    for (uint32_t i = 0; i < a->spared_count; i++)
        if (a->spared[i] == id)
            return true;
    return false;
}

/* Once, when all of them run: none comes or goes after that. */
static int open_threads(struct affinity *a)
{
    pid_t ids[MAX_THREADS];
    uint32_t count;
    if (list_threads(a, ids, &count) != 0)
        return -1;
    for (uint32_t i = 0; i < count; i++) {
        if (is_spared(a, ids[i]))
            continue;
        char *path = xasprintf("%s/self/task/%ld/schedstat", a->proc, (long)ids[i]);
        int file = open(path, O_RDONLY | O_CLOEXEC);
        free(path);
        if (file < 0)
            return -1;
        a->threads[a->thread_count++] = (struct thread){.id = ids[i], .file = file};
    }
    return 0;
}

/* ---- what the kernel tells ---- */

/* The number at *at, behind blanks; *at moves behind it. 0 when there is none. */
static uint64_t number(const char **at)
{
    uint64_t n = 0;
    while (**at == ' ')
        ++*at;
    for (; **at >= '0' && **at <= '9'; ++*at)
        n = n * 10 + (uint64_t)(**at - '0');
    return n;
}

/* The file from its beginning, as text. -1: it cannot be read. */
static int read_text(int file, char *text, size_t bytes)
{
    ssize_t got = pread(file, text, bytes - 1, 0);
    if (got == 0)
        errno = ENODATA;
    if (got <= 0)
        return -1;
    text[got] = '\0';
    return 0;
}

/* "on a processor [ns] waiting [ns] turns". */
static int read_thread(struct thread *t, struct together_sample *s)
{
    char text[96];
    if (read_text(t->file, text, sizeof(text)) != 0)
        return errno == ESRCH ? 0 : -1;
    const char *at = text;
    uint64_t run_ns = number(&at), wait_ns = number(&at), rounds = number(&at);
    s->run_us += (run_ns - t->run_ns) / 1000;
    s->wait_us += (wait_ns - t->wait_ns) / 1000;
    s->turns += rounds - t->rounds;
    t->run_ns = run_ns;
    t->wait_ns = wait_ns;
    t->rounds = rounds;
    return 0;
}

/* "user nice system idle iowait irq softirq steal": what a guest used is in the first two as well. */
static uint32_t idle_share(struct processor *p, const char *at)
{
    uint64_t all = 0, idle = 0;
    for (int i = 0; i < 8; i++) {
        uint64_t ticks = number(&at);
        all += ticks;
        if (i == 3 || i == 4)
            idle += ticks;
    }
    uint64_t passed = all - p->all, slept = idle > p->idle ? idle - p->idle : 0; /* iowait may go back */
    p->all = all;
    p->idle = idle;
    return passed == 0 ? 0 : slept >= passed ? 1000 : (uint32_t)(slept * 1000 / passed);
}

/* Lines "cpu7 ..." in rising order, one for each processor that is online. */
static int read_processors(struct affinity *a)
{
    if (read_text(a->stat, a->text, a->text_bytes) != 0)
        return -1;
    uint32_t next = 0;
    for (const char *line = a->text; line && next < a->processor_count; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, "cpu", 3) != 0)
            break;
        if (line[3] < '0' || line[3] > '9')
            continue;
        const char *at = line + 3;
        uint64_t found = number(&at);
        while (next < a->processor_count && a->processors[next].number < found)
            a->idle[next++] = 0; /* offline */
        if (next < a->processor_count && a->processors[next].number == found) {
            a->idle[next] = idle_share(&a->processors[next], at);
            next++;
        }
    }
    while (next < a->processor_count)
        a->idle[next++] = 0;
    return 0;
}

static int open_files(struct affinity *a)
{
    a->text_bytes = ((size_t)a->processors[a->processor_count - 1].number + 2) * LINE_BYTES;
    free(a->text);
    a->text = xmalloc(a->text_bytes);
    char *path = xasprintf("%s/stat", a->proc);
    if (a->stat < 0)
        a->stat = open(path, O_RDONLY | O_CLOEXEC);
    free(path);
    if (a->stat < 0)
        give_up(a, "stat");
    else if (a->thread_count == 0 && open_threads(a) != 0)
        give_up(a, "self/task/*/schedstat");
    return a->automatic ? 0 : -1;
}

/* 1: *s is what happened since the last look; 0: there was none; -1: given up. */
static int look(struct affinity *a, struct together_sample *s)
{
    uint64_t before_us = a->looked_us;
    *s = (struct together_sample){.here = TOGETHER_APART, .count = a->processor_count, .idle = a->idle};
    if (before_us == 0 && open_files(a) != 0)
        return -1;
    a->looked_us = clock_now_us();
    s->elapsed_us = a->looked_us - before_us;
    for (uint32_t i = 0; i < a->thread_count; i++)
        if (read_thread(&a->threads[i], s) != 0) {
            give_up(a, "schedstat");
            return -1;
        }
    if (read_processors(a) != 0) {
        give_up(a, "stat");
        return -1;
    }
    int here = sched_getcpu();
    for (uint32_t i = 0; i < a->processor_count; i++)
        if ((int)a->processors[i].number == here)
            s->here = i;
    return before_us != 0;
}

/* ---- what is done ---- */

/* Others (taskset, a cpuset) may move the deciding thread: that is then where all of them may run. */
static void notice_others(struct affinity *a, uint64_t now_ms)
{
    cpu_set_t now;
    if (sched_getaffinity(0, sizeof(now), &now) != 0 || CPU_EQUAL(&now, &a->set))
        return;
    log_debug("affinity", "its threads were moved: it may use %d processors", CPU_COUNT(&now));
    together_part(&a->together, now_ms);
    take_allowed(a, &now);
    tell_state(a);
    if (set_threads(a, &now) != 0)
        give_up(a, "self: sched_setaffinity");
}

static void move(struct affinity *a, uint32_t to, const struct together_sample *s)
{
    cpu_set_t set = a->allowed;
    if (to != TOGETHER_APART) {
        CPU_ZERO(&set);
        CPU_SET(a->processors[to].number, &set);
    }
    if (set_threads(a, &set) != 0) {
        give_up(a, "self: sched_setaffinity");
        return;
    }
    tell_state(a);
    log_debug("affinity", "%s, after %llu us of %llu us on and %llu us waiting for a processor, %llu times",
              a->state, (unsigned long long)s->run_us, (unsigned long long)s->elapsed_us,
              (unsigned long long)s->wait_us, (unsigned long long)s->turns);
}

void affinity_tick(struct affinity *a, uint64_t now_ms)
{
    struct together_sample sample;
    if (!a->automatic || now_ms < a->next_ms)
        return;
    uint64_t begun_us = clock_now_us();
    notice_others(a, now_ms);
    if (a->processor_count > 1 && look(a, &sample) == 1) {
        uint32_t was = a->together.on, to = together_decide(&a->together, &sample, now_ms);
        if (to != was)
            move(a, to, &sample);
    }
    uint64_t took_us = clock_now_us() - begun_us; /* as many milliseconds until the next are a thousandth */
    a->next_ms = now_ms + (took_us < LOOK_MS ? LOOK_MS : took_us < MAX_LOOK_MS ? took_us : MAX_LOOK_MS);
}
