/* Loaded before the C library (LD_PRELOAD): each sync takes 5 ms more, and adds an octet to the file $SYNCS. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

static int slowly(const char *name, int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    int done = real(fd);
    const char *path = getenv("SYNCS");
    int count = path ? open(path, O_WRONLY | O_APPEND) : -1;
    if (count >= 0) {
        if (write(count, ".", 1) < 0) abort();
        close(count);
    }
    usleep(5000);
    return done;
}

int fsync(int fd) { return slowly("fsync", fd); }
int fdatasync(int fd) { return slowly("fdatasync", fd); }
