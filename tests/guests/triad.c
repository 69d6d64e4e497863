/*
 * A streaming writer: a = b + s · c over large arrays, as STREAM's triad is; the arrays change their parts after each pass.
 *
 *   triad DIR [--mib M] [--threads T] [--work N] [--huge]
 *
 * Three arrays of M MiB together (default 768) are gone through N times by T threads (default 2) in each round, see bench.h. All
 * elements of an array stay equal to each other, which is checked at the end.
 */
#include "bench.h"
#include <pthread.h>

static size_t each;
static long threads, work;
static double *array[3];
static pthread_barrier_t barrier;
static volatile bool stopping;

static void pass(size_t from) {
    for (long i = 0; i < work; i++) {
        double *restrict a = array[i % 3] + from;
        const double *restrict b = array[(i + 1) % 3] + from, *restrict c = array[(i + 2) % 3] + from;
        for (size_t at = 0; at < each; at++) a[at] = b[at] + 0.25 * (c[at] - b[at]);
        pthread_barrier_wait(&barrier); /* as codes do that need their neighbours' results */
    }
}

static void *other(void *argument) {
    for (;;) {
        pthread_barrier_wait(&barrier);
        if (stopping) return NULL;
        pass((size_t)argument * each);
    }
}

static void all(void) {
    pthread_barrier_wait(&barrier);
    pass(0);
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    size_t bytes = ((size_t)guest_option(argc, argv, "mib", 768) << 20) / 3;
    threads = guest_option(argc, argv, "threads", 2);
    work = guest_option(argc, argv, "work", 10);
    CHECK(threads >= 1 && threads <= 64, "1 to 64 threads");
    each = bytes / sizeof(double) / (size_t)threads;
    size_t elements = each * (size_t)threads;
    for (int i = 0; i < 3; i++) {
        array[i] = bench_memory(bytes, guest_option(argc, argv, "huge", 0));
        for (size_t at = 0; at < elements; at++) array[i][at] = i + 1;
    }
    pthread_t thread[64];
    MUST0(pthread_barrier_init(&barrier, NULL, (unsigned)threads));
    for (long i = 1; i < threads; i++) MUST0(pthread_create(&thread[i], NULL, other, (void *)i));
    bench_rounds(all);
    stopping = true;
    pthread_barrier_wait(&barrier);
    for (long i = 1; i < threads; i++) MUST0(pthread_join(thread[i], NULL));
    for (int i = 0; i < 3; i++)
        for (size_t at = 1; at < elements; at++)
            CHECK(array[i][at] == array[i][0], "element %zu of array %d differs", at, i);
    guest_ok();
}
