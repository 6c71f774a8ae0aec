#include "common/last_words.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/test.h"

/* Runs `how` in a process of its own that may speak; its wait status. */
static int in_child(const char *address, void (*how)(void))
{
    fflush(NULL);
    pid_t pid = fork();
    int status = -1;
    if (pid == 0) {
        struct rlimit none = {0};
        setrlimit(RLIMIT_CORE, &none);
        if (!freopen("/dev/null", "w", stderr))
            _exit(99);
        last_words_open(address);
        how();
        _exit(0);
    }
    waitpid(pid, &status, 0);
    return status;
}

static void reset_handlers(void)
{
    signal(SIGSEGV, SIG_DFL); /* a sanitizer's: it would exit instead */
    signal(SIGABRT, SIG_DFL);
    signal(SIGFPE, SIG_DFL);
}

static void raise_segv(void)
{
    raise(SIGSEGV);
}

static void do_abort(void)
{
    abort();
}

static void raise_term(void)
{
    raise(SIGTERM);
}

static void no_room(void)
{
    no_memory(1, 5);
}

static void give_up(void)
{
    die("it is over");
}

static void say_nonsense(void)
{
    last_words_say("");
    last_words_say("SIGSEG");
    last_words_say("exit 72");
    last_words_say("SIGSEGV and then so much more that no room is left for it");
    last_words_say("SIGFPE");
    last_words_say("SIGSEGV");
}

static void test_told(void)
{
    static const struct {
        void (*how)(void);
        int signal, code;
        const char *word;
    } cases[] = {{raise_segv, SIGSEGV, 0, "SIGSEGV"}, {do_abort, SIGABRT, 0, "SIGABRT"},
                 {raise_term, SIGTERM, 0, ""},        {no_room, 0, EXIT_NO_MEMORY, "out of memory"},
                 {give_up, 0, EXIT_DIE, "exit 70"},   {say_nonsense, 0, 0, "SIGFPE"}};
    char address[LAST_WORDS_ADDRESS], said[LAST_WORDS_MOST];
    struct err err;
    int fd = last_words_listen(address, &err);
    CHECK(fd >= 0);
    reset_handlers();
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        int status = in_child(address, cases[i].how);
        CHECK_INT(WIFSIGNALED(status) ? WTERMSIG(status) : 0, cases[i].signal);
        CHECK_INT(WIFEXITED(status) ? WEXITSTATUS(status) : 0, cases[i].code);
        CHECK_INT(last_words_heard(fd, said), cases[i].word[0] != '\0');
        CHECK_STR(said, cases[i].word);
        while (last_words_heard(fd, said))
            ;
    }
    close(fd);
}

static void test_nobody_listens(void)
{
    char address[LAST_WORDS_ADDRESS];
    struct err err;
    int fd = last_words_listen(address, &err);
    CHECK(fd >= 0);
    close(fd);
    reset_handlers();
    static const char *const addresses[] = {NULL, "", "lepton-nobody",
                                            "an address that is longer than any of ours can ever be"};
    for (size_t i = 0; i < ARRAY_LEN(addresses); i++) {
        int status = in_child(addresses[i] ? addresses[i] : address, raise_segv);
        CHECK(WIFSIGNALED(status));
        CHECK_INT(WTERMSIG(status), SIGSEGV);
    }
}

static void test_names(void)
{
    CHECK_STR(last_words_signal(SIGKILL), "SIGKILL");
    CHECK_STR(last_words_signal(SIGBUS), "SIGBUS");
    CHECK(!last_words_signal(0));
    CHECK(!last_words_signal(-56));
}

int main(void)
{
    TEST(test_told, "what a process dies of reaches who listens, and it dies of that all the same");
    TEST(test_nobody_listens, "with nobody there a process dies as it would");
    TEST(test_names, "signals have names");
    return test_result();
}
