/*
 * A system-call-heavy job: the cheapest call there is, reads of a file that is in the page cache, and bytes through a pipe.
 *
 *   calls DIR [--work N]
 *
 * Each round (see bench.h) makes N times a thousand calls (default 1000) of each kind, and also says how many nanoseconds each kind
 * took: `getppid`, `pread`, `pipe`.
 */
#include "bench.h"
#include <sys/syscall.h>

static long work;
static int file, ends[2];

static void getppids(void) {
    for (long i = 0; i < work * 1000; i++) (void)syscall(SYS_getppid);
}

static void preads(void) {
    char buffer[64];
    for (long i = 0; i < work * 1000; i++) {
        ssize_t got = pread(file, buffer, sizeof buffer, i % 64 * 64);
        CHECK(got == sizeof buffer, "pread gave %zd", got);
    }
}

static void pipes(void) {
    char byte = 0;
    for (long i = 0; i < work * 500; i++) {
        CHECK(write(ends[1], &(char){(char)i}, 1) == 1, "write to the pipe: %s", strerror(errno));
        CHECK(read(ends[0], &byte, 1) == 1 && byte == (char)i, "a byte was lost in the pipe");
    }
}

static void timed(const char *what, void (*calls)(void)) {
    uint64_t begun = guest_now_ns(CLOCK_MONOTONIC);
    calls();
    bench_say(what, guest_now_ns(CLOCK_MONOTONIC) - begun);
}

static void all(void) {
    timed("getppid", getppids);
    timed("pread", preads);
    timed("pipe", pipes);
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    work = guest_option(argc, argv, "work", 1000);
    char path[PATH_MAX], page[PAGE];
    memset(page, 'x', sizeof page);
    file = MUST(open(guest_path(path, "file"), O_CREAT | O_RDWR | O_CLOEXEC, 0600));
    CHECK(write(file, page, sizeof page) == sizeof page, "write: %s", strerror(errno));
    MUST(pipe(ends));
    bench_rounds(all);
    guest_ok();
}
