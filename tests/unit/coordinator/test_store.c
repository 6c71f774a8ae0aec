#include "coordinator/store_internal.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>

#include "tests/test.h"

static char directory[64], path[96];

/* A fresh directory, and the path of a database in it. */
static void begin(void)
{
    snprintf(directory, sizeof(directory), "/tmp/lepton-test-XXXXXX");
    CHECK(mkdtemp(directory) != NULL);
    snprintf(path, sizeof(path), "%s/state.db", directory);
}

static void end(void)
{
    char command[128];
    snprintf(command, sizeof(command), "rm -rf %s", directory);
    CHECK(system(command) == 0);
}

static struct store *open_store(uint64_t most)
{
    struct store *s = NULL;
    struct err err = {0};
    if (store_open(&s, &(struct store_options){.path = path, .max_bytes = most}, &err))
        printf("# %s\n", err.message);
    return s;
}

/* What store_open says when it refuses. */
static const char *refused(void)
{
    static struct err err;
    struct store *s = NULL;
    err = (struct err){0};
    CHECK(store_open(&s, &(struct store_options){.path = path}, &err) == -1);
    store_close(&s);
    return err.message;
}

static int put(struct store *s, uint64_t row, const char *request, const void *bytes, size_t size)
{
    struct err err;
    void *copy = malloc(size ? size : 1);
    memcpy(copy, bytes, size);
    struct store_answer a = {.row = row,
                             .owner = "alice",
                             .request = request,
                             .digest = {(uint8_t)row},
                             .bytes = copy,
                             .size = size};
    return store_answer(s, &a, row, &err);
}

/* The next thing that is done; waits for it. */
static struct store_done next(struct store *s)
{
    struct store_done done = {0};
    struct pollfd fd = {.fd = store_fd(s), .events = POLLIN};
    CHECK(poll(&fd, 1, 10000) == 1);
    CHECK(store_next_done(s, &done));
    return done;
}

struct found {
    uint64_t rows[16];
    char text[16][32];
    uint8_t digest[16];
    int count;
};

static void find(void *context, const struct store_answer *a)
{
    struct found *f = context;
    if (f->count == 16)
        return;
    f->rows[f->count] = a->row;
    f->digest[f->count] = a->digest[0];
    snprintf(f->text[f->count], 32, "%s/%s=%.*s", a->owner, a->request, (int)a->size, (const char *)a->bytes);
    CHECK(a->age_ms < 60000);
    f->count++;
}

static struct found answers(struct store *s)
{
    struct found f = {.count = 0};
    struct err err;
    CHECK(store_each_answer(s, find, &f, &err) == 0);
    return f;
}

static void test_answers_outlive(void)
{
    struct err err;
    begin();
    struct store *s = open_store(0);
    CHECK_INT(answers(s).count, 0);
    CHECK(store_start(s, &err) == 0);
    CHECK(put(s, 1, "a", "one", 3) == 0 && put(s, 2, "b", "two", 3) == 0 && put(s, 3, "a", "three", 5) == 0);
    for (uint64_t row = 1; row <= 3; row++) {
        struct store_done done = next(s);
        CHECK_INT(done.tag, row);
        CHECK_INT(done.code, 0);
    }
    CHECK(store_answer_gone(s, 2, &err) == 0);
    store_close(&s);
    CHECK(s == NULL);
    s = open_store(0);
    struct found f = answers(s);
    CHECK_INT(f.count, 1); /* the second of one request replaces the first */
    CHECK_STR(f.text[0], "alice/a=three");
    CHECK_INT(f.digest[0], 3);
    store_close(&s);
    end();
}

static void test_runs_and_epochs(void)
{
    struct err err;
    begin();
    struct store *s = open_store(0);
    struct store_run first = store_run(s);
    CHECK_INT(first.number, 1);
    CHECK_INT(first.epoch_floor, 0);
    CHECK(first.epoch_ceiling > 100);
    CHECK(store_start(s, &err) == 0);
    CHECK(store_epochs(s, first.epoch_ceiling + 7, 9, &err) == 0);
    CHECK_INT(next(s).tag, 9);
    CHECK(store_epochs(s, 1, 10, &err) == 0); /* never back */
    CHECK_INT(next(s).tag, 10);
    store_close(&s);
    s = open_store(0);
    CHECK_INT(store_run(s).number, 2);
    CHECK_INT(store_run(s).epoch_floor, first.epoch_ceiling + 7);
    store_close(&s);
    end();
}

static int seen;

static void see_group(void *context, const struct store_group *g)
{
    struct store_group *want = context;
    seen++;
    CHECK(strcmp(g->name, want->name) == 0 && g->epoch == want->epoch && g->incarnation == want->incarnation);
    CHECK(g->lost_soon == 2 && g->lost && g->held && g->age_ms >= 5000 && g->age_ms < 60000);
}

static void see_suspect(void *context, const struct store_suspect *in)
{
    (void)context;
    seen++;
    CHECK(strcmp(in->owner, "alice") == 0 && strcmp(in->refused, "why") == 0 && in->tokens == 4);
    CHECK(in->size == 3 && memcmp(in->losses, "abc", 3) == 0 && in->digest[15] == 9 && in->age_ms < 60000);
}

static void see_setting(void *context, const struct store_setting *in)
{
    (void)context;
    seen++;
    CHECK(strcmp(in->name, "weight") == 0 && !in->automatic && in->value == 7 && in->configured == -1);
}

/* How many groups, suspects and settings there are now, all of them the right ones. */
static int count_rows(struct store *s, struct store_group *g)
{
    struct err err;
    seen = 0;
    CHECK(store_each_group(s, see_group, g, &err) == 0 &&
          store_each_suspect(s, see_suspect, NULL, &err) == 0 &&
          store_each_setting(s, see_setting, NULL, &err) == 0);
    return seen;
}

static void test_what_is_remembered(void)
{
    struct err err;
    struct store_group g = {.name = "g0",
                            .epoch = 12,
                            .incarnation = UINT64_MAX - 5,
                            .lost_soon = 2,
                            .lost = true,
                            .held = true,
                            .age_ms = 5000};
    struct store_setting setting = {.name = "weight", .value = 7, .configured = -1};
    struct store_suspect suspect = {
        .owner = "alice", .digest = {[15] = 9}, .tokens = 4, .refused = "why", .size = 3};
    begin();
    struct store *s = open_store(0);
    CHECK(store_start(s, &err) == 0);
    for (int i = 0; i < 2; i++) { /* the second of each replaces the first */
        suspect.losses = strdup("abc");
        CHECK(store_group(s, &g, 0, &err) == 0 && store_suspect(s, &suspect, &err) == 0 &&
              store_setting(s, &setting, 0, &err) == 0);
    }
    store_close(&s);
    s = open_store(0);
    CHECK_INT(count_rows(s, &g), 3);
    CHECK(store_start(s, &err) == 0);
    CHECK(store_group_gone(s, "g0", &err) == 0 && store_suspect_gone(s, "alice", suspect.digest, &err) == 0 &&
          store_setting_gone(s, "weight", &err) == 0);
    store_close(&s);
    s = open_store(0);
    CHECK_INT(count_rows(s, &g), 0);
    store_close(&s);
    end();
}

static void test_one_at_a_time(void)
{
    begin();
    struct store *s = open_store(0);
    CHECK_CONTAINS(refused(), "in use by another coordinator");
    store_close(&s);
    s = open_store(0);
    CHECK(s != NULL);
    store_close(&s);
    end();
}

static void test_busy(void)
{
    sqlite3 *other;
    begin();
    struct store *s = open_store(0);
    store_close(&s);
    CHECK(sqlite3_open(path, &other) == SQLITE_OK);
    CHECK(sqlite3_exec(other, "BEGIN IMMEDIATE", NULL, NULL, NULL) == SQLITE_OK);
    CHECK_CONTAINS(refused(), "another process writes to it");
    sqlite3_close(other);
    end();
}

/* Overwrites some bytes of the database. */
static void damage(long at, const char *with, size_t bytes)
{
    int fd = open(path, O_RDWR);
    CHECK(fd >= 0 && pwrite(fd, with, bytes, at) == (ssize_t)bytes);
    close(fd);
}

static void test_damaged(void)
{
    struct err err;
    char noise[3000], many[200000];
    memset(noise, 0x5A, sizeof(noise));
    memset(many, 'x', sizeof(many));
    for (int i = 0; i < 4; i++) {
        begin();
        struct store *s = open_store(0);
        CHECK(store_start(s, &err) == 0 && put(s, 1, "a", many, sizeof(many)) == 0);
        store_close(&s);
        if (i == 0)
            damage(0, "no database at all", 18);
        else if (i == 1)
            damage(4096, noise, sizeof(noise)); /* the page of a table */
        else if (i == 2)
            damage(100, noise, 40); /* the first page, behind the header */
        else
            CHECK(truncate(path, 4096 * 3) == 0);
        const char *says = refused();
        CHECK_CONTAINS(says, path);
        CHECK_CONTAINS(says, "lepton restore");
        end();
    }
}

static void test_of_another_program(void)
{
    sqlite3 *other;
    begin();
    CHECK(sqlite3_open(path, &other) == SQLITE_OK);
    CHECK(sqlite3_exec(other, "CREATE TABLE t(x)", NULL, NULL, NULL) == SQLITE_OK);
    sqlite3_close(other);
    CHECK_CONTAINS(refused(), "another program");
    CHECK(unlink(path) == 0);
    struct store *s = open_store(0);
    store_close(&s);
    CHECK(sqlite3_open(path, &other) == SQLITE_OK);
    CHECK(sqlite3_exec(other, "PRAGMA user_version=1000", NULL, NULL, NULL) == SQLITE_OK);
    sqlite3_close(other);
    CHECK_CONTAINS(refused(), "later Lepton");
    CHECK(unlink(path) == 0 && mkdir(path, 0700) == 0);
    CHECK_CONTAINS(refused(), "regular file");
    CHECK(rmdir(path) == 0 && rmdir(directory) == -1); /* the lock stays */
    end();
    CHECK_CONTAINS(refused(), "No such file");
}

/* What an earlier program left is brought up to date, with what is in it. */
static void test_migration(void)
{
    for (int version = 1; version < STORE_VERSION; version++) {
        struct err err = {0};
        sqlite3 *db;
        begin();
        CHECK(sqlite3_open(path, &db) == SQLITE_OK);
        CHECK(store_migrate(db, path, version, &err) == 0);
        CHECK(sqlite3_exec(db,
                           "INSERT INTO answers(row, owner, request, digest, stored_ms, bytes) "
                           "VALUES(5, 'alice', 'q', zeroblob(16), strftime('%s','now')*1000, 'old')",
                           NULL, NULL, NULL) == SQLITE_OK);
        sqlite3_close(db);
        struct store *s = open_store(0);
        CHECK(s != NULL);
        struct found f = answers(s);
        CHECK_INT(f.count, 1);
        CHECK_STR(f.text[0], "alice/q=old");
        store_close(&s);
        end();
    }
}

static void test_full(void)
{
    struct err err;
    static char large[1 << 20];
    struct store_done done;
    begin();
    struct store *s = open_store(4 << 20);
    CHECK(store_start(s, &err) == 0);
    uint64_t row = 0, stored = 0;
    do {
        CHECK(put(s, ++row, (char[]){(char)('a' + row), 0}, large, sizeof(large)) == 0);
        done = next(s);
        stored += done.code == 0;
    } while (done.code == 0 && row < 10);
    CHECK_INT(done.code, 507);
    CHECK_CONTAINS(done.message, "no room");
    CHECK(store_is_full(s, &err) && err.code == 507);
    CHECK(store_answer_gone(s, 1, &err) == 0); /* there is room again, which is found out by itself */
    for (int i = 0; i < 100 && store_is_full(s, &err); i++)
        usleep(100000);
    CHECK(!store_is_full(s, &err));
    CHECK(put(s, 20, "z", large, sizeof(large)) == 0);
    CHECK_INT(next(s).code, 0);
    store_close(&s);
    s = open_store(4 << 20);
    CHECK_INT(answers(s).count, stored);
    store_close(&s);
    end();
}

/* In one transaction with one that does not fit, the others get in. */
static void test_full_for_one(void)
{
    struct err err;
    static char large[8 << 20];
    begin();
    struct store *s = open_store(4 << 20);
    CHECK(put(s, 1, "a", "1", 1) == 0 && put(s, 2, "b", large, sizeof(large)) == 0 &&
          put(s, 3, "c", "3", 1) == 0);
    CHECK(store_start(s, &err) == 0); /* they wait together */
    CHECK_INT(next(s).code, 0);
    CHECK_INT(next(s).code, 507);
    CHECK_INT(next(s).code, 0);
    store_close(&s);
    s = open_store(0);
    CHECK_INT(answers(s).count, 2);
    store_close(&s);
    end();
}

static void test_queue_is_bounded(void)
{
    struct err err;
    static char large[16 << 20];
    begin();
    struct store *s = open_store(0);
    int taken = 0;
    for (uint64_t row = 1; row <= 10; row++)
        taken += put(s, row, "a", large, sizeof(large)) == 0;
    CHECK_INT(taken, 4);
    CHECK(store_start(s, &err) == 0);
    store_close(&s);
    end();
}

static void test_nobody_else_reads_it(void)
{
    struct err err;
    struct stat st;
    char log[128];
    begin();
    umask(0);
    struct store *s = open_store(0);
    CHECK(store_start(s, &err) == 0 && put(s, 1, "a", "1", 1) == 0);
    CHECK_INT(next(s).code, 0);
    snprintf(log, sizeof(log), "%s-wal", path);
    CHECK(stat(path, &st) == 0 && (st.st_mode & 0777) == 0600);
    CHECK(stat(log, &st) == 0 && (st.st_mode & 0777) == 0600);
    store_close(&s);
    end();
}

int main(void)
{
    TEST(test_answers_outlive, "answers outlive the process, one for each id, until they are forgotten");
    TEST(test_runs_and_epochs, "runs are counted, and no epoch of one is below the ceiling of the last");
    TEST(test_what_is_remembered,
         "groups, suspects and settings are remembered until they are to be forgotten");
    TEST(test_one_at_a_time, "a store that is open is not opened again");
    TEST(test_busy, "a database that another process writes to is refused");
    TEST(test_damaged, "a damaged database is refused, with a way to go on");
    TEST(test_of_another_program, "what is no store of ours, or of a later program, is refused");
    TEST(test_migration, "every earlier layout is brought up to date, with what is in it");
    TEST(test_full, "a full store refuses with 507, keeps what it has, and notices room by itself");
    TEST(test_full_for_one, "what does not fit takes nothing else along");
    TEST(test_queue_is_bounded, "what waits for the disk is bounded in bytes");
    TEST(test_nobody_else_reads_it, "the database and its log are for the owner alone");
    return test_result();
}
