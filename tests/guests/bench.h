/*
 * What guests for benches share: work of a fixed size, of which the guest itself says how long it took.
 *
 * The guest sets its state up and says that it is ready. Then it does its work once for each go.N that it is told (N = 1, 2, …),
 * and says `say.ns.N`, the nanoseconds that this took, so that neither its start nor its end counts. Between two of them it sleeps.
 * Guests may say more of the work, as `say.NAME.N`.
 */
#ifndef BENCH_H
#define BENCH_H

#include "guest.h"
#include <pthread.h>
#include <sys/mman.h>

static unsigned bench_round;

/* Says a number of this round. */
UNUSED static void bench_say(const char *what, uint64_t number) {
    char name[64], value[32];
    snprintf(name, sizeof name, "say.%s.%u", what, bench_round);
    snprintf(value, sizeof value, "%lu", number);
    guest_link(name, value);
}

/* Waits until the next round is asked for; false once the guest shall finish. */
UNUSED static bool bench_next(void) {
    if (bench_round == 0) guest_ready();
    bench_round++;
    char name[16];
    snprintf(name, sizeof name, "go.%u", bench_round);
    while (!guest_has(name)) {
        if (guest_finishing()) return false;
        guest_sleep_ms_eintr(2);
    }
    return true;
}

/* Runs all rounds: each is one call of `work`. */
UNUSED static void bench_rounds(void (*work)(void)) {
    while (bench_next()) {
        uint64_t begun = guest_now_ns(CLOCK_MONOTONIC);
        work();
        bench_say("ns", guest_now_ns(CLOCK_MONOTONIC) - begun);
        guest_step();
    }
}

enum { BENCH_MOST = 64 };

UNUSED static pthread_barrier_t bench_barrier;
static void (*bench_part)(size_t part);
static volatile bool bench_stopping;

UNUSED static void bench_all(void) {
    pthread_barrier_wait(&bench_barrier);
    bench_part(0);
    pthread_barrier_wait(&bench_barrier);
}

UNUSED static void *bench_other(void *part) {
    for (;;) {
        pthread_barrier_wait(&bench_barrier);
        if (bench_stopping) return NULL;
        bench_part((size_t)part);
        pthread_barrier_wait(&bench_barrier);
    }
}

/* Runs all rounds: in each, every one of the threads does its part at the same time. Parts may wait for each other at bench_barrier. */
UNUSED static void bench_rounds_by(long threads, void (*part)(size_t part)) {
    pthread_t thread[BENCH_MOST];
    CHECK(threads >= 1 && threads <= BENCH_MOST, "1 to %d threads", BENCH_MOST);
    bench_part = part;
    MUST0(pthread_barrier_init(&bench_barrier, NULL, (unsigned)threads));
    for (long i = 1; i < threads; i++) MUST0(pthread_create(&thread[i], NULL, bench_other, (void *)i));
    bench_rounds(bench_all);
    bench_stopping = true;
    pthread_barrier_wait(&bench_barrier);
    for (long i = 1; i < threads; i++) MUST0(pthread_join(thread[i], NULL));
}

/* Memory with every page there; `huge` pages of 2 MiB where the kernel has them, or small ones only. */
UNUSED static void *bench_memory(size_t bytes, bool huge) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED, "cannot have %zu bytes: %s", bytes, strerror(errno));
    (void)madvise(memory, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE); /* without huge pages at all this fails */
    memset(memory, 0, bytes);
    return memory;
}

#endif
