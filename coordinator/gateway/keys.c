#include "coordinator/gateway/keys.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/curve.h"
#include "common/log.h"

#define PREFIX       "lep-"
#define SECRET_BYTES 32
#define MAX_FILE     (1u << 20)
#define LINE_BYTES   256

struct entry {
    char name[KEYS_NAME_BYTES];
    uint8_t hash[crypto_hash_sha256_BYTES];
};

struct keys {
    char *path;
    pthread_mutex_t lock;
    struct entry *entries;
    uint32_t count;
    struct timespec changed; /* when the file was, as it was read */
    off_t bytes;
    ino_t inode;
    bool readable; /* it could be read */
};

static int check_file(const char *path, const struct stat *st, struct err *err)
{
    if (!S_ISREG(st->st_mode) || st->st_uid != geteuid() || (st->st_mode & 077) != 0)
        return err_set(err, "%s: expected a regular file of our own with mode 0600", path);
    if (st->st_size > (off_t)MAX_FILE)
        return err_set(err, "%s: expected at most %u bytes, found %lld", path, MAX_FILE,
                       (long long)st->st_size);
    return 0;
}

/* One line "NAME HASH". */
static int read_line(struct entry *out, char *line)
{
    char *space = strchr(line, ' ');
    size_t bytes = 0;
    if (!space)
        return -1;
    *space = '\0';
    const char *hex = space + 1;
    if (!curve_name_valid(line) ||
        sodium_hex2bin(out->hash, sizeof(out->hash), hex, strlen(hex), NULL, &bytes, NULL) != 0 ||
        bytes != sizeof(out->hash))
        return -1;
    snprintf(out->name, sizeof(out->name), "%s", line);
    return 0;
}

/* The lines of an open file; *entries is to be freed. */
static int read_lines(FILE *file, const char *path, struct entry **entries, uint32_t *count, struct err *err)
{
    char line[LINE_BYTES];
    for (unsigned number = 1; fgets(line, sizeof(line), file); number++) {
        size_t n = strcspn(line, "\n");
        bool whole = line[n] == '\n' || feof(file);
        line[n] = '\0';
        if (whole && (n == 0 || line[0] == '#'))
            continue;
        if ((*count & (*count + 1)) == 0) /* full at every power of two less one */
            *entries = xrealloc(*entries, 2 * ((size_t)*count + 1) * sizeof(**entries));
        struct entry *e = &(*entries)[*count];
        if (!whole || read_line(e, line))
            return err_set(err, "%s:%u: expected a name, a space and 64 hexadecimal digits", path, number);
        for (uint32_t i = 0; i < *count; i++)
            if (strcmp((*entries)[i].name, e->name) == 0)
                return err_set(err, "%s:%u: \"%s\" is there twice", path, number, e->name);
        ++*count;
    }
    return ferror(file) ? err_set(err, "%s: %s", path, strerror(errno)) : 0;
}

static int load(struct keys *k, struct err *err)
{
    struct stat st;
    struct entry *entries = NULL;
    uint32_t count = 0;
    int fd = open(k->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    FILE *file = fd < 0 ? NULL : fdopen(fd, "r");
    int rc = file && fstat(fd, &st) == 0 ? check_file(k->path, &st, err)
                                         : err_set(err, "%s: %s", k->path, strerror(errno));
    if (rc == 0)
        rc = read_lines(file, k->path, &entries, &count, err);
    if (file)
        fclose(file);
    free(k->entries);
    k->entries = rc == 0 ? entries : NULL;
    k->count = rc == 0 ? count : 0;
    k->readable = rc == 0;
    if (rc)
        free(entries);
    else
        k->changed = st.st_mtim, k->bytes = st.st_size, k->inode = st.st_ino;
    return rc;
}

static void refresh(struct keys *k)
{
    struct stat st;
    struct err err = {0};
    bool there = lstat(k->path, &st) == 0;
    if (there && k->readable && st.st_mtim.tv_sec == k->changed.tv_sec &&
        st.st_mtim.tv_nsec == k->changed.tv_nsec && st.st_size == k->bytes && st.st_ino == k->inode)
        return;
    bool was = k->readable;
    if (load(k, &err) == 0)
        log_info("keys", "%s: %u keys", k->path, k->count);
    else if (was)
        log_error("keys", "nobody is let in: %s", err.message);
}

int keys_open(struct keys **out, const char *path, struct err *err)
{
    if (sodium_init() < 0)
        die("libsodium cannot be used");
    struct keys *k = xcalloc(1, sizeof(*k));
    pthread_mutex_init(&k->lock, NULL);
    k->path = xstrdup(path);
    int rc = load(k, err);
    if (rc)
        keys_close(&k);
    *out = k;
    return rc;
}

void keys_close(struct keys **keys)
{
    struct keys *k = *keys;
    if (!k)
        return;
    pthread_mutex_destroy(&k->lock);
    free(k->entries);
    free(k->path);
    free(k);
    *keys = NULL;
}

bool keys_find(struct keys *k, const char *key, size_t bytes, char name[KEYS_NAME_BYTES])
{
    uint8_t hash[crypto_hash_sha256_BYTES];
    bool found = false;
    crypto_hash_sha256(hash, (const unsigned char *)key, bytes);
    pthread_mutex_lock(&k->lock);
    refresh(k);
    for (uint32_t i = 0; i < k->count; i++) /* all of them, whichever it is */
        if (sodium_memcmp(hash, k->entries[i].hash, sizeof(hash)) == 0) {
            found = true;
            snprintf(name, KEYS_NAME_BYTES, "%s", k->entries[i].name);
        }
    pthread_mutex_unlock(&k->lock);
    return found;
}

uint32_t keys_count(struct keys *k)
{
    pthread_mutex_lock(&k->lock);
    uint32_t count = k->count;
    pthread_mutex_unlock(&k->lock);
    return count;
}

static int append(const char *path, const char *line, struct err *err)
{
    struct stat st;
    int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0 || fstat(fd, &st) != 0) {
        err_set(err, "%s: %s", path, strerror(errno));
        goto fail;
    }
    if (check_file(path, &st, err))
        goto fail;
    size_t bytes = strlen(line);
    if (write(fd, line, bytes) != (ssize_t)bytes || fsync(fd) != 0) {
        err_set(err, "%s: %s", path, strerror(errno));
        goto fail;
    }
    close(fd);
    return 0;
fail:
    if (fd >= 0)
        close(fd);
    return -1;
}

/* A name has one key: its line would say whose the request is. */
static int check_free(const char *path, const char *name, struct err *err)
{
    struct keys *k = NULL;
    bool there = false;
    if (access(path, F_OK) != 0 && errno == ENOENT)
        return 0;
    if (keys_open(&k, path, err))
        return -1;
    for (uint32_t i = 0; i < k->count; i++)
        there |= strcmp(k->entries[i].name, name) == 0;
    keys_close(&k);
    return there ? err_set(err, "%s: \"%s\" has a key already; remove its line first", path, name) : 0;
}

int keys_add(const char *path, const char *name, char out[KEYS_TEXT_BYTES], struct err *err)
{
    uint8_t secret[SECRET_BYTES], hash[crypto_hash_sha256_BYTES];
    char hex[2 * crypto_hash_sha256_BYTES + 1];
    if (sodium_init() < 0)
        die("libsodium cannot be used");
    if (!curve_name_valid(name))
        return err_set(err, "\"%.80s\": expected 1 to 64 characters of A-Z a-z 0-9 . _ -, no dot first",
                       name);
    if (check_free(path, name, err))
        return -1;
    randombytes_buf(secret, sizeof(secret));
    memcpy(out, PREFIX, strlen(PREFIX));
    sodium_bin2base64(out + strlen(PREFIX), KEYS_TEXT_BYTES - strlen(PREFIX), secret, sizeof(secret),
                      sodium_base64_VARIANT_URLSAFE_NO_PADDING);
    crypto_hash_sha256(hash, (const unsigned char *)out, strlen(out));
    sodium_bin2hex(hex, sizeof(hex), hash, sizeof(hash));
    sodium_memzero(secret, sizeof(secret));
    char *line = xasprintf("%s %s\n", name, hex);
    int rc = append(path, line, err);
    free(line);
    return rc;
}
