/*
 * A writer at random places of a large table, as RandomAccess (GUPS) is: nearly every update is to another page.
 *
 *   gups DIR [--mib M] [--threads T] [--work N] [--huge]
 *
 * A table of M MiB (default 512) is updated N times a thousand by each of T threads (default 2) in each round, see bench.h. Each
 * thread has a part of the table for itself. At the end all words of a part together must be what all updates of it were together.
 */
#include "bench.h"

static size_t words_each;
static long threads, work;
static uint64_t *table, states[BENCH_MOST], sums[BENCH_MOST];

static void update(size_t part) {
    uint64_t *words = table + part * words_each, state = states[part], sum = 0;
    for (long i = 0; i < work * 1000; i++) {
        uint64_t random = random_next(&state);
        words[random % words_each] ^= random;
        sum ^= random;
    }
    states[part] = state;
    sums[part] ^= sum;
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    size_t bytes = (size_t)guest_option(argc, argv, "mib", 512) << 20;
    threads = guest_option(argc, argv, "threads", 2);
    work = guest_option(argc, argv, "work", 1000);
    CHECK(threads >= 1, "at least one thread");
    for (size_t i = 0; i < BENCH_MOST; i++) states[i] = i;
    words_each = bytes / sizeof *table / (size_t)threads;
    table = bench_memory(bytes, guest_option(argc, argv, "huge", 0));
    bench_rounds_by(threads, update);
    for (size_t part = 0; part < (size_t)threads; part++) {
        for (size_t i = 0; i < words_each; i++) sums[part] ^= table[part * words_each + i];
        CHECK(sums[part] == 0, "a word of part %zu was changed", part);
    }
    guest_ok();
}
