/*
 * A streaming writer: a = b + s · c over large arrays, as STREAM's triad is; the arrays change their parts after each pass.
 *
 *   triad DIR [--mib M] [--threads T] [--work N] [--huge]
 *
 * Three arrays of M MiB together (default 768) are gone through N times by T threads (default 2) in each round, see bench.h. All
 * elements of an array stay equal to each other, which is checked at the end.
 */
#include "bench.h"

static size_t each;
static long threads, work;
static double *array[3];

static void pass(size_t part) {
    size_t from = part * each;
    for (long i = 0; i < work; i++) {
        double *restrict a = array[i % 3] + from;
        const double *restrict b = array[(i + 1) % 3] + from, *restrict c = array[(i + 2) % 3] + from;
        for (size_t at = 0; at < each; at++) a[at] = b[at] + 0.25 * (c[at] - b[at]);
        pthread_barrier_wait(&bench_barrier); /* as codes do that need their neighbours' results */
    }
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    size_t bytes = ((size_t)guest_option(argc, argv, "mib", 768) << 20) / 3;
    threads = guest_option(argc, argv, "threads", 2);
    work = guest_option(argc, argv, "work", 10);
    CHECK(threads >= 1, "at least one thread");
    each = bytes / sizeof(double) / (size_t)threads;
    size_t elements = each * (size_t)threads;
    for (int i = 0; i < 3; i++) {
        array[i] = bench_memory(bytes, guest_option(argc, argv, "huge", 0));
        for (size_t at = 0; at < elements; at++) array[i][at] = i + 1;
    }
    bench_rounds_by(threads, pass);
    for (int i = 0; i < 3; i++)
        for (size_t at = 1; at < elements; at++)
            CHECK(array[i][at] == array[i][0], "element %zu of array %d differs", at, i);
    guest_ok();
}
