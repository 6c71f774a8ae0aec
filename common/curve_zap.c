/* curve_zap: the ZAP handler (RFC 27): one thread that answers libzmq's question "may this key come in?".
 *
 * It owns the list of authorized keys: the .pub files of one directory, read again whenever the list of
 * files, or a file's inode, size or change time, is not what it was. The files are few and handshakes rare,
 * so the directory is looked at for every handshake; no time stamp of the directory itself is trusted, for
 * two changes may fall into one tick.
 *
 * A peer that speaks another mechanism (NULL, PLAIN) or not even ZMTP never gets as far as ZAP: libzmq
 * refuses it by itself. Whoever reads the monitor of the socket tells those (curve_zap_note). */
#include "common/curve.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <sodium.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zmq.h>

#include "common/clock.h"
#include "common/log.h"

#define ENDPOINT        "inproc://zeromq.zap.01"
#define MOST_KEYS       16384
#define LOGS_PER_SECOND 10
#define FRAMES          7 /* version, request id, domain, address, routing id, mechanism, credentials */

struct zap_key {
    uint8_t public_key[32];
    char user_id[82]; /* "role:name" */
    uint64_t number;  /* of the key: what a message says of it */
};

struct curve_zap {
    void *context;
    char *directory;
    void *handler;              /* REP; the thread's */
    void *control, *controlled; /* PAIR: the caller's end and the thread's */
    uint64_t unique; /* in the names of inproc endpoints: libzmq frees a name some time after the close */
    pthread_t thread;

    pthread_mutex_t key_lock; /* of the four below */
    struct zap_key *keys;
    size_t key_count;
    uint64_t signature; /* of the directory when the keys were read */
    uint64_t looked_ms; /* at the directory */

    pthread_mutex_t log_lock; /* of the three below */
    uint64_t log_window_s;
    unsigned logged, suppressed; /* refusals in this second */
    _Atomic uint64_t refused;
};

/* ---- the authorized keys ---- */

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void free_names(char **names, size_t count)
{
    for (size_t i = 0; i < count; i++)
        free(names[i]);
    free(names);
}

static uint64_t mix(uint64_t hash, const void *data, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        hash =
            (hash ^ ((const uint8_t *)data)[i]) * 0x100000001B3ull; /* FNV-1a: notices changes, no secret */
    return hash;
}

/* Lists NAME.pub in order and hashes what tells one state of the directory from another. */
static int list_keys(const char *directory, char ***names, size_t *count, uint64_t *signature,
                     struct err *err)
{
    DIR *dir = opendir(directory);
    struct dirent *entry;
    struct stat st;
    char **list = NULL;
    size_t n = 0;
    uint64_t hash = 0xCBF29CE484222325ull;
    if (!dir)
        return err_set(err, "%s: %s", directory, strerror(errno));
    if (fstat(dirfd(dir), &st) != 0 || (st.st_mode & 022)) {
        closedir(dir);
        return err_set(err, "%s: others may write this directory, and so let anybody in: chmod go-w %s",
                       directory, directory);
    }
    while ((entry = readdir(dir))) {
        size_t length = strlen(entry->d_name);
        if (length <= 4 || strcmp(entry->d_name + length - 4, ".pub") != 0 || n == MOST_KEYS)
            continue;
        list = xrealloc(list, (n + 1) * sizeof(*list));
        list[n++] = xstrdup(entry->d_name);
    }
    if (n > 0)
        qsort(list, n, sizeof(*list), by_name);
    for (size_t i = 0; i < n; i++) {
        hash = mix(hash, list[i], strlen(list[i]) + 1);
        if (fstatat(dirfd(dir), list[i], &st, 0) != 0)
            continue; /* gone meanwhile: its name alone counts, and the next look differs */
        uint64_t facts[] = {(uint64_t)st.st_ino, (uint64_t)st.st_size, (uint64_t)st.st_mode,
                            (uint64_t)st.st_ctim.tv_sec, (uint64_t)st.st_ctim.tv_nsec};
        hash = mix(hash, facts, sizeof(facts));
    }
    closedir(dir);
    *names = list;
    *count = n;
    *signature = hash;
    return 0;
}

/* Names a key without telling it: who knows two keys with one number has broken BLAKE2b. */
static uint64_t key_number(const uint8_t public_key[32])
{
    uint8_t digest[crypto_generichash_BYTES];
    uint64_t number;
    crypto_generichash(digest, sizeof(digest), public_key, 32, NULL, 0);
    memcpy(&number, digest, sizeof(number));
    return number;
}

/* Adds one file's key, or logs why it is left out. The file is named after the identity inside, so that
 * removing alice.pub does shut alice out. */
static void add_key(struct curve_zap *zap, const char *file)
{
    struct curve_key key;
    struct err err;
    struct zap_key *k = &zap->keys[zap->key_count];
    char *path = xasprintf("%s/%s", zap->directory, file);
    size_t stem = strlen(file) - 4;
    if (curve_load(&key, path, true, &err) != 0) {
        log_warn("curve", "key file left out: %s", err.message);
    } else if (strlen(key.name) != stem || memcmp(key.name, file, stem) != 0) {
        log_warn("curve", "key file left out: %s: it names \"%s\", expected %s.pub as its file name", path,
                 key.name, key.name);
    } else {
        zmq_z85_decode(k->public_key, key.public_key);
        snprintf(k->user_id, sizeof(k->user_id), "%s:%s", curve_role_name(key.role), key.name);
        k->number = key_number(k->public_key);
        bool known = false;
        for (size_t i = 0; i < zap->key_count; i++)
            known |= sodium_memcmp(zap->keys[i].public_key, k->public_key, 32) == 0;
        if (known)
            log_warn("curve", "key file left out: %s: another name has the same key", path);
        else
            zap->key_count++;
    }
    free(path);
}

/* Brings the keys up to date; under the lock. When the directory cannot be read nobody is let in. */
static void refresh_keys(struct curve_zap *zap)
{
    char **names = NULL;
    size_t count = 0;
    uint64_t signature = 0;
    struct err err;
    zap->looked_ms = clock_now_ms();
    if (list_keys(zap->directory, &names, &count, &signature, &err) != 0) {
        log_error("curve", "no key is accepted: %s", err.message);
        zap->key_count = 0;
        zap->signature = 0;
        return;
    }
    if (signature != zap->signature || !zap->keys) {
        free(zap->keys);
        zap->keys = xcalloc(count + 1, sizeof(*zap->keys));
        zap->key_count = 0;
        for (size_t i = 0; i < count; i++)
            add_key(zap, names[i]);
        zap->signature = signature;
        log_info("curve", "%zu authorized keys in %s", zap->key_count, zap->directory);
    }
    free_names(names, count);
}

/* Looks at every key: the time taken tells nothing about which one matched. */
static const struct zap_key *find_key(const struct curve_zap *zap, const uint8_t *public_key)
{
    const struct zap_key *found = NULL;
    for (size_t i = 0; i < zap->key_count; i++)
        if (sodium_memcmp(zap->keys[i].public_key, public_key, 32) == 0)
            found = &zap->keys[i];
    return found;
}

/* ---- one request ---- */

static void refuse(struct curve_zap *zap, const char *peer, const char *why)
{
    uint64_t now_s = clock_now_ms() / 1000;
    atomic_fetch_add(&zap->refused, 1);
    pthread_mutex_lock(&zap->log_lock);
    if (now_s != zap->log_window_s) {
        if (zap->suppressed)
            log_warn("curve", "%u more refusals in that second", zap->suppressed);
        zap->log_window_s = now_s;
        zap->logged = zap->suppressed = 0;
    }
    if (zap->logged++ < LOGS_PER_SECOND)
        log_warn("curve", "refused %s: %s", peer, why);
    else
        zap->suppressed++;
    pthread_mutex_unlock(&zap->log_lock);
}

struct zap_request {
    zmq_msg_t frames[FRAMES];
    int count; /* frames received, those past FRAMES included */
};

/* -1 when the socket or its context is gone. */
static int receive_request(void *socket, struct zap_request *r)
{
    bool more = true;
    for (r->count = 0; more; r->count++) {
        zmq_msg_t extra, *frame = r->count < FRAMES ? &r->frames[r->count] : &extra;
        zmq_msg_init(frame);
        if (zmq_msg_recv(frame, socket, 0) < 0) {
            zmq_msg_close(frame);
            return -1;
        }
        more = zmq_msg_more(frame);
        if (frame == &extra)
            zmq_msg_close(frame);
    }
    return 0;
}

static bool frame_is(zmq_msg_t *frame, const char *text)
{
    return zmq_msg_size(frame) == strlen(text) && memcmp(zmq_msg_data(frame), text, strlen(text)) == 0;
}

/* True: the peer comes in as *out; else *why. */
static bool judge(struct curve_zap *zap, struct zap_request *r, struct zap_key *out, const char **why)
{
    *why = "not a ZAP 1.0 request";
    if (r->count != FRAMES || !frame_is(&r->frames[0], "1.0"))
        return false;
    *why = "unknown domain";
    if (!frame_is(&r->frames[2], CURVE_ZAP_DOMAIN))
        return false;
    *why = "the mechanism is not CURVE";
    if (!frame_is(&r->frames[5], "CURVE"))
        return false;
    *why = "a key of the wrong size";
    if (zmq_msg_size(&r->frames[6]) != 32)
        return false;
    *why = "unknown key";
    pthread_mutex_lock(&zap->key_lock);
    refresh_keys(zap);
    const struct zap_key *key = find_key(zap, zmq_msg_data(&r->frames[6]));
    if (key)
        *out = *key;
    pthread_mutex_unlock(&zap->key_lock);
    return key != NULL;
}

/* The reply's metadata: one property, as ZMTP writes them (RFC 23). */
static size_t write_metadata(uint8_t out[64], uint64_t number)
{
    static const char name[] = CURVE_KEY_PROPERTY;
    const uint8_t bytes[4] = {0, 0, 0, 16};
    size_t n = 0;
    out[n++] = (uint8_t)(sizeof(name) - 1);
    memcpy(out + n, name, sizeof(name) - 1);
    n += sizeof(name) - 1;
    memcpy(out + n, bytes, sizeof(bytes));
    n += sizeof(bytes);
    return n + (size_t)snprintf((char *)out + n, 64 - n, "%016llx", (unsigned long long)number);
}

static void answer(struct curve_zap *zap)
{
    struct zap_request r;
    const char *why;
    char peer[64] = "?";
    int rc = receive_request(zap->handler, &r);
    if (rc == 0) {
        struct zap_key key;
        uint8_t metadata[64];
        const char *user = judge(zap, &r, &key, &why) ? key.user_id : NULL;
        if (r.count > 3)
            snprintf(peer, sizeof(peer), "%.*s", (int)zmq_msg_size(&r.frames[3]),
                     (char *)zmq_msg_data(&r.frames[3]));
        if (!user)
            refuse(zap, peer, why);
        zmq_send(zap->handler, "1.0", 3, ZMQ_SNDMORE);
        if (r.count > 1)
            zmq_send(zap->handler, zmq_msg_data(&r.frames[1]), zmq_msg_size(&r.frames[1]), ZMQ_SNDMORE);
        else
            zmq_send(zap->handler, "", 0, ZMQ_SNDMORE);
        zmq_send(zap->handler, user ? "200" : "400", 3, ZMQ_SNDMORE);
        zmq_send(zap->handler, user ? "OK" : why, strlen(user ? "OK" : why), ZMQ_SNDMORE);
        zmq_send(zap->handler, user ? user : "", user ? strlen(user) : 0, ZMQ_SNDMORE);
        zmq_send(zap->handler, metadata, user ? write_metadata(metadata, key.number) : 0, 0);
    }
    for (int i = 0; i < r.count && i < FRAMES; i++)
        zmq_msg_close(&r.frames[i]);
}

/* ---- refusals that ZAP never sees ---- */

void curve_zap_note(struct curve_zap *zap, unsigned event, unsigned value, const char *peer)
{
    char why[64];
    if (event == ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL) {
        bool mismatch = value == ZMQ_PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH;
        snprintf(why, sizeof(why), mismatch ? "the mechanism is not CURVE" : "protocol error 0x%08x", value);
        refuse(zap, peer, why);
    } else if (event == ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL) {
        refuse(zap, peer, "the handshake was not finished");
    }
}

/* ---- connections that are open ---- */

bool curve_zap_allows(struct curve_zap *zap, enum curve_role role, const char *name, uint64_t number)
{
    char user_id[sizeof(zap->keys->user_id)];
    bool found = false;
    snprintf(user_id, sizeof(user_id), "%s:%s", curve_role_name(role), name);
    pthread_mutex_lock(&zap->key_lock);
    if (clock_now_ms() >= zap->looked_ms + CURVE_STALE_MS)
        refresh_keys(zap);
    for (size_t i = 0; i < zap->key_count && !found; i++)
        found = zap->keys[i].number == number && strcmp(zap->keys[i].user_id, user_id) == 0;
    pthread_mutex_unlock(&zap->key_lock);
    return found;
}

/* ---- the thread ---- */

static void *zap_thread(void *argument)
{
    struct curve_zap *zap = argument;
    zmq_pollitem_t items[2] = {{.socket = zap->controlled, .events = ZMQ_POLLIN},
                               {.socket = zap->handler, .events = ZMQ_POLLIN}};
    while (!items[0].revents) { /* a message there means: stop */
        if (zmq_poll(items, 2, -1) < 0) {
            if (errno != EINTR)
                break;
            items[0].revents = 0;
        } else if (items[1].revents) {
            answer(zap);
        }
    }
    zmq_unbind(zap->handler, ENDPOINT); /* at once: zmq_close frees the name some time later */
    zmq_close(zap->handler);
    zmq_close(zap->controlled);
    return NULL;
}

static void *new_socket(void *context, int type)
{
    int linger = 0;
    void *socket = zmq_socket(context, type);
    if (socket)
        zmq_setsockopt(socket, ZMQ_LINGER, &linger, sizeof(linger));
    return socket;
}

int curve_zap_start(struct curve_zap **out, void *context, const char *authorized_directory, struct err *err)
{
    char endpoint[64];
    char **names = NULL;
    size_t count = 0;
    uint64_t signature;
    *out = NULL;
    if (list_keys(authorized_directory, &names, &count, &signature, err) != 0)
        return -1;
    free_names(names, count);

    struct curve_zap *zap = xcalloc(1, sizeof(*zap));
    zap->context = context;
    zap->directory = xstrdup(authorized_directory);
    zap->unique = clock_entropy();
    pthread_mutex_init(&zap->log_lock, NULL);
    pthread_mutex_init(&zap->key_lock, NULL);
    snprintf(endpoint, sizeof(endpoint), "inproc://lepton.zap.%llx", (unsigned long long)zap->unique);
    zap->handler = new_socket(context, ZMQ_REP);
    zap->control = new_socket(context, ZMQ_PAIR);
    zap->controlled = new_socket(context, ZMQ_PAIR);
    if (!zap->handler || !zap->control || !zap->controlled || zmq_bind(zap->control, endpoint) != 0 ||
        zmq_connect(zap->controlled, endpoint) != 0) {
        err_set(err, "cannot start the ZAP handler: %s", zmq_strerror(errno));
        goto fail;
    }
    if (zmq_bind(zap->handler, ENDPOINT) != 0) {
        err_set(err, "cannot start the ZAP handler: %s",
                errno == EADDRINUSE ? "this context has one already" : zmq_strerror(errno));
        goto fail;
    }
    if (pthread_create(&zap->thread, NULL, zap_thread, zap) != 0) {
        err_set(err, "cannot start the ZAP handler: no thread");
        goto fail;
    }
    *out = zap;
    return 0;
fail:
    if (zap->handler)
        zmq_close(zap->handler);
    if (zap->control)
        zmq_close(zap->control);
    if (zap->controlled)
        zmq_close(zap->controlled);
    free(zap->directory);
    free(zap);
    return -1;
}

void curve_zap_stop(struct curve_zap **zap_p)
{
    struct curve_zap *zap = *zap_p;
    if (!zap)
        return;
    *zap_p = NULL;
    zmq_send(zap->control, "", 0, 0);
    pthread_join(zap->thread, NULL);
    zmq_close(zap->control);
    pthread_mutex_destroy(&zap->log_lock);
    pthread_mutex_destroy(&zap->key_lock);
    free(zap->keys);
    free(zap->directory);
    free(zap);
}

uint64_t curve_zap_refused(struct curve_zap *zap)
{
    return atomic_load(&zap->refused);
}
