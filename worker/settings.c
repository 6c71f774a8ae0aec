#include "worker/settings.h"

#include <stdlib.h>
#include <string.h>

#include "worker/infer/speculate.h"
#include "worker/layout.h"
#include "worker/model/registry.h"

#define OPTION(member) offsetof(struct worker_settings, member)

static const struct config_option options[] = {
    {"config", 'c', CONFIG_STRING, OPTION(config), 0, 0, NULL, "PATH", NULL,
     "read options from this file first", true},
    {"model", 'm', CONFIG_STRING, OPTION(model), 0, 0, NULL, "MODEL", NULL,
     "the model: a GGUF file or a Hugging Face directory that every rank can read, or a name of `lepton "
     "models`",
     false},
    {"mock", 0, CONFIG_STRING, OPTION(mock), 0, 0, NULL, "SPEED", NULL,
     "for load tests: no model, but answers at the speed that this file gives (docs/scheduling.md)", false},
    {"models", 0, CONFIG_STRING, OPTION(models), 0, 0, NULL, "DIR", NULL,
     "the directory of registered models (default: as of `lepton models`)", false},
    {"verify", 0, CONFIG_STRING, OPTION(verify), 0, 0, "registered", "WHEN", REGISTRY_VERIFY_CHOICES,
     "check the weights against their hashes as they are loaded: of registered models, never, or always "
     "(refuses models without hashes)",
     false},
    {"model_name", 0, CONFIG_STRING, OPTION(model_name), 0, 0, NULL, "NAME", NULL,
     "the name clients ask for (default: the registered name, else the file's without .gguf)", false},
    {"group", 'g', CONFIG_STRING, OPTION(group), 0, 0, "g0", "NAME", NULL, "name of this group, one per job",
     false},
    {"endpoint", 'e', CONFIG_STRING, OPTION(endpoint), 0, 0, "tcp://127.0.0.1:5555", "tcp://HOST:PORT", NULL,
     "the coordinator", false},
    {"server_key", 0, CONFIG_STRING, OPTION(server_key), 0, 0, NULL, "PATH", NULL,
     "the coordinator's public key file (.pub)", false},
    {"key", 'k', CONFIG_STRING, OPTION(key), 0, 0, NULL, "PATH", NULL,
     "this worker's key file (.key, mode 0600)", false},
    {"device", 'd', CONFIG_STRING, OPTION(device), 0, 0, "cpu", "NAME", NULL, "cpu or cuda:N", false},
    {"comm", 0, CONFIG_STRING, OPTION(comm), 0, 0, "auto", "NAME", "auto|shm|mpi|nccl",
     "what carries rows and sums between ranks: shm (memory shared by ranks of one host), mpi (host memory; "
     "GPU memory is staged), nccl; auto = nccl for GPUs, else shm where the ranks share a host, else mpi",
     false},
    {"nccl_library", 0, CONFIG_STRING, OPTION(nccl_library), 0, 0, NULL, "PATH", NULL,
     "the NCCL library (default: libnccl.so.2 of the system)", false},
    {"kernels", 0, CONFIG_STRING, OPTION(kernels), 0, 0, "auto", "NAME",
     "auto|reference|avx2|avx512vnni|avx512bf16",
     "kernel set of the cpu device, part of the numeric class; auto = the fastest that this processor has",
     false},
    {"f16_as_bf16", 0, CONFIG_BOOL, OPTION(f16_as_bf16), 0, 0, NULL, NULL, NULL,
     "round F16 weights to BF16 for the kernel set avx512bf16: faster, less exact", false},
    {"threads", 't', CONFIG_INT, OPTION(threads), 0, 1024, "1", "N", NULL,
     "threads that compute, per rank; 0 = every processor allowed to the rank", false},
    {"processors", 0, CONFIG_INT, OPTION(processors), 0, 65536, "0", "N", NULL,
     "processors that the ranks of this host share, to tell waits from bubbles; 0 = those allowed to a rank",
     false},
    {"tensor", 0, CONFIG_INT, OPTION(tensor), 1, 256, "1", "T", NULL,
     "tensor slots of a stage: ranks that share each layer; the job has stages x T ranks, those of a stage "
     "next to each other",
     false},
    {"context", 0, CONFIG_INT, OPTION(context), 0, 1 << 24, "0", "N", NULL,
     "most tokens of a sequence, prompt included; 0 = the model's, at most 4096", false},
    {"max_sequences", 0, CONFIG_INT, OPTION(max_sequences), 1, 4096, "16", "N", NULL,
     "sequences that run at once", false},
    {"step_tokens", 0, CONFIG_INT, OPTION(step_tokens), 1, 65536, "512", "N", NULL,
     "rows of one step: decoding sequences first, prompts in chunks of what is left", false},
    {"mixed_tokens", 0, CONFIG_INT, OPTION(mixed_tokens), 0, 65536, "128", "N", NULL,
     "the same while sequences decode, so that their next tokens do not wait long for others' prompts; 0 = "
     "step_tokens",
     false},
    {"page_tokens", 0, CONFIG_INT, OPTION(page_tokens), 1, 4096, "16", "N", NULL, "positions in one KV page",
     false},
    {"kv_bytes", 0, CONFIG_INT, OPTION(kv_bytes), 1 << 12, 1e15, "1073741824", "BYTES", NULL,
     "memory for the KV cache, per rank: a hard limit; what does not fit waits, or is preempted and "
     "recomputed",
     false},
    {"prefix_cache", 0, CONFIG_BOOL, OPTION(prefix_cache), 0, 0, "true", NULL, NULL,
     "keep the pages of what was computed while nobody needs them, for prompts that begin alike", false},
    {"priority_step_ms", 0, CONFIG_INT, OPTION(priority_step_ms), 0, 3600000, "100", "MS", NULL,
     "a level of priority (0 to 1000, the lower goes first) is a head start of so long", false},
    {"kv_type", 0, CONFIG_STRING, OPTION(kv_type), 0, 0, "f32", "TYPE", "f32|f16|bf16|q8_0",
     "element type of the KV cache, part of the numeric class: f16 and bf16 take half of f32's memory, q8_0 "
     "about a quarter",
     false},
    {"speculation", 0, CONFIG_STRING, OPTION(speculation), 0, 0, "off", "HOW", "off|ngram",
     "draft tokens from the text so far and verify them in one step, for requests that do not say: the "
     "same tokens, sooner where text repeats itself",
     false},
    {"speculation_tokens", 0, CONFIG_INT, OPTION(speculation_tokens), 1, SPECULATE_MAX_TOKENS, "8", "N", NULL,
     "most tokens of one draft; fewer are drafted while drafts are rejected or many sequences run", false},
    {"alone", 0, CONFIG_BOOL, OPTION(alone), 0, 0, "false", NULL, NULL,
     "this process is the whole group: it starts without MPI (`lepton group` says so where it can)", true},
    {"ended", 0, CONFIG_STRING, OPTION(ended), 0, 0, NULL, "HOW", NULL,
     "how the job before this one ended (`lepton group` says so): what kills groups is found by it", true},
    {"last_words", 0, CONFIG_STRING, OPTION(last_words), 0, 0, NULL, "ADDRESS", NULL,
     "where `lepton group` listens for what this rank dies of: its launcher's exit code may be another "
     "rank's",
     true},
    {"step_limit_ms", 0, CONFIG_INT, OPTION(step_limit_ms), 100, 86400000, "20000", "MS", NULL,
     "a rank that makes no progress inside a step for so long ends, and a group of which no rank moves",
     false},
    {"wait_limit_ms", 0, CONFIG_INT, OPTION(wait_limit_ms), 100, 86400000, "60000", "MS", NULL,
     "a rank that waits for another for so long ends", false},
    {"start_limit_ms", 0, CONFIG_INT, OPTION(start_limit_ms), 1000, 86400000, "120000", "MS", NULL,
     "most time for all ranks to find each other at the start", false},
    {"load_log_ms", 0, CONFIG_INT, OPTION(load_log_ms), 0, 86400000, "1000", "MS", NULL,
     "a load that takes longer says in the log how far it is, and as often", false},
    {"load_file", 0, CONFIG_STRING, OPTION(load_file), 0, 0, NULL, "FILE", NULL,
     "while it loads, each rank keeps the share done, in percent, in FILE.RANK", false},
    {"log_level", 0, CONFIG_STRING, OPTION(log_level), 0, 0, "info", "LEVEL", "debug|info|warn|error",
     "least level logged", false},
    {"log_format", 0, CONFIG_STRING, OPTION(log_format), 0, 0, "text", "FORMAT", "text|json",
     "form of a log line", false},
};

const struct config_table worker_table = {
    .program = "lepton-worker",
    .about = "One rank of a worker group. Started by mpirun or srun (usually through `lepton group`): the "
             "job has as many "
             "ranks as the pipeline has stages, times the tensor slots of each; rank 0 leads and talks to "
             "the coordinator.",
    .after = "exit codes:\n"
             "  0 drained   2 wrong usage   69 out of memory   70 lost a resource   71 stuck (ended by the "
             "watchdog)\n"
             "  72 the group could not go on   78 the model or the configuration cannot be served\n",
    .options = options,
    .option_count = ARRAY_LEN(options),
    .settings_bytes = sizeof(struct worker_settings),
};

int settings_split(const struct gguf *g, const struct model_params *params, int stages, int *first,
                   struct err *err)
{
    int layers = (int)params->layers;
    uint64_t *cost = xcalloc((size_t)layers, sizeof(*cost)), head = 0;
    int code = model_head_bytes(g, params, &head, err);
    for (int l = 0; l < layers && code == 0; l++)
        code = model_layer_bytes(g, params, l, &cost[l], err);
    /* The embedding costs a token one row: nothing beside the matrices. */
    if (code == 0)
        code = layout_split(cost, layers, 0, head, stages, first, err);
    free(cost);
    return code;
}

int settings_engine(struct executor_options *out, const struct worker_settings *s,
                    const struct model_params *params, int64_t layers, struct err *err)
{
    int64_t context = s->context ? s->context : params->context < 4096 ? params->context : 4096;
    if (context > params->context)
        return err_set(err, "context: %lld is more than the model's %lld", (long long)context,
                       (long long)params->context);
    enum dtype kv_type;
    bool known = dtype_from_name(s->kv_type, &kv_type);
    ASSERT(known);
    int64_t per_sequence = (context + s->page_tokens - 1) / s->page_tokens;
    uint64_t page_bytes = kv_page_bytes(params, layers, (int32_t)s->page_tokens, kv_type);
    uint64_t pages = (uint64_t)s->kv_bytes / page_bytes;
    if (pages > INT32_MAX / 2)
        pages = INT32_MAX / 2;
    if (pages < 1)
        return err_set(err, "kv_bytes: %lld is less than one page of %llu bytes", (long long)s->kv_bytes,
                       (unsigned long long)page_bytes);
    struct step_limits *l = &out->limits;
    *out = (struct executor_options){.page_tokens = (int32_t)s->page_tokens, .kv_type = kv_type};
    l->tokens = (int32_t)s->step_tokens;
    l->slots = (int32_t)s->max_sequences;
    l->sequences = l->slots < l->tokens ? l->slots : l->tokens;
    l->samples =
        l->sequences + SPECULATE_STEP_ROWS < l->tokens ? l->sequences + SPECULATE_STEP_ROWS : l->tokens;
    l->context = (int32_t)context;
    l->pages = (int32_t)pages;
    l->pages_per_sequence = (int32_t)per_sequence;
    l->vocab = (int32_t)params->vocab;
    l->biases = l->sequences * SAMPLE_MAX_BIASES;
    /* A sequence that begins on cached pages brings a whole table and its tokens along, so a step has room
     * for one of those besides its own rows' pages: full ones, and at either end of each sequence's run one
     * that is begun (cleared or copied, and assigned). */
    l->page_ops = 2 * l->pages_per_sequence + 2 * (l->tokens / out->page_tokens) + 4 * l->sequences;
    l->history = l->context;
    return 0;
}
