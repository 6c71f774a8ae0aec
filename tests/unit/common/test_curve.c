#include "common/curve.h"

#include <czmq.h>
#include <sys/stat.h>

#include "common/clock.h"
#include "tests/test.h"

/* A directory of its own for each test, removed at its end. */
static char directory[64];

static void directory_make(void)
{
    strcpy(directory, "/tmp/lepton-test-curve-XXXXXX");
    if (!mkdtemp(directory))
        die("mkdtemp failed");
}

static void directory_remove(void)
{
    char *command = xasprintf("rm -rf '%s'", directory);
    CHECK_INT(system(command), 0);
    free(command);
}

static const char *in_directory(const char *file)
{
    static char path[128];
    snprintf(path, sizeof(path), "%s/%s", directory, file);
    return path;
}

static void write_text(const char *file, const char *text, mode_t mode)
{
    FILE *f = fopen(in_directory(file), "w");
    ASSERT(f != NULL);
    fputs(text, f);
    fchmod(fileno(f), mode);
    fclose(f);
}

/* ---- key files ---- */

static void test_a_pair_is_written_and_read(void)
{
    struct curve_key made, loaded;
    struct err err = {0};
    struct stat st;
    directory_make();
    char *below = xasprintf("%s/keys", directory);
    mode_t old = umask(0);
    CHECK_INT(curve_generate(&made, below, "alice.1", CURVE_CLIENT, &err), 0);
    umask(old);
    free(below);
    CHECK(stat(in_directory("keys"), &st) == 0 && (st.st_mode & 0777) == 0700);
    CHECK(stat(in_directory("keys/alice.1.key"), &st) == 0 && (st.st_mode & 0777) == 0600);
    CHECK(stat(in_directory("keys/alice.1.pub"), &st) == 0 && (st.st_mode & 0777) == 0644);
    CHECK_INT(curve_load(&loaded, in_directory("keys/alice.1.key"), false, &err), 0);
    CHECK_STR(loaded.name, "alice.1");
    CHECK_INT(loaded.role, CURVE_CLIENT);
    CHECK_STR(loaded.public_key, made.public_key);
    CHECK_STR(loaded.secret_key, made.secret_key);
    CHECK_INT(curve_load(&loaded, in_directory("keys/alice.1.pub"), true, &err), 0);
    CHECK_STR(loaded.public_key, made.public_key);
    CHECK_STR(loaded.secret_key, "");
    curve_wipe(&loaded);
    CHECK_STR(loaded.public_key, "");
    directory_remove();
}

static void test_a_pair_is_never_overwritten(void)
{
    struct curve_key first, second;
    struct err err = {0};
    directory_make();
    CHECK_INT(curve_generate(&first, directory, "bob", CURVE_WORKER, &err), 0);
    CHECK_INT(curve_generate(&second, directory, "bob", CURVE_WORKER, &err), -1);
    CHECK_CONTAINS(err.message, "bob.key: exists; key files are never overwritten");
    /* When only the public half is there, no secret half is left behind. */
    CHECK_INT(unlink(in_directory("bob.key")), 0);
    CHECK_INT(curve_generate(&second, directory, "bob", CURVE_WORKER, &err), -1);
    CHECK_CONTAINS(err.message, "bob.pub: exists");
    CHECK(access(in_directory("bob.key"), F_OK) != 0);
    directory_remove();
}

static void test_bad_names_are_refused(void)
{
    static const char *const bad[] = {
        "",    ".hidden", "../up",    "a/b",
        "a b", "a:b",     "\xC3\xA9", "x123456789x123456789x123456789x123456789x123456789x123456789xxxxx"};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        struct curve_key key;
        struct err err = {0};
        CHECK_INT(curve_generate(&key, "/nowhere", bad[i], CURVE_CLIENT, &err), -1);
        CHECK_CONTAINS(err.message, "expected a name of 1 to 64 characters");
    }
}

static void test_czmq_reads_our_files_and_we_read_its(void)
{
    struct curve_key key;
    struct err err = {0};
    directory_make();
    CHECK_INT(curve_generate(&key, directory, "carol", CURVE_CLIENT, &err), 0);
    zcert_t *cert = zcert_load(in_directory("carol.key"));
    CHECK(cert != NULL);
    if (cert) {
        CHECK_STR(zcert_public_txt(cert), key.public_key);
        CHECK_STR(zcert_secret_txt(cert), key.secret_key);
        CHECK_STR(zcert_meta(cert, "name"), "carol");
        CHECK_STR(zcert_meta(cert, "role"), "client");
        zcert_set_meta(cert, "email", "%s", "carol@example.org");
        CHECK_INT(zcert_save_public(cert, in_directory("theirs.pub")), 0);
        CHECK_INT(zcert_save_secret(cert, in_directory("theirs.key")), 0);
        zcert_destroy(&cert);
    }
    struct curve_key back;
    CHECK_INT(curve_load(&back, in_directory("theirs.key"), false, &err), 0);
    CHECK_STR(back.secret_key, key.secret_key);
    CHECK_INT(curve_load(&back, in_directory("theirs.pub"), true, &err), 0);
    CHECK_STR(back.name, "carol");
    directory_remove();
}

static void test_a_key_file_that_others_may_read_is_refused(void)
{
    static const mode_t modes[] = {0644, 0640, 0604, 0610, 0602};
    struct curve_key key;
    struct err err = {0};
    directory_make();
    CHECK_INT(curve_generate(&key, directory, "dave", CURVE_CLIENT, &err), 0);
    for (size_t i = 0; i < ARRAY_LEN(modes); i++) {
        chmod(in_directory("dave.key"), modes[i]);
        CHECK_INT(curve_load(&key, in_directory("dave.key"), false, &err), -1);
        CHECK_CONTAINS(err.message, "others may use it: chmod 600");
        CHECK_STR(key.secret_key, "");
    }
    chmod(in_directory("dave.key"), 0400);
    CHECK_INT(curve_load(&key, in_directory("dave.key"), false, &err), 0);
    chmod(in_directory("dave.pub"), 0664);
    CHECK_INT(curve_load(&key, in_directory("dave.pub"), true, &err), -1);
    CHECK_CONTAINS(err.message, "others may write it: chmod go-w");
    directory_remove();
}

static void test_what_is_no_regular_file_is_refused(void)
{
    struct curve_key key;
    struct err err = {0};
    directory_make();
    CHECK_INT(curve_generate(&key, directory, "eve", CURVE_CLIENT, &err), 0);
    CHECK_INT(symlink("eve.key", in_directory("link.key")), 0);
    CHECK_INT(curve_load(&key, in_directory("link.key"), false, &err), -1);
    CHECK_CONTAINS(err.message, "expected a regular file, found a link");
    CHECK_INT(mkfifo(in_directory("fifo.pub"), 0644), 0);
    CHECK_INT(curve_load(&key, in_directory("fifo.pub"), true, &err), -1);
    CHECK_CONTAINS(err.message, "fifo.pub: expected a regular file");
    CHECK_INT(curve_load(&key, directory, true, &err), -1);
    CHECK_CONTAINS(err.message, "expected a regular file");
    CHECK_INT(curve_load(&key, in_directory("missing.pub"), true, &err), -1);
    CHECK_CONTAINS(err.message, "missing.pub: No such file");
    directory_remove();
}

#define META "metadata\n    name = \"x\"\n    role = \"client\"\n"
#define PUB  "    public-key = \"rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7\"\n"
#define SEC \
    "    secret-key = \"JTKVSB%%)wK0E.X)V>+}o?pNmC{O&4W4b!Ni{Lh6\"\n" /* the pair of RFC 26's manual page */

static void test_garbage_key_files_say_what_is_wrong(void)
{
    static const struct {
        const char *text, *message;
    } bad[] = {
        {"", "expected a name"},
        {"hello world\n", "x.key:1: expected a section"},
        {"metadata\n  name\n", "x.key:2: expected NAME = \"VALUE\""},
        {"metadata\n  name = \"x\n", "x.key:2: expected NAME = \"VALUE\""},
        {"metadata\n  name =\n", "x.key:2: expected NAME = \"VALUE\""},
        {"metadata\n  name = \"x\"\n  name = \"y\"\n", "x.key:3: given twice"},
        {"metadata\n  name = \"a/b\"\n", "expected a name of 1 to 64"},
        {"metadata\n  name = \"x\"\n  role = \"king\"\n", "expected a role"},
        {"metadata\n  name = \"x\"\n", "expected a role"},
        {"metadata\n  role = \"averyveryverylongword\"\n",
         "x.key:2: expected NAME = \"VALUE\" of at most 15"},
        {META, "expected a public-key of 40 Z85 characters"},
        {META "curve\n    public-key = \"short\"\n", "expected a public-key of 40 Z85 characters"},
        {META "curve\n    public-key = \"rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf~\"\n",
         "expected a public-key of 40"},
        {META "curve\n    public-key = \"########################################\"\n",
         "expected a public-key of 40"},
        {META "curve\n    public_key = \"x\"\n", "x.key:5: expected public-key or secret-key"},
        {META "other\n    public-key = \"x\"\n", "x.key:5: expected public-key or secret-key"},
        {META "curve\n" PUB, "expected a secret-key of 40 Z85 characters"},
        {META "curve\n" PUB "    secret-key = \"rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7\"\n",
         "the public key is not that of the secret key"},
    };
    struct curve_key key;
    directory_make();
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        struct err err = {0};
        write_text("x.key", bad[i].text, 0600);
        CHECK_INT(curve_load(&key, in_directory("x.key"), false, &err), -1);
        CHECK_CONTAINS(err.message, bad[i].message);
        CHECK_CONTAINS(err.message, directory);
    }
    struct err err = {0};
    char *long_text = xmalloc(5001);
    memset(long_text, '#', 5000);
    long_text[5000] = '\0';
    write_text("x.key", long_text, 0600);
    CHECK_INT(curve_load(&key, in_directory("x.key"), false, &err), -1);
    CHECK_CONTAINS(err.message, "5000 bytes, a key file has at most 4096");
    free(long_text);
    FILE *f = fopen(in_directory("x.key"), "w");
    fwrite("metadata\0curve\n", 1, 15, f);
    fclose(f);
    chmod(in_directory("x.key"), 0600);
    CHECK_INT(curve_load(&key, in_directory("x.key"), false, &err), -1);
    CHECK_CONTAINS(err.message, "expected the text of a key file");
    directory_remove();
}

static void test_a_secret_in_a_public_file_is_refused(void)
{
    struct curve_key key;
    struct err err = {0};
    directory_make();
    write_text("x.key", META "curve\n" PUB SEC, 0600);
    CHECK_INT(curve_load(&key, in_directory("x.key"), false, &err), 0); /* the twin that is fine */
    write_text("x.pub", META "curve\n" PUB SEC, 0644);
    CHECK_INT(curve_load(&key, in_directory("x.pub"), true, &err), -1);
    CHECK_CONTAINS(err.message, "holds a secret key");
    CHECK_STR(key.public_key, "");
    directory_remove();
}

static void test_user_ids_split(void)
{
    enum curve_role role;
    const char *name;
    CHECK(curve_user_parse("worker:g0", &role, &name) && role == CURVE_WORKER && strcmp(name, "g0") == 0);
    CHECK(!curve_user_parse(NULL, &role, &name));
    CHECK(!curve_user_parse("", &role, &name));
    CHECK(!curve_user_parse("worker", &role, &name));
    CHECK(!curve_user_parse("worker:", &role, &name));
    CHECK(!curve_user_parse("king:x", &role, &name));
    CHECK(!curve_user_parse("worker:a:b", &role, &name));
    CHECK(!curve_user_parse("averyveryverylongword:x", &role, &name));
}

/* ---- real sockets ---- */

/* A coordinator that trusts DIR/authorized, and a context of its own for the peers: inproc never mixes them.
 */
struct house {
    void *context, *outside, *server, *monitor;
    struct curve_zap *zap;
    struct curve_key own;
    char endpoint[128];
    int handshake_ms; /* 0: as curve_server sets it */
};

static struct curve_key authorize(const char *name, enum curve_role role)
{
    struct curve_key key;
    struct err err = {0};
    char *authorized = xasprintf("%s/authorized", directory);
    if (curve_generate(&key, authorized, name, role, &err) != 0)
        die("%s", err.message);
    free(authorized);
    return key;
}

static void house_open(struct house *h)
{
    struct err err = {0};
    size_t size = sizeof(h->endpoint);
    int linger = 0;
    directory_make();
    CHECK_INT(mkdir(in_directory("authorized"), 0700), 0);
    CHECK_INT(curve_generate(&h->own, directory, "coordinator", CURVE_COORDINATOR, &err), 0);
    h->context = zmq_ctx_new();
    h->outside = zmq_ctx_new();
    if (curve_zap_start(&h->zap, h->context, in_directory("authorized"), &err) != 0)
        die("%s", err.message);
    h->server = zmq_socket(h->context, ZMQ_ROUTER);
    zmq_setsockopt(h->server, ZMQ_LINGER, &linger, sizeof(linger));
    CHECK_INT(curve_server(h->server, &h->own, &err), 0);
    if (h->handshake_ms)
        zmq_setsockopt(h->server, ZMQ_HANDSHAKE_IVL, &h->handshake_ms, sizeof(h->handshake_ms));
    CHECK_INT(zmq_socket_monitor(h->server, "inproc://monitor", ZMQ_EVENT_ALL), 0);
    h->monitor = zmq_socket(h->context, ZMQ_PAIR);
    CHECK_INT(zmq_connect(h->monitor, "inproc://monitor"), 0);
    CHECK_INT(zmq_bind(h->server, "tcp://127.0.0.1:*"), 0);
    CHECK_INT(zmq_getsockopt(h->server, ZMQ_LAST_ENDPOINT, h->endpoint, &size), 0);
}

static void house_close(struct house *h)
{
    zmq_socket_monitor(h->server, NULL, 0);
    zmq_close(h->server);
    zmq_close(h->monitor);
    curve_zap_stop(&h->zap);
    CHECK(h->zap == NULL);
    zmq_ctx_term(h->outside);
    zmq_ctx_term(h->context);
    directory_remove();
}

/* A DEALER that says `text`; key NULL: no CURVE. */
static void *peer_open(struct house *h, const struct curve_key *key, const char *server_key, const char *text)
{
    int linger = 0;
    struct err err = {0};
    void *socket = zmq_socket(h->outside, ZMQ_DEALER);
    zmq_setsockopt(socket, ZMQ_LINGER, &linger, sizeof(linger));
    if (key)
        CHECK_INT(curve_client(socket, key, server_key, &err), 0);
    CHECK_INT(zmq_connect(socket, h->endpoint), 0);
    CHECK_INT(zmq_send(socket, text, strlen(text), 0), (int)strlen(text));
    return socket;
}

/* The server must receive `text` next, from `user`. */
static void expect_message(struct house *h, const char *text, const char *user)
{
    zmq_msg_t identity, body;
    int patience_ms = 20000;
    zmq_setsockopt(h->server, ZMQ_RCVTIMEO, &patience_ms, sizeof(patience_ms));
    zmq_msg_init(&identity);
    zmq_msg_init(&body);
    CHECK(zmq_msg_recv(&identity, h->server, 0) > 0);
    CHECK(zmq_msg_recv(&body, h->server, 0) >= 0);
    CHECK_INT(zmq_msg_size(&body), strlen(text));
    CHECK(zmq_msg_size(&body) == strlen(text) && memcmp(zmq_msg_data(&body), text, strlen(text)) == 0);
    CHECK_STR(zmq_msg_gets(&body, "User-Id"), user);
    zmq_msg_close(&identity);
    zmq_msg_close(&body);
}

static void note_events(struct house *h)
{
    uint8_t head[6];
    char peer[128] = "";
    while (zmq_recv(h->monitor, head, sizeof(head), ZMQ_DONTWAIT) == (int)sizeof(head)) {
        uint16_t event;
        uint32_t value;
        zmq_recv(h->monitor, peer, sizeof(peer) - 1, ZMQ_DONTWAIT);
        memcpy(&event, head, sizeof(event));
        memcpy(&value, head + sizeof(event), sizeof(value));
        curve_zap_note(h->zap, event, value, peer);
    }
}

/* Waits for what must come; the bound is only there so that a failing test ends. */
static bool refused_beyond(struct house *h, uint64_t before)
{
    for (int i = 0; i < 2000 && curve_zap_refused(h->zap) <= before; i++) {
        note_events(h);
        clock_sleep_ms(10);
    }
    return curve_zap_refused(h->zap) > before;
}

static void test_the_right_key_passes_with_its_identity(void)
{
    struct house h = {0};
    house_open(&h);
    struct curve_key worker = authorize("g0", CURVE_WORKER); /* after the handler started: noticed */
    void *peer = peer_open(&h, &worker, h.own.public_key, "hello");
    expect_message(&h, "hello", "worker:g0");
    CHECK_INT(curve_zap_refused(h.zap), 0);
    zmq_close(peer);
    house_close(&h);
}

/* The number of the key that the next message comes from. */
static uint64_t number_of_message(struct house *h)
{
    zmq_msg_t part;
    uint64_t number = 0;
    int patience_ms = 20000;
    zmq_setsockopt(h->server, ZMQ_RCVTIMEO, &patience_ms, sizeof(patience_ms));
    zmq_msg_init(&part);
    CHECK(zmq_msg_recv(&part, h->server, 0) > 0);
    CHECK(zmq_msg_recv(&part, h->server, 0) >= 0);
    const char *text = zmq_msg_gets(&part, CURVE_KEY_PROPERTY);
    CHECK(text && strlen(text) == 16);
    if (text)
        number = strtoull(text, NULL, 16);
    zmq_msg_close(&part);
    return number;
}

static void test_a_key_that_is_removed_or_replaced_is_allowed_no_more(void)
{
    struct house h = {0};
    house_open(&h);
    struct curve_key old = authorize("alice", CURVE_CLIENT);
    void *peer = peer_open(&h, &old, h.own.public_key, "hello");
    uint64_t number = number_of_message(&h);
    CHECK(curve_zap_allows(h.zap, CURVE_CLIENT, "alice", number));
    CHECK(!curve_zap_allows(h.zap, CURVE_WORKER, "alice", number));
    CHECK(!curve_zap_allows(h.zap, CURVE_CLIENT, "bob", number));
    CHECK(!curve_zap_allows(h.zap, CURVE_CLIENT, "alice", number + 1));
    clock_sleep_ms(CURVE_STALE_MS);
    CHECK_INT(unlink(in_directory("authorized/alice.pub")), 0);
    CHECK_INT(unlink(in_directory("authorized/alice.key")), 0);
    clock_sleep_ms(CURVE_STALE_MS);
    CHECK(!curve_zap_allows(h.zap, CURVE_CLIENT, "alice", number));
    authorize("alice", CURVE_CLIENT); /* another key under her name */
    clock_sleep_ms(CURVE_STALE_MS);
    CHECK(!curve_zap_allows(h.zap, CURVE_CLIENT, "alice", number));
    zmq_close(peer);
    house_close(&h);
}

/* Each of these is refused and counted, and its message never arrives: the next one that does is the good
 * peer's. */
static void check_refused(struct house *h, void *peer)
{
    struct curve_key good = authorize("good", CURVE_CLIENT);
    CHECK(refused_beyond(h, 0));
    void *next = peer_open(h, &good, h->own.public_key, "good");
    expect_message(h, "good", "client:good");
    zmq_close(next);
    zmq_close(peer);
}

static void test_an_unknown_key_is_refused(void)
{
    struct house h = {0};
    struct curve_key stranger = {0};
    house_open(&h);
    CHECK_INT(zmq_curve_keypair(stranger.public_key, stranger.secret_key), 0);
    check_refused(&h, peer_open(&h, &stranger, h.own.public_key, "bad"));
    house_close(&h);
}

static void test_a_client_of_another_server_is_refused(void)
{
    struct house h = {0};
    struct curve_key other = {0};
    house_open(&h);
    struct curve_key client = authorize("c", CURVE_CLIENT);
    CHECK_INT(zmq_curve_keypair(other.public_key, other.secret_key), 0);
    check_refused(&h, peer_open(&h, &client, other.public_key, "bad"));
    house_close(&h);
}

static void test_no_key_is_refused(void)
{
    struct house h = {0};
    house_open(&h);
    check_refused(&h, peer_open(&h, NULL, NULL, "bad"));
    house_close(&h);
}

static void test_plain_is_refused(void)
{
    struct house h = {0};
    int linger = 0;
    house_open(&h);
    void *peer = zmq_socket(h.outside, ZMQ_DEALER);
    zmq_setsockopt(peer, ZMQ_LINGER, &linger, sizeof(linger));
    zmq_setsockopt(peer, ZMQ_PLAIN_USERNAME, "admin", 5);
    zmq_setsockopt(peer, ZMQ_PLAIN_PASSWORD, "secret", 6);
    CHECK_INT(zmq_connect(peer, h.endpoint), 0);
    CHECK_INT(zmq_send(peer, "bad", 3, 0), 3);
    check_refused(&h, peer);
    house_close(&h);
}

/* A TCP peer that sends these bytes and then waits. */
static void check_bytes_refused(const char *bytes, size_t count, int handshake_ms)
{
    struct house h = {.handshake_ms = handshake_ms};
    uint8_t identity[256], nothing[1];
    int linger = 0;
    house_open(&h);
    void *peer = zmq_socket(h.outside, ZMQ_STREAM);
    zmq_setsockopt(peer, ZMQ_LINGER, &linger, sizeof(linger));
    CHECK_INT(zmq_connect(peer, h.endpoint), 0);
    int n = zmq_recv(peer, identity, sizeof(identity), 0); /* connected */
    CHECK(n > 0);
    zmq_recv(peer, nothing, 1, 0);
    zmq_send(peer, identity, (size_t)n, ZMQ_SNDMORE);
    zmq_send(peer, bytes, count, 0);
    CHECK(refused_beyond(&h, 0));
    zmq_close(peer);
    house_close(&h);
}

static void test_an_unknown_mechanism_is_refused(void)
{
    char greeting[64] = "\xFF\0\0\0\0\0\0\0\1\x7F\3\0BOGUS";
    check_bytes_refused(greeting, sizeof(greeting), 0);
}

static void test_another_protocol_is_refused(void)
{
    static const char http[] = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    check_bytes_refused(http, sizeof(http) - 1, 100);
}

static void test_removing_the_file_revokes_the_key(void)
{
    struct house h = {0};
    house_open(&h);
    struct curve_key client = authorize("c", CURVE_CLIENT);
    void *peer = peer_open(&h, &client, h.own.public_key, "first");
    expect_message(&h, "first", "client:c");
    zmq_close(peer);
    CHECK_INT(unlink(in_directory("authorized/c.pub")), 0);
    check_refused(&h, peer_open(&h, &client, h.own.public_key, "second"));
    house_close(&h);
}

/* A file that lies about its owner, or cannot be read as a key, lets nobody in and disturbs nobody. */
static void test_bad_files_in_the_directory_are_left_out(void)
{
    struct house h = {0};
    house_open(&h);
    struct curve_key client = authorize("zoe", CURVE_CLIENT);
    char *from = xstrdup(in_directory("authorized/zoe.pub"));
    CHECK_INT(rename(from, in_directory("authorized/admin.pub")), 0);
    free(from);
    write_text("authorized/garbage.pub", "garbage\n\x01\n", 0644);
    write_text("authorized/open.pub", META "curve\n" PUB, 0666);
    write_text("authorized/note.txt", "not a key", 0644);
    check_refused(&h, peer_open(&h, &client, h.own.public_key, "bad"));
    house_close(&h);
}

static void test_the_handler_needs_a_safe_directory(void)
{
    void *context = zmq_ctx_new();
    struct curve_zap *zap = NULL, *second = NULL;
    struct err err = {0};
    directory_make();
    CHECK_INT(curve_zap_start(&zap, context, in_directory("missing"), &err), -1);
    CHECK_CONTAINS(err.message, "missing: No such file");
    CHECK(zap == NULL);
    chmod(directory, 0777);
    CHECK_INT(curve_zap_start(&zap, context, directory, &err), -1);
    CHECK_CONTAINS(err.message, "others may write this directory");
    chmod(directory, 0755);
    CHECK_INT(curve_zap_start(&zap, context, directory, &err), 0);
    CHECK_INT(curve_zap_start(&second, context, directory, &err), -1);
    CHECK_CONTAINS(err.message, "this context has one already");
    curve_zap_stop(&zap);
    curve_zap_stop(&zap); /* NULL is accepted */
    CHECK_INT(curve_zap_start(&second, context, directory, &err), 0);
    curve_zap_stop(&second);
    zmq_ctx_term(context);
    directory_remove();
}

/* Asks the handler itself, as libzmq does; returns the status. */
static void ask(void *context, const char *const *frames, size_t count, char status[8], char reason[64])
{
    void *asker = zmq_socket(context, ZMQ_REQ);
    zmq_connect(asker, "inproc://zeromq.zap.01");
    for (size_t i = 0; i < count; i++)
        zmq_send(asker, frames[i], strlen(frames[i]), i + 1 < count ? ZMQ_SNDMORE : 0);
    char *reply[6];
    for (int i = 0; i < 6; i++) {
        char frame[128] = {0};
        CHECK(zmq_recv(asker, frame, sizeof(frame) - 1, 0) >= 0);
        reply[i] = xstrdup(frame);
    }
    CHECK_STR(reply[0], "1.0");
    CHECK_STR(reply[1], count > 1 ? frames[1] : "");
    snprintf(status, 8, "%s", reply[2]);
    snprintf(reason, 64, "%s", reply[3]);
    CHECK_STR(reply[4], "");
    for (int i = 0; i < 6; i++)
        free(reply[i]);
    zmq_close(asker);
}

static void test_odd_zap_requests_are_refused(void)
{
    static const char key[33] = "12345678901234567890123456789012";
    static const struct {
        const char *frames[9];
        size_t count;
        const char *reason;
    } odd[] = {
        {{"2.0", "7", "lepton", "1.2.3.4", "", "CURVE", key}, 7, "not a ZAP 1.0 request"},
        {{"1.0"}, 1, "not a ZAP 1.0 request"},
        {{"1.0", "7", "lepton", "1.2.3.4", "", "CURVE"}, 6, "not a ZAP 1.0 request"},
        {{"1.0", "7", "lepton", "1.2.3.4", "", "CURVE", key, "more", "still"}, 9, "not a ZAP 1.0 request"},
        {{"1.0", "7", "other", "1.2.3.4", "", "CURVE", key}, 7, "unknown domain"},
        {{"1.0", "7", "lepton", "1.2.3.4", "", "NULL", key}, 7, "the mechanism is not CURVE"},
        {{"1.0", "7", "lepton", "1.2.3.4", "", "PLAIN", "admin"}, 7, "the mechanism is not CURVE"},
        {{"1.0", "7", "lepton", "1.2.3.4", "", "CURVE", "short"}, 7, "a key of the wrong size"},
        {{"1.0", "7", "lepton", "1.2.3.4", "", "CURVE", key}, 7, "unknown key"},
    };
    struct curve_zap *zap;
    struct err err = {0};
    void *context = zmq_ctx_new();
    directory_make();
    CHECK_INT(curve_zap_start(&zap, context, directory, &err), 0);
    for (size_t i = 0; i < ARRAY_LEN(odd); i++) {
        char status[8], reason[64];
        ask(context, odd[i].frames, odd[i].count, status, reason);
        CHECK_STR(status, "400");
        CHECK_STR(reason, odd[i].reason);
    }
    CHECK_INT(curve_zap_refused(zap), ARRAY_LEN(odd));
    curve_zap_stop(&zap);
    zmq_ctx_term(context);
    directory_remove();
}

int main(void)
{
    TEST(test_a_pair_is_written_and_read, "a pair is written with its modes and read again");
    TEST(test_a_pair_is_never_overwritten, "a pair is never overwritten");
    TEST(test_bad_names_are_refused, "bad names are refused");
    TEST(test_czmq_reads_our_files_and_we_read_its, "CZMQ reads our files and we read its");
    TEST(test_a_key_file_that_others_may_read_is_refused, "a key file that others may read is refused");
    TEST(test_what_is_no_regular_file_is_refused, "what is no regular file is refused");
    TEST(test_garbage_key_files_say_what_is_wrong, "garbage key files say what is wrong, and where");
    TEST(test_a_secret_in_a_public_file_is_refused, "a secret in a public file is refused");
    TEST(test_a_key_that_is_removed_or_replaced_is_allowed_no_more,
         "an open connection is allowed no more when its key is removed or replaced");
    TEST(test_user_ids_split, "user ids split into role and name");
    TEST(test_the_right_key_passes_with_its_identity,
         "the right key passes, its messages carry the identity");
    TEST(test_an_unknown_key_is_refused, "an unknown key is refused and counted");
    TEST(test_a_client_of_another_server_is_refused, "a client that expects another server is refused");
    TEST(test_no_key_is_refused, "a peer without a key is refused and counted");
    TEST(test_plain_is_refused, "a peer with a password is refused and counted");
    TEST(test_an_unknown_mechanism_is_refused, "a peer with an unknown mechanism is refused and counted");
    TEST(test_another_protocol_is_refused, "a peer with another protocol is refused and counted");
    TEST(test_removing_the_file_revokes_the_key, "removing the file revokes the key");
    TEST(test_bad_files_in_the_directory_are_left_out, "bad files in the directory let nobody in");
    TEST(test_the_handler_needs_a_safe_directory, "the handler needs a directory that others cannot write");
    TEST(test_odd_zap_requests_are_refused, "odd ZAP requests are refused with a reason");
    return test_result();
}
