#include "worker/model/map_file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int map_file(const char *path, const char *what, const void **mapping, uint64_t *size, struct err *err)
{
    struct stat st;
    int rc = -1;
    *mapping = NULL;
    *size = 0;
    /* O_NONBLOCK: opening a FIFO by mistake must not hang. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return err_set(err, "%s: %s", path, strerror(errno));
    if (fstat(fd, &st) != 0) {
        err_set(err, "%s: %s", path, strerror(errno));
        goto out;
    }
    if (!S_ISREG(st.st_mode)) {
        err_set(err, "%s: expected %s, this is no regular file", path, what);
        goto out;
    }
    if (st.st_size > 0) {
        void *memory = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (memory == MAP_FAILED) {
            err_set(err, "%s: cannot map %llu bytes: %s", path, (unsigned long long)st.st_size,
                    strerror(errno));
            goto out;
        }
        *mapping = memory;
        *size = (uint64_t)st.st_size;
    }
    rc = 0;
out:
    close(fd);
    return rc;
}

void map_file_release(const void *mapping, uint64_t size)
{
    if (mapping)
        munmap((void *)(uintptr_t)mapping, size);
}
