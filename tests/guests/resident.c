/*
 * A job that holds much memory and does next to nothing: it reads a little here and there, and sleeps.
 *
 *   resident DIR [--mib M] [--filled K] [--threads T] [--work N] [--sleeps S] [--huge]
 *
 * M MiB (default 4096) are all there; of every K MiB (default 16) one is not zero. In each round (see bench.h) it reads N million words
 * (default 10) at random places, then sleeps S times (default 500) for one millisecond; it also says how many nanoseconds the reading
 * took (`reads`), how many beyond its time each sleep took on average (`late`), and how much CPU time all of it took (`cpu`). T - 1 more
 * threads (T is 1 if not given) sleep all the time.
 */
#include "bench.h"
#include <pthread.h>

static size_t words;
static long work, sleeps;
static uint64_t *memory, sum;

static void round_of_reads(void) {
    uint64_t begun = guest_now_ns(CLOCK_MONOTONIC), cpu = guest_now_ns(CLOCK_PROCESS_CPUTIME_ID), state = 1, found = 0;
    for (long i = 0; i < work * 1000000; i++) found += memory[random_next(&state) % words];
    uint64_t read = guest_now_ns(CLOCK_MONOTONIC), late = 0;
    CHECK(sum == 0 || sum == found, "the memory has changed");
    sum = found;
    for (long i = 0; i < sleeps; i++) {
        uint64_t before = guest_now_ns(CLOCK_MONOTONIC);
        guest_sleep_ms_eintr(1);
        late += guest_now_ns(CLOCK_MONOTONIC) - before - 1000000;
    }
    bench_say("reads", read - begun);
    bench_say("late", sleeps ? late / (uint64_t)sleeps : 0);
    bench_say("cpu", guest_now_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu);
}

static void *sleeper(void *argument) {
    for (;;) pause();
    return argument;
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    size_t bytes = (size_t)guest_option(argc, argv, "mib", 4096) << 20;
    size_t filled = (size_t)guest_option(argc, argv, "filled", 16);
    long threads = guest_option(argc, argv, "threads", 1);
    work = guest_option(argc, argv, "work", 10);
    sleeps = guest_option(argc, argv, "sleeps", 500);
    memory = bench_memory(bytes, guest_option(argc, argv, "huge", 0));
    words = bytes / sizeof *memory;
    for (size_t at = 0; at < bytes; at += PAGE)
        if ((at >> 20) % filled == 0) page_fill((char *)memory + at, at + 1);
    for (long i = 1; i < threads; i++) {
        pthread_t thread;
        MUST0(pthread_create(&thread, NULL, sleeper, NULL));
    }
    bench_rounds(round_of_reads);
    for (size_t at = 0; at < bytes; at += PAGE)
        CHECK(page_difference((char *)memory + at, (at >> 20) % filled == 0 ? at + 1 : 0) < 0, "page %zu differs", at / PAGE);
    guest_ok();
}
