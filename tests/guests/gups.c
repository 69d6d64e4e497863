/*
 * A writer at random places of a large table, as RandomAccess (GUPS) is: next to every update is to another page.
 *
 *   gups DIR [--mib M] [--threads T] [--work N] [--huge]
 *
 * A table of M MiB (default 512) is updated N times a thousand by each of T threads (default 2) in each round, see bench.h. Each
 * thread has a part of the table for itself, and the same updates undo each other when they are made twice: at the end the table is
 * what it was.
 */
#include "bench.h"
#include <pthread.h>

static size_t words_each;
static long threads, work;
static uint64_t *table;
static pthread_barrier_t barrier;
static volatile bool stopping;

static void update(uint64_t *part, uint64_t seed) {
    uint64_t state = seed;
    for (long i = 0; i < work * 1000; i++) {
        uint64_t random = random_next(&state);
        part[random % words_each] ^= random;
    }
}

static void *other(void *argument) {
    for (;;) {
        pthread_barrier_wait(&barrier);
        if (stopping) return NULL;
        update(table + (size_t)argument * words_each, (size_t)argument);
        pthread_barrier_wait(&barrier);
    }
}

static void all(void) {
    pthread_barrier_wait(&barrier);
    update(table, 0);
    pthread_barrier_wait(&barrier);
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    size_t bytes = (size_t)guest_option(argc, argv, "mib", 512) << 20;
    threads = guest_option(argc, argv, "threads", 2);
    work = guest_option(argc, argv, "work", 1000);
    words_each = bytes / sizeof *table / (size_t)threads;
    table = bench_memory(bytes, guest_option(argc, argv, "huge", 0));
    pthread_t thread[64];
    CHECK(threads >= 1 && threads <= 64, "1 to 64 threads");
    MUST0(pthread_barrier_init(&barrier, NULL, (unsigned)threads));
    for (long i = 1; i < threads; i++) MUST0(pthread_create(&thread[i], NULL, other, (void *)i));
    bench_rounds(all);
    if (guest_steps % 2) all();
    stopping = true;
    pthread_barrier_wait(&barrier);
    for (long i = 1; i < threads; i++) MUST0(pthread_join(thread[i], NULL));
    for (size_t i = 0; i < words_each * (size_t)threads; i++) CHECK(table[i] == 0, "word %zu was changed", i);
    guest_ok();
}
