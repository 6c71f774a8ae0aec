/* curve: key pairs, their files, and the socket options. The ZAP handler is in curve_zap.c.
 *
 * The files are CZMQ certificates (ZPL text), but they are read here and not by zcert_load: that prefers a
 * neighbour FILE_secret whose mode nobody checked, prints the line it cannot parse (it may hold a secret) and
 * cannot be given an open file, so that checking the mode and reading would look at two files. */
#include "common/curve.h"

#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zmq.h>

#define KEY_FILE_MOST 4096  /* bytes; a real one has about 400 */
#define HANDSHAKE_MS  10000 /* a peer that has not come in by then is dropped */

static const char *const role_names[] = {"coordinator", "worker", "client"};

const char *curve_role_name(enum curve_role role)
{
    ASSERT((size_t)role < ARRAY_LEN(role_names));
    return role_names[role];
}

bool curve_role_from_name(const char *name, enum curve_role *out)
{
    for (size_t i = 0; i < ARRAY_LEN(role_names); i++)
        if (strcmp(name, role_names[i]) == 0) {
            *out = (enum curve_role)i;
            return true;
        }
    return false;
}

bool curve_name_valid(const char *name)
{
    size_t n = strlen(name);
    if (n == 0 || n > 64 || name[0] == '.')
        return false;
    return strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") == n;
}

bool curve_user_parse(const char *user_id, enum curve_role *role, const char **name)
{
    char word[16];
    const char *colon = user_id ? strchr(user_id, ':') : NULL;
    size_t n = colon ? (size_t)(colon - user_id) : 0;
    if (!colon || n >= sizeof(word) || !curve_name_valid(colon + 1))
        return false;
    memcpy(word, user_id, n);
    word[n] = '\0';
    *name = colon + 1;
    return curve_role_from_name(word, role);
}

void curve_wipe(struct curve_key *key)
{
    if (key)
        sodium_memzero(key, sizeof(*key));
}

/* ---- reading ---- */

/* What a certificate may say; each at most once. */
struct certificate {
    char name[65], role[16], public_key[41], secret_key[41];
};

/* Copies the value of `    key = "value"` (quotes of either kind, or none) into out; false when it is no such
 * line or does not fit. */
static bool item_value(const char *line, char *out, size_t out_bytes)
{
    const char *value = strchr(line, '=');
    if (!value)
        return false;
    value += 1 + strspn(value + 1, " \t");
    size_t n = strlen(value);
    while (n > 0 && (value[n - 1] == ' ' || value[n - 1] == '\t' || value[n - 1] == '\r'))
        n--;
    if (n > 0 && (*value == '"' || *value == '\'')) {
        if (n < 2 || value[n - 1] != *value)
            return false;
        value++;
        n -= 2;
    }
    if (n == 0 || n >= out_bytes)
        return false;
    memcpy(out, value, n);
    out[n] = '\0';
    return true;
}

/* The place for an item, or NULL for metadata that is not ours. *known is false for a line that must not be.
 */
static char *item_place(struct certificate *c, const char *section, const char *line, size_t *bytes,
                        bool *known)
{
    const struct {
        const char *section, *name;
        char *place;
        size_t bytes;
    } items[] = {
        {"metadata", "name", c->name, sizeof(c->name)},
        {"metadata", "role", c->role, sizeof(c->role)},
        {"curve", "public-key", c->public_key, sizeof(c->public_key)},
        {"curve", "secret-key", c->secret_key, sizeof(c->secret_key)},
    };
    const char *name = line + strspn(line, " \t");
    size_t n = strcspn(name, " \t=");
    *known = strcmp(section, "metadata") == 0; /* CZMQ lets people keep an address or a note there */
    for (size_t i = 0; i < ARRAY_LEN(items); i++)
        if (strcmp(section, items[i].section) == 0 && strlen(items[i].name) == n &&
            memcmp(name, items[i].name, n) == 0) {
            *known = true;
            *bytes = items[i].bytes;
            return items[i].place;
        }
    return NULL;
}

/* Splits `text` in place. Messages name the line and never show it. */
static int parse(struct certificate *c, char *text, const char *path, struct err *err)
{
    char section[16] = "";
    int number = 0;
    memset(c, 0, sizeof(*c));
    for (char *line = text, *next; line; line = next) {
        next = strchr(line, '\n');
        if (next)
            *next++ = '\0';
        number++;
        size_t indent = strspn(line, " \t\r");
        if (line[indent] == '\0' || line[indent] == '#')
            continue;
        if (indent == 0) {
            size_t n = strcspn(line, " \t\r");
            if (n >= sizeof(section) || line[n + strspn(line + n, " \t\r")] != '\0')
                return err_set(err, "%s:%d: expected a section: metadata or curve", path, number);
            memcpy(section, line, n);
            section[n] = '\0';
            continue;
        }
        size_t bytes = 0;
        bool known;
        char *place = item_place(c, section, line, &bytes, &known);
        if (!known)
            return err_set(err, "%s:%d: expected public-key or secret-key under curve, or metadata", path,
                           number);
        if (!place)
            continue;
        if (*place)
            return err_set(err, "%s:%d: given twice", path, number);
        if (!item_value(line, place, bytes))
            return err_set(err, "%s:%d: expected NAME = \"VALUE\" of at most %zu characters", path, number,
                           bytes - 1);
    }
    return 0;
}

static bool z85_valid(const char *key)
{
    uint8_t binary[32];
    char again[41];
    if (strlen(key) != 40 || !zmq_z85_decode(binary, key))
        return false;
    bool same = zmq_z85_encode(again, binary, sizeof(binary)) && strcmp(again, key) == 0;
    sodium_memzero(binary, sizeof(binary));
    sodium_memzero(again, sizeof(again));
    return same;
}

static int check_certificate(struct curve_key *out, const struct certificate *c, const char *path,
                             bool public_only, struct err *err)
{
    char derived[41];
    if (!curve_name_valid(c->name))
        return err_set(err, "%s: metadata: expected a name of 1 to 64 characters of [A-Za-z0-9._-]", path);
    if (!curve_role_from_name(c->role, &out->role))
        return err_set(err, "%s: metadata: expected a role: coordinator, worker or client", path);
    if (!z85_valid(c->public_key))
        return err_set(err, "%s: curve: expected a public-key of 40 Z85 characters", path);
    if (public_only && c->secret_key[0])
        return err_set(err, "%s: holds a secret key, but .pub files are given away: make a new pair", path);
    if (!public_only) {
        if (!z85_valid(c->secret_key))
            return err_set(err, "%s: curve: expected a secret-key of 40 Z85 characters", path);
        if (zmq_curve_public(derived, c->secret_key) != 0 || strcmp(derived, c->public_key) != 0)
            return err_set(err, "%s: curve: the public key is not that of the secret key", path);
        memcpy(out->secret_key, c->secret_key, sizeof(out->secret_key));
    }
    memcpy(out->name, c->name, sizeof(out->name));
    memcpy(out->public_key, c->public_key, sizeof(out->public_key));
    return 0;
}

static int check_file(int fd, const char *path, bool public_only, struct err *err)
{
    struct stat st;
    if (fstat(fd, &st) != 0)
        return err_set(err, "%s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return err_set(err, "%s: expected a regular file", path);
    if (st.st_size > KEY_FILE_MOST)
        return err_set(err, "%s: %lld bytes, a key file has at most %d", path, (long long)st.st_size,
                       KEY_FILE_MOST);
    if (public_only && (st.st_mode & 022))
        return err_set(err, "%s: mode %04o: others may write it: chmod go-w %s", path, st.st_mode & 07777u,
                       path);
    if (!public_only && (st.st_mode & 077))
        return err_set(err, "%s: mode %04o: others may use it: chmod 600 %s, or make a new pair", path,
                       st.st_mode & 07777u, path);
    if (!public_only && st.st_uid != geteuid())
        return err_set(err, "%s: belongs to user %u, expected a key file of user %u", path, st.st_uid,
                       geteuid());
    return 0;
}

int curve_load(struct curve_key *out, const char *path, bool public_only, struct err *err)
{
    struct certificate c;
    char text[KEY_FILE_MOST + 2];
    size_t size = 0;
    int rc = -1;
    memset(out, 0, sizeof(*out));
    /* NONBLOCK: a FIFO in the directory must not hang the reader before fstat sees what it is. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK | (public_only ? 0 : O_NOFOLLOW));
    if (fd < 0)
        return err_set(err, "%s: %s", path,
                       errno == ELOOP ? "expected a regular file, found a link" : strerror(errno));
    if (check_file(fd, path, public_only, err) != 0)
        goto out;
    while (size < KEY_FILE_MOST + 1) {
        ssize_t n = read(fd, text + size, KEY_FILE_MOST + 1 - size);
        if (n < 0 && errno != EINTR) {
            err_set(err, "%s: %s", path, strerror(errno));
            goto out;
        }
        if (n == 0)
            break;
        size += n > 0 ? (size_t)n : 0;
    }
    text[size] = '\0';
    if (size > KEY_FILE_MOST || memchr(text, 0, size))
        err_set(err, "%s: expected the text of a key file", path);
    else if (parse(&c, text, path, err) == 0)
        rc = check_certificate(out, &c, path, public_only, err);
out:
    if (rc != 0)
        curve_wipe(out);
    sodium_memzero(text, sizeof(text));
    sodium_memzero(&c, sizeof(c));
    close(fd);
    return rc;
}

/* ---- writing ---- */

static int write_new(const char *path, mode_t mode, const struct curve_key *key, bool secret, struct err *err)
{
    struct buffer text = {0};
    size_t written = 0;
    int rc = 0;
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode);
    if (fd < 0)
        return err_set(err, "%s: %s", path,
                       errno == EEXIST ? "exists; key files are never overwritten" : strerror(errno));
    buffer_printf(&text, "#   Lepton CURVE %s, in the certificate format of CZMQ.\n#   %s\n\n",
                  secret ? "secret key" : "public key",
                  secret ? "Keep it where its owner runs; mode 0600."
                         : "Give it to those who talk to its owner.");
    buffer_printf(&text, "metadata\n    name = \"%s\"\n    role = \"%s\"\n", key->name,
                  curve_role_name(key->role));
    buffer_printf(&text, "curve\n    public-key = \"%s\"\n", key->public_key);
    if (secret)
        buffer_printf(&text, "    secret-key = \"%s\"\n", key->secret_key);
    while (written < text.size) {
        ssize_t n = write(fd, text.data + written, text.size - written);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            break;
        written += (size_t)n;
    }
    /* fchmod: the umask may have taken more away than the mode says. */
    if (written < text.size || fchmod(fd, mode) != 0 || fsync(fd) != 0)
        rc = err_set(err, "%s: %s", path, strerror(errno));
    if (close(fd) != 0 && rc == 0)
        rc = err_set(err, "%s: %s", path, strerror(errno));
    if (rc != 0)
        unlink(path);
    sodium_memzero(text.data, text.capacity);
    buffer_release(&text);
    return rc;
}

/* Makes the two names durable. */
static int sync_directory(const char *directory, struct err *err)
{
    int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc = fd < 0 || fsync(fd) != 0 ? err_set(err, "%s: %s", directory, strerror(errno)) : 0;
    if (fd >= 0)
        close(fd);
    return rc;
}

int curve_generate(struct curve_key *out, const char *directory, const char *name, enum curve_role role,
                   struct err *err)
{
    memset(out, 0, sizeof(*out));
    if (!curve_name_valid(name))
        return err_set(
            err, "\"%s\": expected a name of 1 to 64 characters of [A-Za-z0-9._-] without a leading dot",
            name);
    if (zmq_curve_keypair(out->public_key, out->secret_key) != 0)
        return err_set(err, "cannot make a key pair: %s", zmq_strerror(errno));
    if (mkdir(directory, 0700) != 0 && errno != EEXIST)
        return err_set(err, "%s: %s", directory, strerror(errno));
    strcpy(out->name, name); /* at most 64 characters: checked above */
    out->role = role;

    char *secret_path = xasprintf("%s/%s.key", directory, name);
    char *public_path = xasprintf("%s/%s.pub", directory, name);
    int rc = write_new(secret_path, 0600, out, true, err);
    if (rc == 0) {
        rc = write_new(public_path, 0644, out, false, err);
        if (rc != 0)
            unlink(secret_path); /* ours: O_EXCL made it above */
        else
            rc = sync_directory(directory, err);
    }
    if (rc != 0)
        curve_wipe(out);
    free(secret_path);
    free(public_path);
    return rc;
}

/* ---- sockets ---- */

static int set(void *socket, int option, const char *what, const void *value, size_t bytes, struct err *err)
{
    if (zmq_setsockopt(socket, option, value, bytes) == 0)
        return 0;
    return err_set(err, "cannot set %s: %s", what, zmq_strerror(errno));
}

int curve_server(void *socket, const struct curve_key *own, struct err *err)
{
    int on = 1, handshake_ms = HANDSHAKE_MS;
    ASSERT(own->secret_key[0]);
    if (set(socket, ZMQ_CURVE_SERVER, "CURVE_SERVER", &on, sizeof(on), err) != 0 ||
        set(socket, ZMQ_CURVE_SECRETKEY, "CURVE_SECRETKEY", own->secret_key, 41, err) != 0 ||
        set(socket, ZMQ_HANDSHAKE_IVL, "HANDSHAKE_IVL", &handshake_ms, sizeof(handshake_ms), err) != 0 ||
        set(socket, ZMQ_ZAP_DOMAIN, "ZAP_DOMAIN", CURVE_ZAP_DOMAIN, strlen(CURVE_ZAP_DOMAIN), err) != 0)
        return -1;
    return 0;
}

int curve_client(void *socket, const struct curve_key *own, const char *server_public_key, struct err *err)
{
    ASSERT(own->secret_key[0]);
    if (set(socket, ZMQ_CURVE_PUBLICKEY, "CURVE_PUBLICKEY", own->public_key, 41, err) != 0 ||
        set(socket, ZMQ_CURVE_SECRETKEY, "CURVE_SECRETKEY", own->secret_key, 41, err) != 0 ||
        set(socket, ZMQ_CURVE_SERVERKEY, "CURVE_SERVERKEY", server_public_key, 41, err) != 0)
        return -1;
    return 0;
}
