/* lepton-worker: one rank of a group. It wires the rooms together: settings, MPI, the rank's slice of the
 * model, the executor, and on rank 0 the link to the coordinator. The work itself is in infer/serve. */
#include <mpi.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/last_words.h"
#include "common/log.h"
#include "worker/comm_mpi.h"
#include "worker/comm_nccl.h"
#include "worker/comm_shm.h"
#include "worker/infer/serve.h"
#include "worker/layout.h"
#include "worker/link.h"
#include "worker/load_progress.h"
#include "worker/mock/run.h"
#include "worker/model/registry.h"
#include "worker/settings.h"

#define EXIT_CONFIG 78 /* starting again does not help */

/* What a rank tells the leader about itself, as plain bytes over MPI. */
struct rank_card {
    int32_t first_layer, last_layer;
    int64_t pid, load_ms;
    char host[128];
};

struct worker {
    struct worker_settings settings;
    int rank, ranks;
    struct layout layout;
    struct layout_place place;    /* of this rank */
    struct registry_model source; /* where the model comes from */
    struct gguf *gguf;
    struct device *device;
    struct model *model;
    struct executor_options engine;
    struct executor *executor;
    struct comm *world;   /* MPI, host memory: over it the ranks find each other */
    struct comm *control; /* host memory: descriptors and drawn tokens */
    struct comm *data;    /* the rows between stages; `control` again where these lie in host memory */
    struct comm *tensor;  /* sums between the slots of this stage; NULL where there is one */
    struct wake *wake;
    struct watchdog *watchdog;
    struct tokenizer *tokenizer;
    struct mailbox *mailbox;
    struct link *link;
    struct curve_key key, server_key;
    struct rank_card *cards; /* leader: [ranks] */
    bool *is_end;
    int *first_layer;  /* [stages + 1] */
    cpu_set_t allowed; /* processors, before any thread was bound to some */
    struct occupancy occupancy;
};

/* The one link that a signal drains; set on the leader while it serves. A signal that comes before is
 * remembered. */
static struct link *_Atomic signal_link;
static volatile sig_atomic_t drain_asked;

static void on_signal(int signal_number)
{
    (void)signal_number;
    drain_asked = 1;
    struct link *link = signal_link;
    if (link)
        link_drain(link);
}

/* Ends the whole job: one rank cannot go on alone. */
static _Noreturn void leave(const struct worker *w, int code, const struct err *err)
{
    log_error("worker", "rank %d: %s", w->rank, err->message);
    if (!w->settings.alone)
        MPI_Abort(MPI_COMM_WORLD, code);
    _exit(code);
}

/* Defaults of Open MPI that suit ranks which share cores; what the user exported wins. */
static void tune_mpi(void)
{
    setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);
}

static void start_mpi(struct worker *w)
{
    int provided = 0;
    w->ranks = 1;
    if (w->settings.alone)
        return;
    tune_mpi();
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS ||
        provided < MPI_THREAD_FUNNELED)
        die("MPI gave thread level %d, expected at least MPI_THREAD_FUNNELED", provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &w->rank);
    MPI_Comm_size(MPI_COMM_WORLD, &w->ranks);
}

/* Ranks to stages and slots. */
static int place_rank(struct worker *w, struct err *err)
{
    int width = (int)w->settings.tensor;
    if (w->ranks % width)
        return err_set(err, "tensor: %d slots a stage, but the job has %d ranks: expected a multiple", width,
                       w->ranks);
    w->layout = (struct layout){.stages = w->ranks / width, .tensor = width, .replicas = 1};
    w->place = layout_place(&w->layout, w->rank);
    return layout_check(&w->layout, w->ranks, err);
}

/* Each slot's keys of a position must be whole blocks of the KV type. */
static int check_kv_type(const struct worker *w, const struct model_params *params,
                         const struct slice_blocks *blocks, struct err *err)
{
    enum dtype type;
    uint64_t bytes;
    bool known = dtype_from_name(w->settings.kv_type, &type);
    ASSERT(known);
    for (int slot = 0; slot < w->layout.tensor; slot++) {
        struct model_part part;
        if (slice_part(&part, params, blocks, w->layout.tensor, slot, err))
            return -1;
        int64_t elements = part.kv_heads.count * params->head_length;
        if (dtype_row_bytes(type, (uint64_t)elements, &bytes))
            return err_set(
                err, "kv_type %s: slot %d of %d has %lld elements a position, expected a multiple of %u",
                w->settings.kv_type, slot, w->layout.tensor, (long long)elements,
                dtype_info(type)->block_elements);
    }
    return 0;
}

/* The split of the layers over the stages, and the engine's limits: the same on every rank. */
static int size_engine(struct worker *w, struct model_params *params, struct err *err)
{
    struct slice_blocks blocks = slice_blocks(params, w->gguf);
    int64_t most = 0;
    w->first_layer = xcalloc((size_t)w->layout.stages + 1, sizeof(int));
    if (settings_split(w->gguf, params, w->layout.stages, w->first_layer, err) ||
        check_kv_type(w, params, &blocks, err) ||
        slice_widest_kv_heads(&params->kv_heads, params, &blocks, w->layout.tensor, err))
        return -1;
    for (int i = 0; i < w->layout.stages; i++)
        if (w->first_layer[i + 1] - w->first_layer[i] > most)
            most = w->first_layer[i + 1] - w->first_layer[i];
    return settings_engine(&w->engine, &w->settings, params, most, err);
}

/* The model, its split over the ranks, and this rank's slice of it. */
static int open_model(struct worker *w, struct err *err)
{
    struct model_params params;
    struct load_progress progress;
    const struct worker_settings *s = &w->settings;
    struct device_options device = {
        .threads = (int)s->threads, .kernels = s->kernels, .f16_as_bf16 = s->f16_as_bf16};
    if (registry_find(&w->source, s->models, s->model, registry_verify_from_name(s->verify), err) ||
        registry_open(&w->gguf, &w->source, 0, err) || model_params_read(&params, w->gguf, err))
        return -1;
    int code = size_engine(w, &params, err);
    uint32_t kernels = model_params_kernels(&params);
    int64_t head_length = params.head_length;
    model_params_release(&params);
    if (code || device_open(&w->device, w->settings.device, &device, err) ||
        kernels_supported(w->device, kernels, err) ||
        kernels_kv_supported(w->device, w->engine.kv_type, head_length, err))
        return -1;
    struct model_slice slice = {.first_layer = w->first_layer[w->place.stage],
                                .last_layer = w->first_layer[w->place.stage + 1],
                                .embed = w->place.stage == 0,
                                .head = w->place.stage == w->layout.stages - 1,
                                .context = w->engine.limits.context,
                                .width = w->layout.tensor,
                                .slot = w->place.slot,
                                .loaded = load_progress_tell,
                                .loaded_context = &progress};
    load_progress_begin(&progress, s->load_file, w->rank, (uint64_t)s->load_log_ms);
    struct model_check check = registry_check(&w->source);
    if (model_open_checked(&w->model, w->gguf, w->device, &slice, &check, err))
        return -1;
    w->model->slice.loaded = NULL;         /* `progress` ends here */
    integrity_close(&w->source.integrity); /* its threads are no longer needed */
    return executor_open(&w->executor, w->model, &w->engine, err);
}

static void gather_cards(struct worker *w, uint64_t load_ms)
{
    struct rank_card card = {.first_layer = w->first_layer[w->place.stage],
                             .last_layer = w->first_layer[w->place.stage + 1],
                             .pid = getpid(),
                             .load_ms = (int64_t)load_ms};
    if (gethostname(card.host, sizeof(card.host) - 1))
        strcpy(card.host, "?");
    if (w->rank == 0)
        w->cards = xcalloc((size_t)w->ranks, sizeof(*w->cards));
    if (w->ranks == 1)
        w->cards[0] = card;
    else
        MPI_Gather(&card, sizeof(card), MPI_BYTE, w->cards, sizeof(card), MPI_BYTE, 0, MPI_COMM_WORLD);
}

/* Host memory: what the ranks of one host share, or MPI. `over` holds the same ranks as `color` picks from
 * the world. */
static int open_host_comm(struct worker *w, struct comm **out, struct comm *over, int color,
                          struct device *device, struct err *err)
{
    if (strcmp(w->settings.comm, "mpi") != 0) {
        int code = comm_shm_open(out, over, device, err);
        if (code <= 0)
            return code;
        if (strcmp(w->settings.comm, "shm") == 0)
            return err_set_code(err, EXIT_CONFIG, "comm shm: %s", err->message);
        log_debug("worker", "rank %d: MPI carries what goes between ranks: %s", w->rank, err->message);
    }
    return comm_mpi_open(out, color, device, err);
}

/* NCCL over the ranks of `over`. The first of them makes the id; when it cannot, every rank learns why, so
 * that all leave with the same words. */
static int open_nccl(struct worker *w, struct comm **out, struct comm *over, struct err *err)
{
    const struct worker_settings *s = &w->settings;
    struct comm_nccl_options options = {.library = s->nccl_library,
                                        .device = w->device,
                                        .rank = over->rank,
                                        .size = over->size,
                                        .timeout_ms = (int)s->wait_limit_ms};
    struct {
        uint8_t id[COMM_NCCL_ID_BYTES];
        int failed;
        struct err why;
    } card = {0};
    if (over->rank == 0)
        card.failed = comm_nccl_unique_id(s->nccl_library, card.id, &card.why);
    if (comm_broadcast(over, NULL, &card, sizeof(card), 0, err))
        return -1;
    if (card.failed)
        return err_set_code(err, EXIT_CONFIG, "comm nccl: %s", card.why.message);
    memcpy(options.id, card.id, sizeof(options.id));
    return comm_nccl_open(out, &options, err);
}

/* What carries the device's memory between the ranks of `over`: NCCL between GPUs, host memory elsewhere. */
static int open_device_comm(struct worker *w, struct comm **out, struct comm *over, int color,
                            struct err *err)
{
    const struct worker_settings *s = &w->settings;
    bool gpu = strcmp(device_name(w->device), "cpu") != 0;
    if (gpu && strcmp(s->comm, "shm") == 0)
        return err_set_code(err, EXIT_CONFIG, "comm shm: device %s: expected auto, mpi or nccl",
                            device_name(w->device));
    if (gpu && strcmp(s->comm, "mpi") == 0)
        return comm_mpi_open(out, color, w->device, err);
    if (!gpu && (strcmp(s->comm, "nccl") != 0))
        return open_host_comm(w, out, over, color, w->device, err);
    if (!gpu && !s->nccl_library)
        return err_set_code(err, EXIT_CONFIG,
                            "comm nccl: device %s: NCCL moves the memory of GPUs; expected comm mpi",
                            device_name(w->device));
    return open_nccl(w, out, over, err);
}

/* What carries the rows between stages. Rows in host memory take the way of the descriptors: what a ring had
 * no room for goes on while a rank waits in a comm of its own, and only in that one. A rank that waited for a
 * result in another would keep the rest of the rows, and never get it. */
static int open_row_comm(struct worker *w, struct err *err)
{
    bool host = strcmp(device_name(w->device), "cpu") == 0 && strcmp(w->settings.comm, "nccl") != 0;
    if (!host)
        return open_device_comm(w, &w->data, w->world, 0, err);
    w->data = w->control;
    return 0;
}

/* The slots of this stage among themselves. */
static int open_tensor_comm(struct worker *w, struct err *err)
{
    struct comm *slots = NULL;
    int color = 1 + w->place.stage;
    if (w->layout.tensor == 1)
        return 0;
    int code = comm_mpi_open(&slots, color, NULL, err) || open_device_comm(w, &w->tensor, slots, color, err);
    comm_close(&slots);
    return code ? -1 : 0;
}

/* How the ranks talk, and the wake connections; a group of one rank needs none. */
static int connect_ranks(struct worker *w, struct err *err)
{
    if (w->ranks == 1)
        return 0;
    struct wake_info info = {0};
    uint64_t limit_ms = (uint64_t)w->settings.start_limit_ms;
    if (comm_mpi_open(&w->world, 0, NULL, err) || open_host_comm(w, &w->control, w->world, 0, NULL, err) ||
        open_row_comm(w, err) || open_tensor_comm(w, err) ||
        (w->rank == 0 && wake_listen(&w->wake, &info, err)) ||
        comm_broadcast(w->world, NULL, &info, sizeof(info), 0, err))
        return -1;
    return w->rank == 0 ? wake_accept(w->wake, w->ranks - 1, limit_ms, err)
                        : wake_connect(&w->wake, &info, limit_ms, err);
}

/* Stages share processors where they share a host and may run on the same ones: then they may take turns. No
 * processor is allowed where the kernel did not tell. */
static int share_processors(struct worker *w, struct err *err)
{
    bool shared = w->layout.stages > 1 && w->control->shared && strcmp(device_name(w->device), "cpu") == 0;
    if (!shared)
        return 0;
    cpu_set_t *all = xcalloc((size_t)w->ranks, sizeof(*all));
    int code = comm_allgather(w->control, NULL, &w->allowed, all, sizeof(*all), err);
    for (int r = 0; r < w->ranks && code == 0; r++)
        shared &= CPU_EQUAL(&all[r], &w->allowed) && CPU_COUNT(&all[r]) > 0; /* else each has its own */
    free(all);
    if (code || !shared || w->place.slot > 0)
        return code;
    int processors = w->settings.processors ? (int)w->settings.processors : CPU_COUNT(&w->allowed);
    occupancy_init(&w->occupancy, w->control->shared, device_threads(w->device) * w->layout.tensor,
                   processors);
    return 0;
}

/* Every rank's watchdog tells the leader's what its rank does. */
static void connect_watchdogs(struct worker *w)
{
    const int *fds;
    if (!w->wake)
        return;
    int count = wake_connections(w->wake, &fds);
    if (w->rank == 0)
        watchdog_gather(w->watchdog, fds, count, (uint64_t)w->settings.step_limit_ms);
    else
        watchdog_report(w->watchdog, fds[0]);
}

/* Borrowed from a static buffer: one model a process. */
static struct wire_str model_name(const struct worker *w)
{
    static char name[129];
    const char *base = strrchr(w->settings.model, '/');
    const char *given = w->settings.model_name ? w->settings.model_name : w->source.name;
    base = base ? base + 1 : w->settings.model;
    snprintf(name, sizeof(name), "%s", given ? given : base);
    size_t n = strlen(name);
    if (!given && n > 5 && strcmp(name + n - 5, ".gguf") == 0)
        name[n - 5] = '\0';
    return wire_string_mend(name, sizeof(name) - 1);
}

/* What the leader tells the coordinator; strings stay in `fingerprint` and in the worker. */
static struct wire_hello describe_group(const struct worker *w, struct wire_stage *stages,
                                        char fingerprint[48])
{
    const struct step_limits *l = &w->engine.limits;
    uint64_t load_ms = 0;
    gguf_fingerprint(w->gguf, fingerprint);
    if (w->model->params.rope_long) /* other numbers from the same weights: two digits tell them apart */
        strcat(fingerprint, "01");
    for (int i = 0; i < w->layout.stages; i++) {
        struct rank_card *card = &w->cards[layout_rank(&w->layout, (struct layout_place){.stage = i})];
        stages[i] = (struct wire_stage){.first_layer = (uint64_t)card->first_layer,
                                        .last_layer = (uint64_t)card->last_layer,
                                        .tensor = (uint64_t)w->layout.tensor,
                                        .pid = (uint64_t)card->pid,
                                        .host = wire_string_mend(card->host, sizeof(card->host) - 1)};
    }
    for (int r = 0; r < w->ranks; r++)
        if ((uint64_t)w->cards[r].load_ms > load_ms)
            load_ms = (uint64_t)w->cards[r].load_ms;
    char *ended = w->settings.ended;
    return (struct wire_hello){.group = wire_string(w->settings.group),
                               .ended = ended ? wire_string_mend(ended, WIRE_MAX_ENDED) : wire_string(NULL),
                               .model = model_name(w),
                               .weights = wire_string(fingerprint),
                               .kernels = wire_string(device_kernel_set(w->device)),
                               .kv_type = wire_string(w->settings.kv_type),
                               .tensor = (uint64_t)w->layout.tensor,
                               .max_sequences = (uint64_t)l->slots,
                               .context = (uint64_t)l->context,
                               .pages = (uint64_t)l->pages,
                               .page_tokens = (uint64_t)w->engine.page_tokens,
                               .load_ms = load_ms,
                               .stages = stages,
                               .stage_count = (uint32_t)w->layout.stages};
}

static int open_leader(struct worker *w, struct err *err)
{
    if (!w->settings.server_key || !w->settings.key)
        return err_set(err,
                       "server_key and key: both are needed to reach the coordinator (see lepton keygen)");
    if (!wire_id_valid(wire_string(w->settings.group)))
        return err_set(err, "group: expected 1 to %d of [A-Za-z0-9._:-]", WIRE_MAX_ID);
    if (curve_load(&w->server_key, w->settings.server_key, true, err) ||
        curve_load(&w->key, w->settings.key, false, err) || tokenizer_open(&w->tokenizer, w->gguf, err))
        return -1;
    if (tokenizer_vocab_size(w->tokenizer) > w->engine.limits.vocab)
        return err_set(err, "%s: the tokenizer has %d tokens, the model's embedding %d rows",
                       w->settings.model, tokenizer_vocab_size(w->tokenizer), w->engine.limits.vocab);
    w->is_end = xcalloc((size_t)w->engine.limits.vocab, sizeof(bool));
    for (int32_t id = 0; id < tokenizer_vocab_size(w->tokenizer); id++)
        w->is_end[id] = tokenizer_is_end(w->tokenizer, id);
    mailbox_open(&w->mailbox);
    return 0;
}

static struct serve_options serve_options(struct worker *w)
{
    bool ngram = strcmp(w->settings.speculation, "ngram") == 0;
    return (struct serve_options){.executor = w->executor,
                                  .engine = w->engine,
                                  .control = w->control,
                                  .data = w->data,
                                  .tensor = w->tensor,
                                  .wake = w->wake,
                                  .watchdog = w->watchdog,
                                  .occupancy = w->occupancy.shared ? &w->occupancy : NULL,
                                  .step_limit_ms = (uint64_t)w->settings.step_limit_ms,
                                  .wait_limit_ms = (uint64_t)w->settings.wait_limit_ms,
                                  .mailbox = w->mailbox,
                                  .mixed_tokens = (int32_t)w->settings.mixed_tokens,
                                  .priority_step_ms = (uint64_t)w->settings.priority_step_ms,
                                  .no_prefix_cache = !w->settings.prefix_cache,
                                  .speculation = ngram ? SPECULATION_NGRAM : SPECULATION_OFF,
                                  .draft_tokens = (int32_t)w->settings.speculation_tokens,
                                  .is_end = w->is_end};
}

/* From now on signals drain this link; NULL: no link. A drain that was asked for before is not lost. */
static void serving(struct link *link)
{
    signal_link = link;
    if (link && drain_asked)
        link_drain(link);
}

static int lead(struct worker *w, struct err *err)
{
    char fingerprint[48];
    struct wire_stage *stages = xcalloc((size_t)w->layout.stages, sizeof(*stages));
    struct link_options link = {.endpoint = w->settings.endpoint,
                                .server_key = w->server_key.public_key,
                                .key = &w->key,
                                .hello = describe_group(w, stages, fingerprint),
                                .tokenizer = w->tokenizer,
                                .mailbox = w->mailbox,
                                .watchdog = w->watchdog,
                                .max_live = 2 * (uint32_t)w->engine.limits.slots};
    struct serve_options options = serve_options(w);
    int code = link_start(&w->link, &link, err);
    if (code == 0) {
        serving(w->link);
        code = serve_leader(&options, err);
    } else {
        err->code = EXIT_CONFIG; /* an endpoint that cannot be one */
    }
    if (code == 0) {
        serving(NULL);
        link_stop(&w->link);
    }
    free(stages);
    return code;
}

static void release(struct worker *w)
{
    watchdog_stop(&w->watchdog);
    mailbox_close(&w->mailbox);
    tokenizer_close(&w->tokenizer);
    wake_close(&w->wake);
    comm_close(&w->tensor);
    if (w->data != w->control)
        comm_close(&w->data);
    comm_close(&w->control);
    comm_close(&w->world);
    executor_close(&w->executor);
    model_close(&w->model);
    device_close(&w->device);
    gguf_close(&w->gguf);
    registry_release(&w->source);
    curve_wipe(&w->key);
    free(w->cards);
    free(w->is_end);
    free(w->first_layer);
    config_release(&worker_table, &w->settings);
}

static void setup_log(const struct worker_settings *s, int rank)
{
    static char program[128];
    enum log_level level = LOG_INFO;
    log_level_from_name(s->log_level, &level);
    snprintf(program, sizeof(program), "worker %s/%d", s->group, rank);
    log_setup(program, level, strcmp(s->log_format, "json") == 0 ? LOG_JSON : LOG_TEXT);
}

#ifdef LEPTON_SANITIZE
/* What Open MPI keeps until its process ends is no leak of ours, and has no name by which it could be told
 * apart; a rank without it is looked at. */
int __lsan_is_turned_off(void);
int __lsan_is_turned_off(void)
{
    int started = 0;
    MPI_Initialized(&started);
    return started;
}
#endif

/* A drain may be asked for by SIGTERM, SIGINT or SIGUSR2 (mpirun forwards the last as it is); only the leader
 * acts. */
static void install_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGUSR2, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
}

int main(int argc, char **argv)
{
    struct worker w = {0};
    struct err err = {0};
    config_main(&worker_table, &w.settings, argc, argv, NULL, 0);
    setup_log(&w.settings, 0);
    if (w.settings.mock) {
        install_signals();
        int code = mock_run(&w.settings, serving, &err) ? EXIT_CONFIG : 0;
        if (code)
            log_error("worker", "%s", err.message);
        config_release(&worker_table, &w.settings);
        return code;
    }
    if (!w.settings.model) {
        fprintf(stderr, "lepton-worker: --model: expected the path of a GGUF file or a registered name\n");
        return 2;
    }
    install_signals();
    start_mpi(&w);
    if (w.settings.last_words)
        last_words_open(w.settings.last_words); /* behind MPI, which catches the same signals */
    setup_log(&w.settings, w.rank);
    uint64_t begun_ms = clock_now_ms();
    sched_getaffinity(0, sizeof(w.allowed), &w.allowed);
    if (place_rank(&w, &err) || open_model(&w, &err) || (w.rank == 0 && open_leader(&w, &err)))
        leave(&w, EXIT_CONFIG, &err);
    watchdog_start(&w.watchdog, w.rank);
    gather_cards(&w, clock_now_ms() - begun_ms);
    if (connect_ranks(&w, &err) || share_processors(&w, &err))
        leave(&w, err.code == EXIT_CONFIG ? EXIT_CONFIG : EXIT_GROUP, &err);
    connect_watchdogs(&w);
    char slot[48] = "";
    if (w.layout.tensor > 1)
        snprintf(slot, sizeof(slot), " slot %d of %d,", w.place.slot, w.layout.tensor);
    log_info("worker", "rank %d of %d:%s layers %d to %d of %s, loaded in %llu ms%s%s", w.rank, w.ranks, slot,
             w.first_layer[w.place.stage], w.first_layer[w.place.stage + 1] - 1, w.settings.model,
             (unsigned long long)(clock_now_ms() - begun_ms), w.data ? ", rows over " : "",
             w.data ? w.data->name : "");
    if (w.source.checked_bytes)
        log_info("worker", "rank %d: %llu MB of weights match their hashes", w.rank,
                 (unsigned long long)(w.source.checked_bytes / 1000000));
    struct serve_options options = serve_options(&w);
    if (w.rank == 0 ? lead(&w, &err) : serve_follower(&options, &err))
        leave(&w, err.code == EXIT_CONFIG ? EXIT_CONFIG : EXIT_GROUP, &err);
    bool alone = w.settings.alone;
    release(&w);
    if (!alone)
        MPI_Finalize();
    return 0;
}
