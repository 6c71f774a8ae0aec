#include "tools/local.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/curve.h"
#include "tools/demo/embedded.h"
#include "tools/process.h"
#include "worker/load_progress.h"
#include "worker/model/model.h"
#include "worker/model/registry.h"
#include "worker/model/tokenizer.h"

#define LOADING "loading-" /* begins the names of the files in which ranks keep how much they have loaded */

struct served {
    char *path, *name;
};

struct local {
    struct local_options o;
    char *home, *directory, *endpoint, *endpoint_file;
    struct served *served;              /* [models] */
    int models, groups;                 /* in all: as many groups for each model */
    struct process coordinator, *group; /* [groups] supervisors; a model's stand together */
    uint64_t coordinator_begun_ms;
};

/* ---- the directory
 * --------------------------------------------------------------------------------------------------- */

static int remove_entry(const char *path, const struct stat *st, int kind, struct FTW *where)
{
    (void)st;
    (void)kind;
    (void)where;
    return remove(path);
}

static void remove_tree(const char *path)
{
    nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

/* The published client.cfg is removed only while it leads to `directory`: a later run may have written its
 * own.
 */
static void unpublish(const char *home, const char *directory)
{
    char *path = xasprintf("%s/client.cfg", home), *within = xasprintf("\"%s/", directory), line[4096];
    FILE *f = fopen(path, "r");
    bool leads = false;
    while (f && fgets(line, sizeof(line), f))
        leads |= strstr(line, within) != NULL;
    if (f)
        fclose(f);
    if (leads)
        unlink(path);
    free(path);
    free(within);
}

/* Directories "run-PID" of runs that were killed: nobody else can remove their keys. */
static void sweep(const char *home)
{
    DIR *d = opendir(home);
    struct dirent *entry;
    while (d && (entry = readdir(d))) {
        char *end;
        if (strncmp(entry->d_name, "run-", 4))
            continue;
        long pid = strtol(entry->d_name + 4, &end, 10);
        if (pid > 0 && *end == '\0' && kill((pid_t)pid, 0) && errno == ESRCH) {
            char *path = xasprintf("%s/%s", home, entry->d_name);
            unpublish(home, path);
            remove_tree(path);
            free(path);
        }
    }
    if (d)
        closedir(d);
}

static int write_file(const char *path, const void *data, size_t bytes, struct err *err)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_set(err, "%s: %s", path, strerror(errno));
    const char *p = data;
    while (bytes) {
        ssize_t n = write(fd, p, bytes);
        if (n <= 0) {
            close(fd);
            return err_set(err, "%s: %s", path, strerror(errno));
        }
        p += n;
        bytes -= (size_t)n;
    }
    return close(fd) ? err_set(err, "%s: %s", path, strerror(errno)) : 0;
}

static char *below(const struct local *l, const char *name)
{
    return xasprintf("%s/%s", l->directory, name);
}

/* Copies the public half of a key into the directory of those who may connect. */
static int authorize(const struct local *l, const char *name, struct err *err)
{
    char *from = xasprintf("%s/keys/%s.pub", l->directory, name);
    char *to = xasprintf("%s/authorized/%s.pub", l->directory, name);
    int code = link(from, to);
    if (code)
        err_set(err, "%s: %s", to, strerror(errno));
    free(from);
    free(to);
    return code;
}

static int make_keys(struct local *l, struct err *err)
{
    struct curve_key key;
    char *keys = below(l, "keys"), *authorized = below(l, "authorized");
    int code = mkdir(authorized, 0700);
    if (code)
        err_set(err, "%s: %s", authorized, strerror(errno));
    if (code == 0)
        code = curve_generate(&key, keys, "coordinator", CURVE_COORDINATOR, err);
    if (code == 0)
        code =
            curve_generate(&key, keys, "client", CURVE_CLIENT, err) || authorize(l, "client", err) ? -1 : 0;
    if (code == 0)
        code = curve_generate(&key, keys, "g", CURVE_WORKER, err) || authorize(l, "g", err) ? -1 : 0;
    curve_wipe(&key);
    free(keys);
    free(authorized);
    return code;
}

static int make_directory(struct local *l, struct err *err)
{
    if (!(l->home = client_home(true, err)))
        return -1;
    sweep(l->home);
    l->directory = xasprintf("%s/run-%d", l->home, (int)getpid());
    remove_tree(l->directory);
    if (mkdir(l->directory, 0700))
        return err_set(err, "%s: %s", l->directory, strerror(errno));
    return make_keys(l, err);
}

/* ---- the model
 * ------------------------------------------------------------------------------------------------------- */

/* Everything about a model that can be refused before a worker starts. */
static int check_model(const struct local *l, struct registry_model *m, struct err *err)
{
    struct gguf *g = NULL;
    struct tokenizer *t = NULL;
    struct model_params params = {0};
    int code =
        registry_open(&g, m, 1, err) || model_params_read(&params, g, err) || tokenizer_open(&t, g, err) ? -1
                                                                                                         : 0;
    if (code == 0 && l->o.stages > params.layers)
        code = err_set(err, "%d stages for a model of %lld layers: expected 1 to %lld", l->o.stages,
                       (long long)params.layers, (long long)params.layers);
    if (code == 0) {
        struct slice_blocks blocks = slice_blocks(&params, g);
        int64_t kv_heads;
        code = slice_widest_kv_heads(&kv_heads, &params, &blocks, l->o.tensor, err);
    }
    tokenizer_close(&t);
    model_params_release(&params);
    gguf_close(&g);
    return code;
}

/* As the worker would call a model that is not registered. */
static char *name_of(const char *path)
{
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    size_t n = strlen(base);
    if (n > 5 && strcmp(base + n - 5, ".gguf") == 0)
        n -= 5;
    return xasprintf("%.*s", (int)n, base);
}

/* Workers may have another working directory. A registered model keeps its own path, links and all: its
 * manifest lies there. */
static char *absolute_path(const struct registry_model *m)
{
    char *here, *path;
    if (!m->name)
        return realpath(m->path, NULL);
    if (m->path[0] == '/' || !(here = getcwd(NULL, 0)))
        return xstrdup(m->path);
    path = xasprintf("%s/%s", here, m->path);
    free(here);
    return path;
}

static int find_model(struct local *l, struct served *s, const char *word, struct err *err)
{
    struct registry_model m;
    char *demo = NULL;
    int code = 0;
    if (strcmp(word, "demo") == 0) {
        word = demo = below(l, "lepton-demo.gguf");
        code = write_file(demo, embedded_model, embedded_model_bytes(), err);
    }
    if (code == 0) {
        code =
            registry_find(&m, l->o.models, word, VERIFY_REGISTERED, err) || check_model(l, &m, err) ? -1 : 0;
        if (code == 0 && !(s->path = absolute_path(&m)))
            code = err_set(err, "%s: %s", word, strerror(errno));
        if (code == 0)
            s->name = l->o.model_name ? xstrdup(l->o.model_name)
                      : m.name        ? xstrdup(m.name)
                                      : name_of(s->path);
        registry_release(&m);
    }
    free(demo);
    return code;
}

static int find_models(struct local *l, struct err *err)
{
    for (int i = 0; i < l->models; i++) {
        if (find_model(l, &l->served[i], i ? l->o.more[i - 1] : l->o.model, err))
            return -1;
        for (int k = 0; k < i; k++)
            if (strcmp(l->served[k].name, l->served[i].name) == 0)
                return err_set(err, "two models are called %s: requests could not choose between them",
                               l->served[i].name);
    }
    return 0;
}

/* ---- the programs
 * ---------------------------------------------------------------------------------------------------- */

/* Starts a program beside this one; words end with NULL. Its output goes to DIRECTORY/log. */
static int start(struct local *l, struct process *p, const char *log, const char *program,
                 const char *const *words, struct err *err)
{
    char *path = process_sibling(program), *log_path = below(l, log);
    char *argv[64] = {path};
    for (int i = 0; words[i]; i++) {
        ASSERT(i < 62);
        argv[i + 1] = (char *)(uintptr_t)words[i];
    }
    int code = process_start(p, argv, log_path, err);
    free(path);
    free(log_path);
    return code;
}

/* What outlives a coordinator that dies: by default as long as this run. NULL: nothing. */
static char *store_of(const struct local *l)
{
    if (!l->o.store)
        return below(l, "state.db");
    return strcmp(l->o.store, "none") == 0 ? NULL : xstrdup(l->o.store);
}

static int start_coordinator(struct local *l, struct err *err)
{
    char *key = below(l, "keys/coordinator.key"), *authorized = below(l, "authorized"), *store = store_of(l);
    const char *words[] = {"--endpoint",
                           l->endpoint,
                           "--endpoint-file",
                           l->endpoint_file,
                           "--key",
                           key,
                           "--authorized",
                           authorized,
                           "--log-level",
                           l->o.log_level,
                           "--admins",
                           "client",
                           store ? "--store" : NULL,
                           store,
                           NULL};
    unlink(l->endpoint_file);
    int code = start(l, &l->coordinator, "coordinator.log", "lepton-coordinator", words, err);
    l->coordinator_begun_ms = clock_now_ms();
    free(store);
    free(key);
    free(authorized);
    return code;
}

/* Behind the error that `p` has failed: what it said. */
static void quote_log(const struct local *l, const struct process *p, const char *log, struct err *err)
{
    char *path = below(l, log);
    process_last_words(p, path, err);
    free(path);
}

/* Waits for the endpoint that the coordinator took and keeps it. */
static int read_endpoint(struct local *l, struct err *err)
{
    for (uint64_t until_ms = clock_now_ms() + 10000; clock_now_ms() < until_ms; clock_sleep_ms(5)) {
        char line[256] = "";
        FILE *f = fopen(l->endpoint_file, "r");
        if (f) {
            bool any = fgets(line, sizeof(line), f) != NULL;
            fclose(f);
            if (any) {
                line[strcspn(line, "\n")] = '\0';
                free(l->endpoint);
                l->endpoint = xstrdup(line);
                return 0;
            }
        }
        if (!process_running(&l->coordinator)) {
            err_set(err, "the coordinator ended with %d", process_exit_code(&l->coordinator));
            quote_log(l, &l->coordinator, "coordinator.log", err);
            return -1;
        }
    }
    return err_set(err, "the coordinator did not open its endpoint within 10 s");
}

static int processors_per_group(const struct local *l)
{
    long share = sysconf(_SC_NPROCESSORS_ONLN) / l->groups;
    return share > 1 ? (int)share : 1;
}

/* Slots work at the same time. Stages mostly take turns: each may have all processors, and where several have
 * work none loses by it. */
static int threads_per_rank(const struct local *l)
{
    if (l->o.threads)
        return l->o.threads;
    int share = processors_per_group(l) / l->o.tensor;
    return share > 1 ? share : 1;
}

static int start_group(struct local *l, int index, struct err *err)
{
    char name[32], log[48], stages[16], tensor[16], threads[16], processors[16], context[24], sequences[24];
    char *key = below(l, "keys/g.key"), *server_key = below(l, "keys/coordinator.pub");
    const struct served *model = &l->served[index / l->o.groups];
    snprintf(name, sizeof(name), "g-%d", index);
    char *progress = xasprintf("%s/" LOADING "%s", l->directory, name);
    snprintf(log, sizeof(log), "%s.log", name);
    snprintf(stages, sizeof(stages), "%d", l->o.stages);
    snprintf(tensor, sizeof(tensor), "%d", l->o.tensor);
    snprintf(threads, sizeof(threads), "%d", threads_per_rank(l));
    snprintf(processors, sizeof(processors), "%d", processors_per_group(l));
    snprintf(context, sizeof(context), "%lld", (long long)l->o.context);
    snprintf(sequences, sizeof(sequences), "%lld", (long long)(l->o.max_sequences ? l->o.max_sequences : 16));
    const char *words[] = {"group",
                           "--stages",
                           stages,
                           "--tensor",
                           tensor,
                           "--launcher",
                           "local",
                           "--log-level",
                           l->o.log_level,
                           "--",
                           "--model",
                           model->path,
                           "--model-name",
                           model->name,
                           "--group",
                           name,
                           "--load-file",
                           progress,
                           "--endpoint",
                           l->endpoint,
                           "--key",
                           key,
                           "--server-key",
                           server_key,
                           "--threads",
                           threads,
                           "--processors",
                           processors,
                           "--context",
                           context,
                           "--max-sequences",
                           sequences,
                           "--log-level",
                           l->o.log_level,
                           NULL};
    const char *all[64];
    int count = 0;
    for (int i = 0; words[i]; i++)
        all[count++] = words[i];
    for (int i = 0; l->o.worker_arguments && l->o.worker_arguments[i]; i++)
        all[count++] = l->o.worker_arguments[i];
    all[count] = NULL;
    int code = start(l, &l->group[index], log, "lepton", all, err);
    free(progress);
    free(key);
    free(server_key);
    return code;
}

/* What `lepton generate` and `lepton status` need to find us. */
static int write_client_config(struct local *l, struct err *err)
{
    struct buffer text = {0};
    char *path = xasprintf("%s/client.cfg", l->home);
    buffer_printf(
        &text,
        "endpoint = \"%s\";\nserver_key = \"%s/keys/coordinator.pub\";\nkey = \"%s/keys/client.key\";\n",
        l->endpoint, l->directory, l->directory);
    int code = write_file(path, text.data, text.size, err);
    buffer_release(&text);
    free(path);
    return code;
}

static int start_all(struct local *l, struct err *err)
{
    if (make_directory(l, err) || find_models(l, err))
        return -1;
    l->endpoint = xstrdup(l->o.endpoint ? l->o.endpoint : "tcp://127.0.0.1:*");
    l->endpoint_file = below(l, "endpoint");
    if (start_coordinator(l, err) || read_endpoint(l, err) || (l->o.publish && write_client_config(l, err)))
        return -1;
    for (int i = 0; i < l->groups; i++)
        if (start_group(l, i, err))
            return -1;
    return 0;
}

int local_start(struct local **out, const struct local_options *options, struct err *err)
{
    struct local *l = xcalloc(1, sizeof(*l));
    l->o = *options;
    if (!l->o.log_level)
        l->o.log_level = "info";
    if (!l->o.tensor)
        l->o.tensor = 1;
    l->models = 1;
    while (options->more && options->more[l->models - 1])
        l->models++;
    l->served = xcalloc((size_t)l->models, sizeof(*l->served));
    l->groups = l->models * options->groups;
    l->group = xcalloc((size_t)l->groups, sizeof(*l->group));
    if (start_all(l, err)) {
        local_stop(&l, 0);
        return -1;
    }
    *out = l;
    return 0;
}

void local_stop(struct local **pl, uint64_t drain_ms)
{
    if (!pl || !*pl)
        return;
    struct local *l = *pl;
    /* The coordinator tells the groups to drain, and they leave by themselves; whoever does not is told by
     * signal. */
    process_signal(&l->coordinator, SIGTERM);
    process_wait(&l->coordinator, drain_ms + 2000);
    for (int i = 0; i < l->groups; i++)
        process_wait(&l->group[i], 1500);
    for (int i = 0; i < l->groups; i++)
        process_signal(&l->group[i], SIGTERM);
    for (int i = 0; i < l->groups; i++)
        process_wait(&l->group[i], 1500);
    for (int i = 0; i < l->groups; i++)
        process_stop(&l->group[i], SIGTERM, 5000);
    process_stop(&l->coordinator, SIGTERM, 1000);
    if (l->home && l->directory) {
        unpublish(l->home, l->directory);
        remove_tree(l->directory);
    }
    free(l->home);
    free(l->directory);
    for (int i = 0; i < l->models; i++) {
        free(l->served[i].path);
        free(l->served[i].name);
    }
    free(l->served);
    free(l->endpoint);
    free(l->endpoint_file);
    free(l->group);
    free(l);
    *pl = NULL;
}

int local_check(struct local *l, struct err *err)
{
    for (int i = 0; i < l->groups; i++)
        if (!process_running(&l->group[i])) {
            char log[32];
            err_set(err, "group g-%d's supervisor ended with %d", i, process_exit_code(&l->group[i]));
            snprintf(log, sizeof(log), "g-%d.log", i);
            quote_log(l, &l->group[i], log, err);
            return -1;
        }
    if (process_running(&l->coordinator))
        return 0;
    err_set(err, "the coordinator ended with %d", process_exit_code(&l->coordinator));
    quote_log(l, &l->coordinator, "coordinator.log", err);
    fprintf(stderr, "lepton: %s; starting it again\n", err->message);
    if (clock_now_ms() - l->coordinator_begun_ms < 1000)
        clock_sleep_ms(1000); /* one that cannot start is not started in a tight loop */
    return start_coordinator(l, err);
}

static int ready_groups(const struct wire_status_reply *reply)
{
    int ready = 0;
    for (uint32_t i = 0; i < reply->group_count; i++)
        ready += wire_str_is(reply->groups[i].state, "ready");
    return ready;
}

/* Of all ranks of all groups. */
static int loaded_percent(const struct local *l)
{
    return load_progress_read(l->directory, LOADING, l->groups * l->o.stages * l->o.tensor);
}

int local_wait(struct local *l, struct client **client, int interrupt_fd, uint64_t timeout_ms,
               struct err *err)
{
    uint64_t begun_ms = clock_now_ms();
    struct client_settings settings = {.endpoint = l->endpoint,
                                       .server_key = below(l, "keys/coordinator.pub"),
                                       .key = below(l, "keys/client.key")};
    int opened = client_open(client, &settings, 5000, err);
    free(settings.server_key);
    free(settings.key);
    if (opened)
        return -1;
    bool terminal = isatty(STDERR_FILENO), shown = false;
    int ready = 0, code = -1;
    while (clock_now_ms() - begun_ms < timeout_ms) {
        struct wire_message reply;
        if (local_check(l, err) || client_status(*client, false, 5000, &reply, err))
            goto out;
        ready = ready_groups(&reply.status_reply);
        wire_release(&reply);
        if (ready >= l->groups) {
            code = 0;
            goto out;
        }
        if (terminal && clock_now_ms() - begun_ms > 1000) {
            fprintf(stderr, "\r\033[Kstarting: %d of %d groups ready, %d %% of the weights loaded ", ready,
                    l->groups, loaded_percent(l));
            shown = true;
        }
        struct pollfd interrupted = {.fd = interrupt_fd, .events = POLLIN};
        if (poll(&interrupted, 1, 20) > 0) {
            code = 1;
            goto out;
        }
    }
    err_set(err, "%d of %d groups became ready within %llu ms", ready, l->groups,
            (unsigned long long)timeout_ms);
out:
    if (shown)
        fprintf(stderr, "\r\033[K");
    return code;
}

const char *local_directory(const struct local *l)
{
    return l->directory;
}

const char *local_endpoint(const struct local *l)
{
    return l->endpoint;
}
