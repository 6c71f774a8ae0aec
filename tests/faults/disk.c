/* disk: a library for LD_PRELOAD that is a bad disk for the files below the directory DISK_DIR.
 *
 * DISK_FAULT names a file; its content is read at every call: "fsync" (fsync and fdatasync fail with EIO),
 * "full" (what would make a file longer, or any write with "full all", fails with ENOSPC), "write" (EIO),
 * each followed by a part of a file's name that must be in the path ("fsync -wal"); empty: all is well.
 *
 * DISK_IMAGE names a directory: in it lies what a disk would hold after a power cut: each file as it was when
 * it was last synchronised, from the synchronisation of its directory on. At the DISK_CUT-th synchronisation
 * (before it is done) the power fails: the process is killed. With DISK_TORN, a number, some of the 512-byte
 * sectors that were written but not synchronised got there all the same, chosen by that number. */
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SECTOR 512

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name, type, ...)         \
    static type (*real)(__VA_ARGS__); \
    if (!real)                        \
    real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

/* The path behind a descriptor, when it is below the directory. */
static int watched(int fd, char path[4096])
{
    const char *directory = getenv("DISK_DIR");
    char link[64];
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    ssize_t n = directory ? readlink(link, path, 4095) : -1;
    if (n <= 0)
        return 0;
    path[n] = 0;
    size_t bytes = strlen(directory);
    return strncmp(path, directory, bytes) == 0 && (path[bytes] == '/' || path[bytes] == 0) &&
           !strstr(path, "/log") && !strstr(path, ".lock") && !strstr(path, "-shm");
}

/* Does this call meet the fault? */
static int fails(const char *what, int fd)
{
    const char *file = getenv("DISK_FAULT");
    char text[128] = "", path[4096], kind[32] = "", part[64] = "";
    if (!file || !watched(fd, path))
        return 0;
    int f = open(file, O_RDONLY | O_CLOEXEC);
    if (f < 0)
        return 0;
    ssize_t n = read(f, text, sizeof(text) - 1);
    close(f);
    if (n <= 0)
        return 0;
    sscanf(text, "%31s %63s", kind, part);
    size_t bytes = strlen(path), end = strlen(part);
    return strcmp(kind, what) == 0 && end <= bytes && strcmp(path + bytes - end, part) == 0;
}

/* One more byte in DISK_FAULT.hits for each synchronisation that failed. */
static void count_hit(void)
{
    REAL(write, ssize_t, int, const void *, size_t);
    char path[4200];
    snprintf(path, sizeof(path), "%s.hits", getenv("DISK_FAULT"));
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd >= 0 && real(fd, "x", 1) == 1)
        close(fd);
}

/* ---- the image ---- */
static int image_of(const char *path, const char *suffix, char out[4200])
{
    const char *image = getenv("DISK_IMAGE");
    if (!image)
        return 0;
    snprintf(out, 4200, "%s/%s%s", image, strrchr(path, '/') + 1, suffix);
    return 1;
}

static size_t slurp(const char *path, uint8_t **out)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    size_t size = 0;
    *out = NULL;
    if (fd < 0 || fstat(fd, &st) != 0)
        goto out;
    *out = calloc(1, (size_t)st.st_size + SECTOR);
    ssize_t n = read(fd, *out, (size_t)st.st_size);
    size = n > 0 ? (size_t)n : 0;
out:
    if (fd >= 0)
        close(fd);
    return size;
}

static void spill(const char *path, const uint8_t *data, size_t size)
{
    REAL(write, ssize_t, int, const void *, size_t);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    for (size_t at = 0; fd >= 0 && at < size;) {
        ssize_t n = real(fd, data + at, size - at);
        if (n <= 0)
            break;
        at += (size_t)n;
    }
    close(fd);
}

/* Sectors that were on their way may have got there, each by itself. */
static void tear(const char *path, const char *image, unsigned seed)
{
    uint8_t *now, *then, *out;
    size_t size = slurp(path, &now), old = slurp(image, &then), most = size > old ? size : old;
    if (now && then) {
        out = calloc(1, most + SECTOR);
        memcpy(out, then, old);
        size_t end = old;
        for (size_t at = 0; at < size; at += SECTOR) {
            size_t n = size - at < SECTOR ? size - at : SECTOR;
            if (rand_r(&seed) % 2)
                continue;
            memcpy(out + at, now + at, n);
            end = at + n > end ? at + n : end;
        }
        spill(image, out, end);
        free(out);
    }
    free(now);
    free(then);
}

/* The power fails: of each file the image is what is left; those whose names were never synchronised are
 * gone. */
static void cut(void)
{
    const char *torn = getenv("DISK_TORN"), *directory = getenv("DISK_DIR"), *image = getenv("DISK_IMAGE");
    DIR *dir = opendir(image);
    struct dirent *entry;
    unsigned seed = torn ? (unsigned)atoi(torn) : 0;
    while (dir && (entry = readdir(dir))) {
        char path[4096], copy[4200];
        size_t bytes = strlen(entry->d_name);
        snprintf(copy, sizeof(copy), "%s/%s", image, entry->d_name);
        snprintf(path, sizeof(path), "%s/%s", directory, entry->d_name);
        if (entry->d_name[0] == '.')
            continue;
        if (bytes > 5 && strcmp(entry->d_name + bytes - 5, ".part") == 0)
            unlink(copy);
        else if (torn)
            tear(path, copy, seed++);
    }
    raise(SIGKILL);
}

/* Names that were removed are gone once the directory is synchronised; until then they may come back. */
static void forget_removed(const char *directory, const char *image)
{
    DIR *dir = opendir(image);
    struct dirent *entry;
    while (dir && (entry = readdir(dir))) {
        char path[4200], copy[4200];
        size_t bytes = strlen(entry->d_name);
        snprintf(path, sizeof(path), "%s/%s", directory, entry->d_name);
        snprintf(copy, sizeof(copy), "%s/%s", image, entry->d_name);
        if (entry->d_name[0] != '.' && (bytes < 5 || strcmp(entry->d_name + bytes - 5, ".part") != 0) &&
            access(path, F_OK) != 0)
            unlink(copy);
    }
    if (dir)
        closedir(dir);
}

/* What was synchronised is on the disk, though perhaps without a name yet (".part"). */
static void note(int fd)
{
    char path[4096], copy[4200], named[4200];
    struct stat st;
    static long count;
    uint8_t *data;
    if (!watched(fd, path) || !image_of(path, ".part", copy))
        return;
    pthread_mutex_lock(&mutex);
    if (getenv("DISK_CUT") && ++count == atol(getenv("DISK_CUT")))
        cut();
    if (fstat(fd, &st) == 0 && S_ISDIR(st.st_mode)) {
        const char *image = getenv("DISK_IMAGE");
        DIR *dir = opendir(path);
        struct dirent *entry;
        while (dir && (entry = readdir(dir))) {
            struct stat there;
            snprintf(copy, sizeof(copy), "%s/%s.part", image, entry->d_name);
            snprintf(named, sizeof(named), "%s/%s", image, entry->d_name);
            if (!strstr(entry->d_name, "state.db") || strstr(entry->d_name, ".lock") ||
                strstr(entry->d_name, "-shm") || stat(named, &there) == 0)
                continue;
            if (rename(copy, named) != 0) /* named, and nothing in it was synchronised */
                spill(named, (const uint8_t *)"", 0);
        }
        if (dir)
            closedir(dir);
        forget_removed(path, image);
    } else {
        size_t size = slurp(path, &data);
        image_of(path, "", named);
        spill(stat(named, &st) == 0 ? named : copy, data, size);
        free(data);
    }
    pthread_mutex_unlock(&mutex);
}

/* ---- the calls ---- */
/* Before a synchronisation: -1 when it fails. */
static int synchronise(int fd)
{
    if (!fails("fsync", fd)) {
        note(fd);
        return 0;
    }
    count_hit();
    errno = EIO;
    return -1;
}

int fsync(int fd)
{
    REAL(fsync, int, int);
    return synchronise(fd) ? -1 : real(fd);
}

int fdatasync(int fd)
{
    REAL(fdatasync, int, int);
    return synchronise(fd) ? -1 : real(fd);
}

static int refuses(int fd)
{
    errno = fails("full", fd) ? ENOSPC : fails("write", fd) ? EIO : 0;
    return errno != 0;
}

ssize_t pwrite64(int fd, const void *data, size_t bytes, off64_t at)
{
    REAL(pwrite64, ssize_t, int, const void *, size_t, off64_t);
    return refuses(fd) ? -1 : real(fd, data, bytes, at);
}

ssize_t pwrite(int fd, const void *data, size_t bytes, off_t at)
{
    REAL(pwrite, ssize_t, int, const void *, size_t, off_t);
    return refuses(fd) ? -1 : real(fd, data, bytes, at);
}

ssize_t write(int fd, const void *data, size_t bytes)
{
    REAL(write, ssize_t, int, const void *, size_t);
    int before = errno;
    if (refuses(fd))
        return -1;
    errno = before;
    return real(fd, data, bytes);
}
