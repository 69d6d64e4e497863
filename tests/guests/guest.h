/*
 * What all guests share: how a test talks with a guest, page patterns, and checks.
 *
 * A guest is started as `guest DIR [options]` and is controlled through DIR alone, by path. It keeps no descriptor and no
 * mapping for control, so that killing and restoring it any number of times cannot break the conversation:
 *
 *   guest to test    DIR/ready      symbolic link, target = the guest's pid: the state under test is set up
 *                    DIR/step       an empty file whose size is the number of steps taken so far
 *                    DIR/result     symbolic link, target = "ok" or "FAIL: what is wrong"; the guest exits right after (0 or 1)
 *                    DIR/skipped.X  symbolic link, target = why the part X cannot be had on this machine
 *                    DIR/say.X      symbolic link, target = something that only the guest knows (an address)
 *   test to guest    DIR/finish     exists: check everything, write the result, exit
 *                    DIR/go.N       exists: do action N (guests that act on demand)
 *
 * Links and sizes are made by one system call each: a reader never sees half of one, and a checkpoint never catches one open.
 * The number of steps is in the guest's memory, so after a restore it goes on from the checkpoint's value.
 */
#ifndef GUEST_H
#define GUEST_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL
#define UNUSED __attribute__((unused))
#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))

static char guest_dir[PATH_MAX - 64];
static uint64_t guest_steps;

UNUSED static const char *guest_path(char out[static PATH_MAX], const char *name) {
    int length = snprintf(out, PATH_MAX, "%s/%s", guest_dir, name);
    if (length >= PATH_MAX) abort();
    return out;
}

static void guest_link(const char *name, const char *target) {
    char path[PATH_MAX];
    (void)!symlink(target[0] ? target : "-", guest_path(path, name));
}

/* Ends the guest with a verdict. The first verdict stands. */
__attribute__((noreturn, format(printf, 1, 2))) UNUSED static void guest_fail(const char *format, ...) {
    char what[1024] = "FAIL: ";
    va_list args;
    va_start(args, format);
    vsnprintf(what + 6, sizeof what - 6, format, args);
    va_end(args);
    guest_link("result", what);
    _exit(1);
}

#define CHECK(condition, ...)                                                                                                  \
    do {                                                                                                                       \
        if (!(condition)) guest_fail(__VA_ARGS__);                                                                             \
    } while (0)

/* A call that sets the state up: it must not fail, and the reason is errno. */
#define MUST(call)                                                                                                             \
    ({                                                                                                                         \
        __typeof__(call) must_result = (call);                                                                                 \
        if ((long)must_result == -1L) guest_fail("%s:%d: %s: %s", __FILE_NAME__, __LINE__, #call, strerror(errno));            \
        must_result;                                                                                                           \
    })

/* A pthread call: it returns the error instead of setting errno. */
#define MUST0(call)                                                                                                            \
    do {                                                                                                                       \
        int must_error = (call);                                                                                               \
        if (must_error) guest_fail("%s:%d: %s: %s", __FILE_NAME__, __LINE__, #call, strerror(must_error));                     \
    } while (0)

UNUSED static void guest_start(int argc, char **argv) {
    if (argc < 2 || !realpath(argv[1], guest_dir)) {
        fprintf(stderr, "usage: %s DIR [options]; DIR must exist (the protocol is described in guest.h)\n", argv[0]);
        exit(2);
    }
    /* Where a shell started the tests in the background, it has them ignored. */
    signal(SIGINT, SIG_DFL);
    signal(SIGQUIT, SIG_DFL);
    char path[PATH_MAX];
    int step = MUST(open(guest_path(path, "step"), O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0666));
    MUST(fchmod(step, 0666)); /* a guest that gives up its privileges still counts */
    MUST(close(step));
}

UNUSED static void guest_ready(void) {
    char pid[32];
    snprintf(pid, sizeof pid, "%d", getpid());
    guest_link("ready", pid);
}

__attribute__((format(printf, 2, 3))) UNUSED static void guest_skip(const char *part, const char *format, ...) {
    char name[64], why[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(why, sizeof why, format, args);
    va_end(args);
    snprintf(name, sizeof name, "skipped.%s", part);
    guest_link(name, why);
}

UNUSED static bool guest_has(const char *name) {
    char path[PATH_MAX];
    return access(guest_path(path, name), F_OK) == 0;
}

UNUSED static bool guest_finishing(void) { return guest_has("finish"); }

/* Counts a step and shows the count. */
UNUSED static void guest_step(void) {
    char path[PATH_MAX];
    guest_steps++;
    if (truncate(guest_path(path, "step"), (off_t)guest_steps) != 0) guest_fail("step file: %s", strerror(errno));
}

UNUSED static void guest_sleep_ms(long ms) {
    struct timespec time = {ms / 1000, ms % 1000 * 1000000};
    if (nanosleep(&time, NULL) != 0) guest_fail("nanosleep of %ld ms: %s", ms, strerror(errno));
}

/* For guests whose own signals may well interrupt the sleep. */
UNUSED static void guest_sleep_ms_eintr(long ms) {
    struct timespec time = {ms / 1000, ms % 1000 * 1000000};
    while (nanosleep(&time, &time) != 0) CHECK(errno == EINTR, "nanosleep of %ld ms: %s", ms, strerror(errno));
}

__attribute__((noreturn)) UNUSED static void guest_ok(void) {
    guest_link("result", "ok");
    exit(0);
}

UNUSED static uint64_t guest_now_ns(clockid_t clock) {
    struct timespec time;
    MUST(clock_gettime(clock, &time));
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

/* The value of `--name VALUE` or `otherwise`; `--name` alone counts as 1. */
UNUSED static long guest_option(int argc, char **argv, const char *name, long otherwise) {
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "--", 2) != 0 || strcmp(argv[i] + 2, name) != 0) continue;
        char *end = NULL;
        long value = i + 1 < argc ? strtol(argv[i + 1], &end, 0) : 1;
        return end && end != argv[i + 1] && !*end ? value : 1;
    }
    return otherwise;
}

/* splitmix64: a good 64-bit sequence from any seed; the state is one word, so it travels with the checkpoint. */
UNUSED static uint64_t random_next(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

UNUSED static uint64_t random_below(uint64_t *state, uint64_t bound) { return random_next(state) % bound; }

/* Fills a page with what belongs to its seed. Seed 0 means a page of zeroes. */
UNUSED static void page_fill(void *page, uint64_t seed) {
    uint64_t *word = page, state = seed;
    for (size_t i = 0; i < PAGE / 8; i++) word[i] = seed ? random_next(&state) : 0;
}

/* The offset in the page of the first byte that differs from what belongs to the seed, or -1. */
UNUSED static long page_difference(const void *page, uint64_t seed) {
    const uint64_t *word = page;
    uint64_t state = seed;
    for (size_t i = 0; i < PAGE / 8; i++)
        if (word[i] != (seed ? random_next(&state) : 0)) return (long)(i * 8);
    return -1;
}

/* Reads a whole (proc) file without malloc and stdio; returns its length, at most `size - 1`, zero-terminated. */
UNUSED static size_t guest_read_file(const char *path, char *buffer, size_t size) {
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) guest_fail("open %s: %s", path, strerror(errno));
    size_t length = 0;
    for (;;) {
        ssize_t got = read(file, buffer + length, size - 1 - length);
        if (got < 0) guest_fail("read %s: %s", path, strerror(errno));
        if (got == 0) break;
        length += (size_t)got;
    }
    buffer[length] = 0;
    close(file);
    return length;
}

#endif
