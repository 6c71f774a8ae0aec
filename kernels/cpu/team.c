/* team: see team.h.
 *
 * A job is opened by setting bit 0 of `state`; a helper joins by adding 2 to it while that bit is set, and
 * leaves by taking the 2 off. The caller works too; when no chunk is left it clears the bit and waits for
 * those who joined. A helper that wakes too late finds the job closed and goes back to sleep, so a
 * descheduled helper delays nobody.
 *
 *   generation  n                         n+1
 *   caller      open, work ....., close, wait for state == 0
 *   helper 1       join, work ......, leave
 *   helper 2    (asleep)                 wakes: closed, waits for n+2
 *
 * Each member begins with its own part of the range and takes chunks from the front of it, so that what it
 * reads lies in one run and what it asks memory for ahead of its use is its own. Who has none left takes half
 * of what another has not begun.
 */
#include "kernels/cpu/team.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define TEAM_MAX_THREADS 1024
/* How long one waits awake: longer than the gap between two kernels of a step and than that between two steps
 * of generation, so that neither pays for falling asleep and being woken. */
#define SPIN_NS 100000
/* Pauses, of 15 to 140 cycles by processor, between two looks at the clock. */
#define SPIN_PAUSES 32
/* A chunk is one part in so many of what a member has left: the last ones are short, so that all end together
 * (guided self-scheduling: Polychronopoulos and Kuck, 1987). */
#define CHUNK_SHARE 8
#define JOB_OPEN    1u
#define JOB_MEMBER  2u

struct member {
    struct team *team;
    pthread_t thread;
    int index;
    void *scratch;
    size_t scratch_bytes;
    /* The pieces that are this member's and not begun: the first in the low half, the end in the high one. A
     * piece is begun once, so that a job never has the same value here twice, the empty one excepted. */
    _Atomic uint64_t left __attribute__((aligned(128)));
} __attribute__((aligned(128))); /* neighbours never share a cache line */

struct team {
    int threads;
    struct member *members; /* [threads]; 0 is whoever calls */
    pthread_mutex_t turn;   /* held for one team_for: callers take turns */

    _Atomic uint32_t generation; /* counts jobs; helpers sleep on it */
    _Atomic uint32_t sleepers;
    _Atomic uint32_t state; /* JOB_OPEN + JOB_MEMBER * helpers inside */
    _Atomic bool stop;

    /* The job; written only while state == 0. */
    team_body *body;
    void *context;
    int64_t count, piece; /* indices; of each piece but the last */
};

static _Thread_local bool inside_body; /* a nested call would wait for itself */

static void futex_sleep(_Atomic uint32_t *word, uint32_t expected)
{
    syscall(SYS_futex, (uint32_t *)word, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0);
}

static void futex_wake_all(_Atomic uint32_t *word)
{
    syscall(SYS_futex, (uint32_t *)word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static inline void pause_briefly(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

struct spin {
    int pauses;
    int64_t until_ns;
};

static int64_t monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Pauses; false when it is time to sleep. */
static bool spin_on(struct spin *s)
{
    pause_briefly();
    if (++s->pauses % SPIN_PAUSES != 0)
        return true;
    int64_t now = monotonic_ns();
    if (s->until_ns == 0)
        s->until_ns = now + SPIN_NS;
    return now < s->until_ns;
}

struct pieces {
    uint32_t begin, end;
};

static uint64_t pack_pieces(uint32_t begin, uint32_t end)
{
    return begin < end ? (uint64_t)end << 32 | begin : 0;
}

static struct pieces unpack_pieces(uint64_t word)
{
    return (struct pieces){.begin = (uint32_t)word, .end = (uint32_t)(word >> 32)};
}

/* The next chunk of the member's own pieces; false when it has none. */
static bool take_own(struct member *self, struct pieces *out)
{
    uint64_t word = atomic_load_explicit(&self->left, memory_order_relaxed);
    for (;;) {
        struct pieces p = unpack_pieces(word);
        if (p.begin >= p.end)
            return false;
        uint32_t next = p.begin + 1 + (p.end - p.begin - 1) / CHUNK_SHARE;
        if (atomic_compare_exchange_weak_explicit(&self->left, &word, pack_pieces(next, p.end),
                                                  memory_order_relaxed, memory_order_relaxed)) {
            *out = (struct pieces){p.begin, next};
            return true;
        }
    }
}

/* The later half of what somebody else has not begun becomes the member's own; false when nobody has any. */
static bool take_from_others(struct member *self)
{
    struct team *team = self->team;
    for (int i = 1; i < team->threads; i++) {
        struct member *other = &team->members[(self->index + i) % team->threads];
        uint64_t word = atomic_load_explicit(&other->left, memory_order_relaxed);
        for (;;) {
            struct pieces p = unpack_pieces(word);
            if (p.begin >= p.end)
                break;
            uint32_t middle = p.begin + (p.end - p.begin) / 2;
            if (atomic_compare_exchange_weak_explicit(&other->left, &word, pack_pieces(p.begin, middle),
                                                      memory_order_relaxed, memory_order_relaxed)) {
                atomic_store_explicit(&self->left, pack_pieces(middle, p.end), memory_order_relaxed);
                return true;
            }
        }
    }
    return false;
}

static void run_chunks(struct team *team, int member)
{
    struct member *self = &team->members[member];
    struct pieces p;
    inside_body = true;
    do {
        while (take_own(self, &p)) {
            int64_t end = p.end * team->piece;
            team->body(team->context, p.begin * team->piece, end < team->count ? end : team->count, member);
        }
    } while (take_from_others(self));
    inside_body = false;
}

static bool join_job(struct team *team)
{
    uint32_t state = atomic_load_explicit(&team->state, memory_order_relaxed);
    while (state & JOB_OPEN) {
        if (atomic_compare_exchange_weak_explicit(&team->state, &state, state + JOB_MEMBER,
                                                  memory_order_acquire, memory_order_relaxed))
            return true;
    }
    return false;
}

static uint32_t wait_for_generation(struct team *team, uint32_t seen)
{
    struct spin spin = {0};
    do {
        uint32_t now = atomic_load(&team->generation);
        if (now != seen)
            return now;
    } while (spin_on(&spin));
    /* The caller raises the generation before it looks for sleepers, a sleeper counts itself before it looks
     * at the generation: one of the two sees the other. */
    atomic_fetch_add(&team->sleepers, 1);
    uint32_t now;
    while ((now = atomic_load(&team->generation)) == seen)
        futex_sleep(&team->generation, seen);
    atomic_fetch_sub(&team->sleepers, 1);
    return now;
}

static void *helper_main(void *argument)
{
    struct member *self = argument;
    struct team *team = self->team;
    uint32_t seen = 0;
    for (;;) {
        seen = wait_for_generation(team, seen);
        if (atomic_load(&team->stop))
            return NULL;
        if (!join_job(team))
            continue;
        run_chunks(team, self->index);
        uint32_t before = atomic_fetch_sub_explicit(&team->state, JOB_MEMBER, memory_order_acq_rel);
        if (before == JOB_MEMBER) /* the last one out of a closed job; the caller may sleep */
            futex_wake_all(&team->state);
    }
}

static void raise_generation(struct team *team)
{
    atomic_fetch_add(&team->generation, 1);
    if (atomic_load(&team->sleepers) != 0)
        futex_wake_all(&team->generation);
}

static int allowed_processors(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) == 0)
        return CPU_COUNT(&set);
    long online = sysconf(_SC_NPROCESSORS_ONLN); /* more processors than a cpu_set_t holds */
    return online > 0 ? (int)online : 1;
}

struct team *team_new(int threads, struct err *err)
{
    if (threads <= 0)
        threads = allowed_processors();
    if (threads > TEAM_MAX_THREADS) {
        err_set(err, "threads: expected at most %d, found %d", TEAM_MAX_THREADS, threads);
        return NULL;
    }
    struct team *team = aligned_alloc(128, round_up_u64(sizeof(*team), 128));
    struct member *members = aligned_alloc(128, (size_t)threads * sizeof(*members));
    if (!team || !members)
        die("no memory for a team of %d threads", threads);
    memset(team, 0, sizeof(*team));
    memset(members, 0, (size_t)threads * sizeof(*members));
    team->members = members;
    members[0].team = team;
    pthread_mutex_init(&team->turn, NULL);
    for (team->threads = 1; team->threads < threads; team->threads++) {
        struct member *m = &members[team->threads];
        m->team = team;
        m->index = team->threads;
        int rc = pthread_create(&m->thread, NULL, helper_main, m);
        if (rc != 0) {
            err_set(err, "cannot start thread %d of %d: %s", team->threads + 1, threads, strerror(rc));
            team_free(&team);
            return NULL;
        }
    }
    return team;
}

void team_free(struct team **team)
{
    struct team *t = *team;
    if (!t)
        return;
    atomic_store(&t->stop, true);
    raise_generation(t);
    for (int i = 1; i < t->threads; i++)
        pthread_join(t->members[i].thread, NULL);
    for (int i = 0; i < t->threads; i++)
        free(t->members[i].scratch);
    pthread_mutex_destroy(&t->turn);
    free(t->members);
    free(t);
    *team = NULL;
}

int team_threads(const struct team *team)
{
    return team->threads;
}

static void close_job(struct team *team)
{
    uint32_t state = atomic_fetch_and_explicit(&team->state, ~JOB_OPEN, memory_order_acq_rel) & ~JOB_OPEN;
    struct spin spin = {0};
    while (state != 0 && spin_on(&spin))
        state = atomic_load_explicit(&team->state, memory_order_acquire);
    while (state != 0) {
        futex_sleep(&team->state, state);
        state = atomic_load_explicit(&team->state, memory_order_acquire);
    }
}

/* Every member gets its part of the job; those of helpers that do not come are taken from them. */
static void share_out(struct team *team, uint64_t pieces)
{
    for (int i = 0; i < team->threads; i++) {
        uint64_t threads = (uint64_t)team->threads, at = (uint64_t)i;
        atomic_store_explicit(
            &team->members[i].left,
            pack_pieces((uint32_t)(pieces * at / threads), (uint32_t)(pieces * (at + 1) / threads)),
            memory_order_relaxed);
    }
}

void team_for(struct team *team, int64_t count, int64_t grain, team_body *body, void *context)
{
    ASSERT(grain > 0 && !inside_body);
    if (count <= 0)
        return;
    pthread_mutex_lock(&team->turn);
    if (team->threads == 1 || count <= grain) {
        inside_body = true;
        body(context, 0, count, 0);
        inside_body = false;
    } else {
        int64_t pieces = (count - 1) / grain + 1;
        team->piece = grain * ((pieces - 1) / UINT32_MAX + 1);
        team->body = body;
        team->context = context;
        team->count = count;
        share_out(team, (uint64_t)((count - 1) / team->piece + 1));
        atomic_store_explicit(&team->state, JOB_OPEN, memory_order_release);
        raise_generation(team);
        run_chunks(team, 0);
        close_job(team);
    }
    pthread_mutex_unlock(&team->turn);
}

int64_t team_grain(const struct team *team, int64_t count, int64_t pieces)
{
    return 1 + (count - 1) / (team->threads * pieces);
}

void *team_scratch(struct team *team, int member, size_t bytes)
{
    ASSERT(member >= 0 && member < team->threads);
    struct member *m = &team->members[member];
    if (m->scratch_bytes < bytes) {
        free(m->scratch);
        m->scratch_bytes = round_up_u64(bytes, 4096);
        m->scratch = aligned_alloc(64, m->scratch_bytes);
        if (!m->scratch)
            die("no memory for %zu bytes of scratch", m->scratch_bytes);
    }
    return m->scratch;
}
