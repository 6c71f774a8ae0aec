/* API keys: made, found, revoked, and files that are refused. */
#include "coordinator/gateway/keys.h"

#include <fcntl.h>
#include <sys/stat.h>

#include "tests/test.h"

static char folder[] = "/tmp/lepton-test-keys-XXXXXX";
static char path[64];

static void write_file(const char *text, mode_t mode)
{
    unlink(path);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
    CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    fchmod(fd, mode);
    close(fd);
}

static bool finds(struct keys *k, const char *key, const char *name)
{
    char found[KEYS_NAME_BYTES] = "";
    bool there = keys_find(k, key, strlen(key), found);
    return there ? name && strcmp(found, name) == 0 : !name;
}

static void check_made_and_found(void)
{
    char alice[KEYS_TEXT_BYTES], bob[KEYS_TEXT_BYTES], again[KEYS_TEXT_BYTES], text[400] = "";
    struct keys *k;
    struct err err;
    struct stat st;
    unlink(path);
    CHECK_INT(keys_add(path, "alice", alice, &err), 0);
    CHECK_INT(keys_add(path, "bob", bob, &err), 0);
    CHECK_INT(keys_add(path, "bob", again, &err), -1);
    CHECK_CONTAINS(err.message, "has a key already");
    CHECK_INT(keys_add(path, "../x", again, &err), -1);
    CHECK_CONTAINS(err.message, "expected 1 to 64 characters");
    CHECK(stat(path, &st) == 0 && (st.st_mode & 0777) == 0600);
    CHECK(strlen(alice) == 47 && strcmp(alice, bob) != 0);
    int fd = open(path, O_RDONLY);
    CHECK(read(fd, text, sizeof(text) - 1) > 0);
    close(fd);
    CHECK(!strstr(text, alice + 4)); /* the key itself is nowhere */
    CHECK_INT(keys_open(&k, path, &err), 0);
    CHECK_INT(keys_count(k), 2);
    CHECK(finds(k, alice, "alice") && finds(k, bob, "bob"));
    CHECK(finds(k, "", NULL) && finds(k, "lep-", NULL) && finds(k, "alice", NULL));
    alice[10] ^= 1;
    CHECK(finds(k, alice, NULL));
    keys_close(&k);
}

static void check_revoked(void)
{
    char alice[KEYS_TEXT_BYTES], bob[KEYS_TEXT_BYTES];
    struct keys *k;
    struct err err;
    unlink(path);
    CHECK_INT(keys_add(path, "alice", alice, &err), 0);
    CHECK_INT(keys_open(&k, path, &err), 0);
    CHECK(finds(k, alice, "alice"));
    write_file("# nobody\n\n", 0600);
    CHECK(finds(k, alice, NULL));
    CHECK_INT(keys_add(path, "bob", bob, &err), 0); /* one that is added counts at once */
    CHECK(finds(k, bob, "bob"));
    chmod(path, 0644); /* others can read it: nobody is let in */
    write_file("x", 0600);
    CHECK(finds(k, bob, NULL));
    unlink(path);
    CHECK(finds(k, bob, NULL) && finds(k, "", NULL));
    keys_close(&k);
}

static void check_refused_files(void)
{
#define HASH "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
    static const struct {
        const char *text;
        mode_t mode;
        const char *words;
    } bad[] = {{"a " HASH "\n", 0644, "mode 0600"},
               {"a " HASH "\n", 0640, "mode 0600"},
               {"a\n", 0600, ":1: expected a name, a space and 64"},
               {"a " HASH "\nb xyz\n", 0600, ":2: expected"},
               {"a " HASH "0\n", 0600, ":1: expected"},
               {"a " HASH " \n", 0600, ":1: expected"},
               {".a " HASH "\n", 0600, ":1: expected"},
               {"a " HASH "\na " HASH "\n", 0600, ":2: \"a\" is there twice"}};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        struct keys *k;
        struct err err = {0};
        write_file(bad[i].text, bad[i].mode);
        CHECK_INT(keys_open(&k, path, &err), -1);
        CHECK(k == NULL);
        CHECK_CONTAINS(err.message, bad[i].words);
    }
    struct keys *k;
    struct err err = {0};
    CHECK_INT(keys_open(&k, "/nowhere/keys", &err), -1);
    CHECK_CONTAINS(err.message, "/nowhere/keys: No such file");
    write_file("a " HASH, 0600); /* a last line without its end */
    CHECK_INT(keys_open(&k, path, &err), 0);
    CHECK_INT(keys_count(k), 1);
    keys_close(&k);
}

int main(void)
{
    if (!mkdtemp(folder))
        return 1;
    snprintf(path, sizeof(path), "%s/keys", folder);
    TEST(check_made_and_found, "a key is made, kept as a hash, and found by its bearer alone");
    TEST(check_revoked, "a line that is removed is a key revoked, and an unreadable file lets nobody in");
    TEST(check_refused_files, "a file that others can read, and lines that are none, are refused");
    unlink(path);
    rmdir(folder);
    return test_result();
}
