#include "worker/model/integrity.h"

#include <sodium.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "kernels/cpu/team.h"

#define PIECE_CHUNKS 64 /* between two reports of progress */

_Static_assert(sizeof(XXH128_canonical_t) == MANIFEST_CHUNK_HASH, "XXH3-128 has 16 bytes");

/* The same hash with the widest vectors of this processor, a fifth faster: in libxxhash where it was built
 * for x86 with run-time dispatch, absent (NULL) elsewhere. */
XXH128_hash_t XXH3_128bits_dispatch(const void *data, size_t bytes) __attribute__((weak));
XXH_errorcode XXH3_128bits_update_dispatch(XXH3_state_t *state, const void *data, size_t bytes)
    __attribute__((weak));

static XXH128_hash_t xxh3(const void *data, size_t bytes)
{
    return XXH3_128bits_dispatch ? XXH3_128bits_dispatch(data, bytes) : XXH3_128bits(data, bytes);
}

/* The hashes of one tensor's chunks, being made or compared. */
struct job {
    const uint8_t *data;   /* of the tensor */
    uint64_t bytes, first; /* the range begins at this chunk */
    uint8_t *made;         /* xxh3 of every chunk goes here; NULL = compare with `wanted` */
    const uint8_t *wanted; /* [chunks] */
    uint8_t *blake;        /* [chunks] BLAKE2b of every chunk goes here; NULL = not wanted */
    _Atomic uint64_t bad;  /* the first chunk that differs; UINT64_MAX = none */
};

/* A tensor that somebody else reads. */
struct reading {
    const struct manifest *m;
    const struct gguf_tensor *t;
    const struct manifest_tensor *want;
    uint64_t begin;
    struct job job;
};

/* A chunk that a thread is in the middle of. */
struct thread_chunk {
    bool open;
    uint64_t chunk, next; /* the first byte of the tensor that it has not hashed */
    XXH3_state_t *state;
};

struct integrity {
    struct team *team;
    struct reading reading;
    struct thread_chunk *thread; /* [threads], of the reading */
    int threads;
};

int integrity_open(struct integrity **out, int threads, struct err *err)
{
    struct integrity *i = xcalloc(1, sizeof(*i));
    *out = NULL;
    if (sodium_init() < 0)
        die("libsodium cannot be initialised");
    i->team = team_new(threads, err);
    if (!i->team) {
        free(i);
        return -1;
    }
    *out = i;
    return 0;
}

void integrity_close(struct integrity **i)
{
    if (!i || !*i)
        return;
    team_free(&(*i)->team);
    for (int k = 0; k < (*i)->threads; k++)
        XXH3_freeState((*i)->thread[k].state);
    free((*i)->thread);
    free(*i);
    *i = NULL;
}

/* ---- chunks, by several threads ----------------------------------------------------------------------- */

static uint64_t chunk_bytes(uint64_t bytes, uint64_t chunk)
{
    uint64_t left = bytes - chunk * MANIFEST_CHUNK;
    return left < MANIFEST_CHUNK ? left : MANIFEST_CHUNK;
}

static void note_bad(struct job *job, uint64_t chunk)
{
    uint64_t least = atomic_load(&job->bad);
    while (chunk < least && !atomic_compare_exchange_weak(&job->bad, &least, chunk))
        ;
}

static void compare(struct job *job, uint64_t chunk, XXH128_hash_t found)
{
    XXH128_canonical_t hash;
    XXH128_canonicalFromHash(&hash, found);
    if (job->made)
        memcpy(job->made + chunk * MANIFEST_CHUNK_HASH, &hash, sizeof(hash));
    else if (memcmp(job->wanted + chunk * MANIFEST_CHUNK_HASH, &hash, sizeof(hash)) != 0)
        note_bad(job, chunk);
}

static void hash_chunk(struct job *job, uint64_t chunk)
{
    uint64_t bytes = chunk_bytes(job->bytes, chunk);
    const uint8_t *data = job->data + chunk * MANIFEST_CHUNK;
    if (job->blake)
        crypto_generichash(job->blake + chunk * MANIFEST_HASH, MANIFEST_HASH, data, bytes, NULL, 0);
    compare(job, chunk, xxh3(data, bytes));
}

static void hash_chunks(void *context, int64_t begin, int64_t end, int member)
{
    struct job *job = context;
    (void)member;
    for (int64_t k = begin; k < end; k++)
        hash_chunk(job, job->first + (uint64_t)k);
}

/* -1 when `watch` stopped it. */
static int run(struct integrity *i, struct job *job, const char *name, const struct integrity_watch *watch)
{
    uint64_t chunks = manifest_chunks(job->bytes);
    for (uint64_t first = 0; first < chunks; first += PIECE_CHUNKS) {
        uint64_t count = chunks - first < PIECE_CHUNKS ? chunks - first : PIECE_CHUNKS;
        uint64_t end =
            (first + count) * MANIFEST_CHUNK < job->bytes ? (first + count) * MANIFEST_CHUNK : job->bytes;
        job->first = first;
        team_for(i->team, (int64_t)count, 1, hash_chunks, job);
        if (watch && watch->progress && !watch->progress(watch->context, end - first * MANIFEST_CHUNK, name))
            return -1;
    }
    return 0;
}

/* "NAME: tensor T: chunk 17 (bytes A-B of the file) " */
static void place_of(const struct manifest *m, const struct gguf_tensor *t, const char *name, uint64_t chunk,
                     char out[320])
{
    uint64_t from = chunk * MANIFEST_CHUNK, bytes = chunk_bytes(t->bytes, chunk);
    const char *whole = "of the tensor";
    if (t->mapped) { /* the place where an editor or a disk's log finds it */
        from += t->offset;
        whole = "of the file";
    }
    snprintf(out, 320, "%s: tensor %s: chunk %llu (bytes %llu-%llu %s)", m->name, name,
             (unsigned long long)chunk, (unsigned long long)from, (unsigned long long)(from + bytes - 1),
             whole);
}

/* ---- making ------------------------------------------------------------------------------------------- */

/* A tensor's BLAKE2b is that of its chunks' BLAKE2bs: so they can be made side by side. */
static void join_blake(const struct job *job, uint8_t out[MANIFEST_HASH])
{
    crypto_generichash(out, MANIFEST_HASH, job->blake, manifest_chunks(job->bytes) * MANIFEST_HASH, NULL, 0);
}

int integrity_make(struct integrity *i, struct manifest *m, const struct gguf *g,
                   const struct integrity_watch *watch, struct err *err)
{
    const void *header = gguf_header(g, &m->header_bytes);
    crypto_generichash(m->header, sizeof(m->header), header, m->header_bytes, NULL, 0);
    ASSERT(!m->tensor);
    m->tensor = xcalloc(gguf_tensor_count(g) + 1, sizeof(*m->tensor));
    m->tensor_count = gguf_tensor_count(g);
    for (uint64_t k = 0; k < m->tensor_count; k++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, k);
        struct manifest_tensor *out = &m->tensor[k];
        uint64_t chunks = manifest_chunks(t->bytes);
        *out = (struct manifest_tensor){.name = xasprintf("%.*s", (int)t->name.size, t->name.data),
                                        .bytes = t->bytes,
                                        .chunk = xmalloc(chunks * MANIFEST_CHUNK_HASH)};
        gguf_tensor_ask(g, t);
        struct job job = {.data = gguf_tensor_data(g, t),
                          .bytes = t->bytes,
                          .made = out->chunk,
                          .blake = xmalloc(chunks * MANIFEST_HASH)};
        int stopped = run(i, &job, out->name, watch);
        if (!stopped)
            join_blake(&job, out->hash);
        free(job.blake);
        gguf_tensor_drop(g, t);
        if (stopped)
            return err_set(err, "%s: stopped", gguf_name(g));
    }
    return 0;
}

/* ---- checking ----------------------------------------------------------------------------------------- */

int integrity_check_header(const struct manifest *m, const void *data, uint64_t bytes, struct err *err)
{
    uint8_t hash[MANIFEST_HASH];
    if (bytes < m->header_bytes)
        return err_set(err, "%s: the file has %llu bytes, its header and tables alone had %llu", m->name,
                       (unsigned long long)bytes, (unsigned long long)m->header_bytes);
    crypto_generichash(hash, sizeof(hash), data, m->header_bytes, NULL, 0);
    if (memcmp(hash, m->header, sizeof(hash)) == 0)
        return 0;
    return err_set(err,
                   "%s: header, metadata and tensor table (bytes 0-%llu of the file) do not match their hash",
                   m->name, (unsigned long long)(m->header_bytes - 1));
}

int integrity_check_table(const struct manifest *m, const struct gguf *g, struct err *err)
{
    if (gguf_tensor_count(g) != m->tensor_count)
        return err_set(err, "%s: the file has %llu tensors, the manifest %llu", m->name,
                       (unsigned long long)gguf_tensor_count(g), (unsigned long long)m->tensor_count);
    for (uint64_t k = 0; k < m->tensor_count; k++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, k);
        const struct manifest_tensor *want = &m->tensor[k];
        if (t->name.size != strlen(want->name) || memcmp(t->name.data, want->name, t->name.size) != 0)
            return err_set(err, "%s: tensor %llu is called %.*s in the file and %s in the manifest", m->name,
                           (unsigned long long)k, (int)t->name.size, t->name.data, want->name);
        if (t->bytes != want->bytes)
            return err_set(err, "%s: tensor %s has %llu bytes in the file and %llu in the manifest", m->name,
                           want->name, (unsigned long long)t->bytes, (unsigned long long)want->bytes);
    }
    return 0;
}

static int mismatch(const struct manifest *m, const struct gguf_tensor *t, const struct manifest_tensor *want,
                    uint64_t chunk, struct err *err)
{
    char place[320];
    place_of(m, t, want->name, chunk, place);
    return err_set(err, "%s does not match its hash", place);
}

int integrity_check_tensor(struct integrity *i, const struct manifest *m, const struct gguf *g,
                           const struct gguf_tensor *t, struct err *err)
{
    uint64_t index = (uint64_t)(t - gguf_tensor_at(g, 0));
    ASSERT(index < m->tensor_count && m->tensor[index].bytes == t->bytes);
    gguf_tensor_ask(g, t);
    struct job job = {.data = gguf_tensor_data(g, t),
                      .bytes = t->bytes,
                      .wanted = m->tensor[index].chunk,
                      .bad = UINT64_MAX};
    run(i, &job, m->tensor[index].name, NULL);
    return job.bad == UINT64_MAX ? 0 : mismatch(m, t, &m->tensor[index], job.bad, err);
}

void integrity_read_begin(struct integrity *i, const struct manifest *m, const struct gguf *g,
                          const struct gguf_tensor *t, uint64_t begin, int threads)
{
    uint64_t index = (uint64_t)(t - gguf_tensor_at(g, 0));
    ASSERT(index < m->tensor_count && m->tensor[index].bytes == t->bytes);
    i->reading = (struct reading){.m = m,
                                  .t = t,
                                  .want = &m->tensor[index],
                                  .begin = begin,
                                  .job = {.data = gguf_tensor_data(g, t),
                                          .bytes = t->bytes,
                                          .wanted = m->tensor[index].chunk,
                                          .bad = UINT64_MAX}};
    for (; i->threads < threads; i->threads++) {
        i->thread = xrealloc(i->thread, ((size_t)i->threads + 1) * sizeof(*i->thread));
        i->thread[i->threads] = (struct thread_chunk){.state = XXH3_createState()};
        if (!i->thread[i->threads].state)
            die("no memory for the state of a hash");
    }
    for (int k = 0; k < i->threads; k++)
        i->thread[k].open = false;
}

/* Hashes on to byte `end` of the tensor or to the end of the chunk. */
static void go_on(struct job *job, struct thread_chunk *c, uint64_t end)
{
    uint64_t chunk_end = c->chunk * MANIFEST_CHUNK + chunk_bytes(job->bytes, c->chunk);
    uint64_t to = end < chunk_end ? end : chunk_end;
    if (to > c->next)
        (XXH3_128bits_update_dispatch ? XXH3_128bits_update_dispatch
                                      : XXH3_128bits_update)(c->state, job->data + c->next, to - c->next);
    c->next = to;
    if (to < chunk_end)
        return;
    compare(job, c->chunk, XXH3_128bits_digest(c->state));
    c->open = false;
}

/* A chunk belongs to who is told of its first byte; the one that began before the first run, to the first. */
void integrity_read(struct integrity *i, uint64_t begin, uint64_t end, int thread)
{
    struct reading *r = &i->reading;
    ASSERT(begin >= r->begin && begin <= end && end <= r->job.bytes && thread >= 0 && thread < i->threads);
    struct thread_chunk *c = &i->thread[thread];
    if (c->open && c->next != begin)
        go_on(&r->job, c, UINT64_MAX);
    if (c->open)
        go_on(&r->job, c, end);
    uint64_t chunk = (begin + (begin == r->begin ? 0 : MANIFEST_CHUNK - 1)) / MANIFEST_CHUNK;
    for (; !c->open && chunk * MANIFEST_CHUNK < end; chunk++) {
        c->open = true;
        c->chunk = chunk;
        c->next = chunk * MANIFEST_CHUNK;
        XXH3_128bits_reset(c->state);
        go_on(&r->job, c, end);
    }
}

int integrity_read_end(struct integrity *i, struct err *err)
{
    struct reading *r = &i->reading;
    for (int k = 0; k < i->threads; k++)
        if (i->thread[k].open)
            go_on(&r->job, &i->thread[k], UINT64_MAX);
    return r->job.bad == UINT64_MAX ? 0 : mismatch(r->m, r->t, r->want, r->job.bad, err);
}

/* Both kinds of hashes of one tensor; every bad chunk is reported. */
static int check_whole(struct integrity *i, const struct manifest *m, const struct gguf *g, uint64_t index,
                       const struct integrity_watch *watch, void (*found)(void *context, const char *message),
                       uint64_t *mismatches)
{
    const struct gguf_tensor *t = gguf_tensor_at(g, index);
    const struct manifest_tensor *want = &m->tensor[index];
    uint64_t chunks = manifest_chunks(t->bytes), bad = 0;
    uint8_t hash[MANIFEST_HASH];
    struct err err;
    gguf_tensor_ask(g, t);
    struct job job = {.data = gguf_tensor_data(g, t),
                      .bytes = t->bytes,
                      .made = xmalloc(chunks * MANIFEST_CHUNK_HASH),
                      .blake = xmalloc(chunks * MANIFEST_HASH)};
    int stopped = run(i, &job, want->name, watch);
    for (uint64_t c = 0; c < chunks && !stopped; c++) {
        if (memcmp(job.made + c * MANIFEST_CHUNK_HASH, want->chunk + c * MANIFEST_CHUNK_HASH,
                   MANIFEST_CHUNK_HASH) == 0)
            continue;
        mismatch(m, t, want, c, &err);
        found(watch ? watch->context : NULL, err.message);
        bad++;
    }
    if (!stopped) {
        join_blake(&job, hash);
        if (bad == 0 && memcmp(hash, want->hash, sizeof(hash)) != 0) {
            /* Not by chance: chunks that differ have the same XXH3. */
            err_set(&err,
                    "%s: tensor %s: does not match its BLAKE2b though every chunk matches its XXH3: it "
                    "was changed on purpose",
                    m->name, want->name);
            found(watch ? watch->context : NULL, err.message);
            bad++;
        }
    }
    *mismatches += bad;
    gguf_tensor_drop(g, t);
    free(job.made);
    free(job.blake);
    return stopped;
}

int integrity_check_all(struct integrity *i, const struct manifest *m, const struct gguf *g,
                        const struct integrity_watch *watch,
                        void (*found)(void *context, const char *message), uint64_t *mismatches,
                        struct err *err)
{
    uint64_t bytes;
    const void *header = gguf_header(g, &bytes);
    struct err bad;
    *mismatches = 0;
    if (integrity_check_header(m, header, bytes, &bad)) {
        found(watch ? watch->context : NULL, bad.message);
        ++*mismatches;
    }
    /* With another table the tensors are other tensors: nothing is left to compare. */
    if (integrity_check_table(m, g, &bad)) {
        found(watch ? watch->context : NULL, bad.message);
        ++*mismatches;
        return 0;
    }
    for (uint64_t k = 0; k < m->tensor_count; k++)
        if (check_whole(i, m, g, k, watch, found, mismatches))
            return err_set(err, "%s: stopped", m->name);
    return 0;
}
