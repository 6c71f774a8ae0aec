/* memory: a library for LD_PRELOAD that lets one allocation of a worker fail, or end it: the one that a
 * certain request causes. The file that MEMORY names holds "HOW BYTES": `null` returns NULL, `abort` and
 * `segv` raise the signal, for each malloc, calloc and realloc of exactly so many bytes that the program
 * itself asks for; without the file nothing happens. What libraries allocate for themselves is left alone:
 * how they bear it is not what is tested. */
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LEAST 4096 /* below this nothing ever fails: the file need not be read */

extern void *__libc_malloc(size_t bytes);
extern void *__libc_calloc(size_t count, size_t bytes);
extern void *__libc_realloc(void *old, size_t bytes);
/* A sanitizer's, in programs that have one. */
extern void *__interceptor_malloc(size_t bytes) __attribute__((weak));
extern void *__interceptor_calloc(size_t count, size_t bytes) __attribute__((weak));
extern void *__interceptor_realloc(void *old, size_t bytes) __attribute__((weak));

static bool fails(size_t bytes, const void *caller)
{
    char text[64] = "", how[16] = "";
    unsigned long which = 0;
    Dl_info who;
    const char *path = bytes >= LEAST ? getenv("MEMORY") : NULL;
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return false;
    ssize_t n = read(fd, text, sizeof(text) - 1);
    close(fd);
    if (n <= 0 || sscanf(text, "%15s %lu", how, &which) != 2 || bytes != which)
        return false;
    if (!dladdr(caller, &who) || !who.dli_fname || !strstr(who.dli_fname, "lepton-worker"))
        return false;
    if (strcmp(how, "abort") == 0)
        raise(SIGABRT);
    if (strcmp(how, "segv") == 0)
        raise(SIGSEGV);
    return strcmp(how, "null") == 0;
}

void *malloc(size_t bytes)
{
    if (fails(bytes, __builtin_return_address(0)))
        return NULL;
    return __interceptor_malloc ? __interceptor_malloc(bytes) : __libc_malloc(bytes);
}

void *calloc(size_t count, size_t bytes)
{
    size_t all;
    bool over = __builtin_mul_overflow(count, bytes, &all);
    if (!over && fails(all, __builtin_return_address(0)))
        return NULL;
    return __interceptor_calloc ? __interceptor_calloc(count, bytes) : __libc_calloc(count, bytes);
}

void *realloc(void *old, size_t bytes)
{
    if (fails(bytes, __builtin_return_address(0)))
        return NULL;
    return __interceptor_realloc ? __interceptor_realloc(old, bytes) : __libc_realloc(old, bytes);
}
