#include "tools/process.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/clock.h"

#define LAST_WORDS_BYTES 4096

/* The child's side between fork and exec; writes errno to `report` when the exec fails. */
static _Noreturn void run_child(char *const argv[], int in, int out, int report, pid_t parent)
{
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent)
        _exit(127); /* the parent died before the line above */
    dup2(in, STDIN_FILENO);
    if (out >= 0) {
        dup2(out, STDOUT_FILENO);
        dup2(out, STDERR_FILENO);
    }
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL); /* as a program expects it, whatever we do */
    execvp(argv[0], argv);
    int code = errno;
    ssize_t n = write(report, &code, sizeof(code));
    (void)n;
    _exit(127);
}

/* What a program says last matters most when the disk is full, so it has room from the start. */
static void reserve_last_words(struct process *p, int out)
{
    off_t end = lseek(out, 0, SEEK_END);
    if (end >= 0 && fallocate(out, FALLOC_FL_KEEP_SIZE, end, LAST_WORDS_BYTES) != 0 &&
        (errno == ENOSPC || errno == EDQUOT))
        p->log_errno = errno;
}

int process_start(struct process *p, char *const argv[], const char *log_path, struct err *err)
{
    int result = -1, in = -1, out = -1, report[2] = {-1, -1}, code = 0;
    *p = (struct process){0};
    /* Whoever started us may have ignored SIGCHLD (it is inherited): a child's status would then be lost, and
     * its death look like success. */
    signal(SIGCHLD, SIG_DFL);
    in = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (log_path) {
        out = open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (out < 0) {
            err_set(err, "%s: %s", log_path, strerror(errno));
            goto out;
        }
        reserve_last_words(p, out);
    }
    if (in < 0 || pipe2(report, O_CLOEXEC)) {
        err_set(err, "%s: no descriptor: %s", argv[0], strerror(errno));
        goto out;
    }
    pid_t parent = getpid(), pid = fork();
    if (pid < 0) {
        err_set(err, "%s: no process: %s", argv[0], strerror(errno));
        goto out;
    }
    if (pid == 0)
        run_child(argv, in, out, report[1], parent);
    close(report[1]);
    report[1] = -1;
    if (read(report[0], &code, sizeof(code)) == (ssize_t)sizeof(code)) {
        waitpid(pid, NULL, 0);
        err_set(err, "%s cannot be started: %s", argv[0], strerror(code));
        goto out;
    }
    p->pid = pid;
    result = 0;
out:
    for (int i = 0; i < 2; i++)
        if (report[i] >= 0)
            close(report[i]);
    if (in >= 0)
        close(in);
    if (out >= 0)
        close(out);
    return result;
}

bool process_running(struct process *p)
{
    if (p->pid == 0)
        return false;
    int status = 0;
    pid_t got = waitpid(p->pid, &status, WNOHANG);
    if (got == 0)
        return true;
    p->status = status;
    p->pid = 0;
    return false;
}

bool process_wait(struct process *p, uint64_t timeout_ms)
{
    uint64_t deadline_ms = clock_now_ms() + timeout_ms;
    for (uint64_t nap_ms = 1; process_running(p); nap_ms = nap_ms < 20 ? nap_ms * 2 : 20) {
        if (clock_now_ms() >= deadline_ms)
            return false;
        clock_sleep_ms(nap_ms);
    }
    return true;
}

void process_signal(const struct process *p, int signal_number)
{
    if (p->pid)
        kill(p->pid, signal_number);
}

void process_stop(struct process *p, int first, uint64_t patience_ms)
{
    pid_t group = p->pid;
    process_signal(p, first);
    if (!process_wait(p, patience_ms) && first != SIGTERM) {
        process_signal(p, SIGTERM);
        process_wait(p, 3000);
    }
    if (group) {
        kill(-group, SIGKILL); /* also what the child may have left behind in its group */
        process_wait(p, 3000);
    }
}

int process_exit_code(const struct process *p)
{
    return WIFSIGNALED(p->status) ? 128 + WTERMSIG(p->status) : WEXITSTATUS(p->status);
}

void process_last_words(const struct process *p, const char *log_path, struct err *err)
{
    char tail[300] = "", line[300], failed[200];
    bool worker = false;
    FILE *f = fopen(log_path, "r");
    while (f && fgets(line, sizeof(line), f)) {
        bool workers = strstr(line, " error worker ") != NULL;
        if (workers || !worker)
            memcpy(tail, line, sizeof(tail));
        worker |= workers;
    }
    if (f)
        fclose(f);
    tail[strcspn(tail, "\n")] = '\0';
    snprintf(failed, sizeof(failed), "%s", err->message);
    if (p->log_errno)
        err_set(err, "%s; %s: %s", failed, log_path, strerror(p->log_errno));
    else if (tail[0])
        err_set(err, "%s; its last words: %s", failed, tail);
    else
        err_set(err, "%s; %s is empty: is there room for it?", failed, log_path);
}

char *process_sibling(const char *name)
{
    char self[4096];
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
    if (n <= 0)
        return xstrdup(name);
    self[n] = '\0';
    char *slash = strrchr(self, '/');
    *slash = '\0';
    return xasprintf("%s/%s", self, name);
}

bool process_on_path(const char *name)
{
    const char *path = getenv("PATH");
    bool found = false;
    char *copy = xstrdup(path ? path : ""), *rest = copy, *directory;
    while (!found && (directory = strsep(&rest, ":"))) {
        char *full = xasprintf("%s/%s", *directory ? directory : ".", name);
        found = access(full, X_OK) == 0;
        free(full);
    }
    free(copy);
    return found;
}
