#include "common/last_words.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/clock.h"

static const struct {
    int number;
    bool fatal; /* comes from within: to be caught */
    const char *name;
} signals[] = {{SIGSEGV, true, "SIGSEGV"},  {SIGABRT, true, "SIGABRT"}, {SIGBUS, true, "SIGBUS"},
               {SIGFPE, true, "SIGFPE"},    {SIGILL, true, "SIGILL"},   {SIGKILL, false, "SIGKILL"},
               {SIGTERM, false, "SIGTERM"}, {SIGINT, false, "SIGINT"}};

/* Written by last_words_open before threads start, read-only afterwards: a signal handler has no argument. */
static int words_fd = -1;
static struct sigaction before[ARRAY_LEN(signals)];

const char *last_words_signal(int number)
{
    for (size_t i = 0; i < ARRAY_LEN(signals); i++)
        if (signals[i].number == number)
            return signals[i].name;
    return NULL;
}

/* A leading 0 makes the name abstract. */
static socklen_t make_address(struct sockaddr_un *out, const char *address)
{
    size_t bytes = strlen(address);
    *out = (struct sockaddr_un){.sun_family = AF_UNIX};
    ASSERT(bytes > 0 && bytes < LAST_WORDS_ADDRESS);
    memcpy(out->sun_path + 1, address, bytes);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + bytes);
}

/* ---- who watches ---- */
int last_words_listen(char address[LAST_WORDS_ADDRESS], struct err *err)
{
    struct sockaddr_un name;
    int one = 1, fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    snprintf(address, LAST_WORDS_ADDRESS, "lepton-%016llx", (unsigned long long)clock_entropy());
    socklen_t bytes = make_address(&name, address);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &one, sizeof(one)) != 0 ||
        bind(fd, (const struct sockaddr *)&name, bytes) != 0) {
        err_set(err, "no socket for last words: %s", strerror(errno));
        if (fd >= 0)
            close(fd);
        return -1;
    }
    return fd;
}

static bool from_ourselves(struct msghdr *m)
{
    struct cmsghdr *c = CMSG_FIRSTHDR(m);
    struct ucred who;
    if (!c || c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_CREDENTIALS)
        return false;
    memcpy(&who, CMSG_DATA(c), sizeof(who));
    return who.uid == geteuid();
}

static bool known(const char *word)
{
    for (size_t i = 0; i < ARRAY_LEN(signals); i++)
        if (signals[i].fatal && strcmp(signals[i].name, word) == 0)
            return true;
    return strcmp(word, "out of memory") == 0 || strcmp(word, "exit 70") == 0 || strcmp(word, "exit 71") == 0;
}

bool last_words_heard(int fd, char out[LAST_WORDS_MOST])
{
    char room[CMSG_SPACE(sizeof(struct ucred))];
    for (;;) {
        struct iovec text = {.iov_base = out, .iov_len = LAST_WORDS_MOST - 1};
        struct msghdr m = {
            .msg_iov = &text, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof(room)};
        ssize_t n = recvmsg(fd, &m, MSG_CMSG_CLOEXEC);
        if (n < 0 && errno == EINTR)
            continue;
        out[n > 0 ? n : 0] = '\0';
        if (n < 0)
            return false;
        if (from_ourselves(&m) && !(m.msg_flags & MSG_TRUNC) && known(out))
            return true;
    }
}

/* ---- who may die ---- */
void last_words_say(const char *word)
{
    int saved = errno;
    ssize_t n = words_fd < 0 ? 0 : send(words_fd, word, strlen(word), MSG_DONTWAIT | MSG_NOSIGNAL);
    (void)n; /* nobody listens any more */
    errno = saved;
}

/* Says it, and lets the signal do what it would have done: it is pending again when this returns. */
static void on_fatal(int number)
{
    for (size_t i = 0; i < ARRAY_LEN(signals); i++)
        if (signals[i].number == number) {
            last_words_say(signals[i].name);
            sigaction(number, &before[i], NULL);
        }
    raise(number);
}

void last_words_open(const char *address)
{
    struct sockaddr_un name;
    if (address[0] == '\0' || strlen(address) >= LAST_WORDS_ADDRESS)
        return;
    socklen_t bytes = make_address(&name, address);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (const struct sockaddr *)&name, bytes) != 0) {
        if (fd >= 0)
            close(fd); /* another host, or who listened is gone */
        return;
    }
    words_fd = fd;
    say_why = last_words_say;
    struct sigaction action = {.sa_handler = on_fatal, .sa_flags = SA_ONSTACK};
    for (size_t i = 0; i < ARRAY_LEN(signals); i++)
        if (signals[i].fatal)
            sigaction(signals[i].number, &action, &before[i]);
}
