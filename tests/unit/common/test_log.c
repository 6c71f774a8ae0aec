#include "common/log.h"

#include <ctype.h>
#include <fcntl.h>
#include <jansson.h>

#include "tests/test.h"

/* What `write_lines` writes to standard error, as text that ends in NUL. Static buffer. */
static char captured[65536];
static const char *capture(void (*write_lines)(void))
{
    char path[] = "/tmp/lepton-log-XXXXXX";
    int fd = mkstemp(path), keep = dup(STDERR_FILENO);
    unlink(path);
    dup2(fd, STDERR_FILENO);
    write_lines();
    dup2(keep, STDERR_FILENO);
    close(keep);
    ssize_t n = pread(fd, captured, sizeof(captured) - 1, 0);
    close(fd);
    captured[n < 0 ? 0 : n] = 0;
    return captured;
}

/* The one line must be one JSON object; the caller drops the reference. */
static json_t *json_line(const char *text)
{
    json_error_t error;
    size_t n = strlen(text);
    CHECK(n > 0 && text[n - 1] == '\n' && strchr(text, '\n') == text + n - 1);
    json_t *object = json_loads(text, JSON_REJECT_DUPLICATES, &error);
    if (!object)
        printf("# %s in %s\n", error.text, text);
    CHECK(json_is_object(object));
    return object;
}

static void check_message(const char *text, const char *message)
{
    json_t *object = json_line(text);
    CHECK_STR(json_string_value(json_object_get(object, "message")), message);
    json_decref(object);
}

static void write_plain(void)
{
    log_warn("router", "group %s lost: %d requests", "g1", 3);
}

static void test_json_fields(void)
{
    log_setup("coordinator \"x\"", LOG_INFO, LOG_JSON);
    json_t *object = json_line(capture(write_plain));
    CHECK_STR(json_string_value(json_object_get(object, "level")), "warn");
    CHECK_STR(json_string_value(json_object_get(object, "program")), "coordinator \"x\"");
    CHECK_STR(json_string_value(json_object_get(object, "subsystem")), "router");
    CHECK_STR(json_string_value(json_object_get(object, "message")), "group g1 lost: 3 requests");
    CHECK_INT(strlen(json_string_value(json_object_get(object, "time"))), strlen("2026-01-31T12:34:56.789Z"));
    CHECK_INT(json_object_size(object), 5);
    json_decref(object);
}

static void write_quotes(void)
{
    log_info("x", "%s", "a \"quoted\" \\ back\nline\ttab \x01\x1f\x7f");
}

static void test_json_control_bytes(void)
{
    log_setup("p", LOG_INFO, LOG_JSON);
    check_message(capture(write_quotes), "a \"quoted\" \\ back\nline\ttab \x01\x1f\x7f");
}

static void write_utf8(void)
{
    log_info("x", "%s", "h\xC3\xA9 \xF0\x9F\x98\x80");
}
static void write_invalid(void)
{
    log_info("x", "%s", "cut \xE2\x82 \xFF\xC0\x80");
}

static void test_json_utf8(void)
{
    log_setup("p", LOG_INFO, LOG_JSON);
    check_message(capture(write_utf8), "h\xC3\xA9 \xF0\x9F\x98\x80");
    /* Each byte that is no UTF-8 stands as the character of its number. */
    check_message(capture(write_invalid), "cut \xC3\xA2\xC2\x82 \xC3\xBF\xC3\x80\xC2\x80");
}

static void write_long(void)
{
    static char text[5001];
    for (size_t i = 0; i + 1 < sizeof(text); i++)
        text[i] = "\xE2\x82\xAC"[i % 3];
    log_info("x", "%s", text);
}

static void test_long_lines(void)
{
    log_setup("p", LOG_INFO, LOG_JSON);
    json_decref(json_line(capture(write_long)));
}

static char random_text[64];
static void write_random(void)
{
    log_error("x", "%s", random_text);
}

static void test_every_byte(void)
{
    unsigned long long random = 3;
    log_setup("p", LOG_INFO, LOG_JSON);
    for (int round = 0; round < 200; round++) {
        for (size_t i = 0; i + 1 < sizeof(random_text); i++)
            random_text[i] = (char)(1 + test_random(&random) % 255);
        json_decref(json_line(capture(write_random)));
    }
}

static void test_text_lines(void)
{
    log_setup("worker g0/1", LOG_INFO, LOG_TEXT);
    CHECK_CONTAINS(capture(write_plain), "Z warn  worker g0/1 router: group g1 lost: 3 requests\n");
    /* No byte of a message may begin a line or steer a terminal. */
    capture(write_quotes);
    CHECK_CONTAINS(captured, ": a \"quoted\" \\ back\\nline\\u0009tab \\u0001\\u001f\\u007f\n");
    capture(write_invalid);
    for (const char *p = captured; *p; p++)
        CHECK(*p == '\n' ? p[1] == 0 : isprint((unsigned char)*p));
}

static int evaluated;
static int count(void)
{
    return ++evaluated;
}
static void write_levels(void)
{
    log_debug("x", "debug %d", count());
    log_info("x", "info");
    log_warn("x", "warn");
    log_error("x", "error");
}

static void test_levels(void)
{
    enum log_level level;
    log_setup("p", LOG_WARN, LOG_TEXT);
    capture(write_levels);
    CHECK(!strstr(captured, "info") && strstr(captured, ": warn\n") && strstr(captured, ": error\n"));
    CHECK_INT(evaluated, 0);
    log_setup("p", LOG_DEBUG, LOG_TEXT);
    CHECK_CONTAINS(capture(write_levels), "debug p x: debug 1\n");
    CHECK(log_level_from_name("error", &level) && level == LOG_ERROR);
    CHECK(!log_level_from_name("ERROR", &level));
    CHECK(!log_level_from_name("", &level));
}

/* Standard error becomes a pipe that nobody reads; what lies in it afterwards, as text. Static buffer. */
static char taken[1 << 18];
static const char *through_pipe(void (*write_lines)(int reading))
{
    int pipe_of[2], keep = dup(STDERR_FILENO);
    CHECK(pipe2(pipe_of, O_CLOEXEC) == 0);
    dup2(pipe_of[1], STDERR_FILENO);
    close(pipe_of[1]);
    alarm(60); /* who waits for a reader waits for ever */
    write_lines(pipe_of[0]);
    alarm(0);
    dup2(keep, STDERR_FILENO);
    close(keep);
    fcntl(pipe_of[0], F_SETFL, O_NONBLOCK);
    ssize_t n = 0, got;
    while ((got = read(pipe_of[0], taken + n, sizeof(taken) - 1 - (size_t)n)) > 0)
        n += got;
    taken[n] = 0;
    close(pipe_of[0]);
    return taken;
}

#define LINES 5000

static void write_until_full(int reading)
{
    (void)reading;
    CHECK((fcntl(STDERR_FILENO, F_GETFL) & O_NONBLOCK) == 0);
    for (int i = 0; i < LINES; i++)
        log_info("test", "line %d of a log that nobody reads, and that is longer than a pipe", i);
    CHECK((fcntl(STDERR_FILENO, F_GETFL) & O_NONBLOCK) == 0); /* others share it */
}

static unsigned long long counted_lost;
static int lines_read;

static void write_after_a_pause(int reading)
{
    write_until_full(reading);
    fcntl(reading, F_SETFL, O_NONBLOCK);
    ssize_t n = read(reading, taken, sizeof(taken) - 1);
    taken[n < 0 ? 0 : n] = 0;
    lines_read = 0;
    for (const char *at = taken; (at = strstr(at, " of a log that")); at++)
        lines_read++;
    CHECK(n > 0 && taken[n - 1] == '\n'); /* whole lines alone */
    log_info("test", "read again");
    log_info("test", "and on");
}

static void test_nobody_reads(void)
{
    log_setup("coordinator", LOG_INFO, LOG_TEXT);
    const char *text = through_pipe(write_until_full);
    CHECK_CONTAINS(text, " line 0 of");
    CHECK(!strstr(text, " line 4999 of"));
    text = through_pipe(write_after_a_pause);
    const char *note = strstr(text, "coordinator log: ");
    CHECK(note && sscanf(note, "coordinator log: %llu lines before this one could not be written",
                         &counted_lost) == 1);
    CHECK_INT(counted_lost + (unsigned long long)lines_read, LINES);
    CHECK(note && strstr(note, "test: read again\n"));
    CHECK(note && strstr(note, "test: and on\n") && !strstr(strchr(note, '\n'), "could not be"));
}

int main(void)
{
    TEST(test_json_fields, "a JSON line has its five fields");
    TEST(test_json_control_bytes, "quotes and control bytes keep a line valid JSON");
    TEST(test_json_utf8, "invalid UTF-8 keeps a line valid JSON");
    TEST(test_long_lines, "a message that is cut stays valid JSON");
    TEST(test_every_byte, "random bytes keep a line valid JSON");
    TEST(test_text_lines, "a text line stays one line, without control bytes");
    TEST(test_levels, "lines below the level are not written, nor their arguments computed");
    TEST(test_nobody_reads, "a log that nobody reads keeps nobody waiting; lines that are lost are counted");
    return test_result();
}
