/*
 * A job of random data that is overwritten at a given pace: for benches, and wherever a test needs any job that notices damage.
 *
 *   writer DIR [--mib M] [--rate R] [--once-mib N] [--threads T] [--steps N] [--filled K] [--huge] [--afresh]
 *
 * It holds M MiB of random pages (default 64) and overwrites R MiB of them a second (default 20; 0: none), at random, in
 * steps of 10 ms by T threads (default 1). On SIGUSR1 it overwrites N MiB of distinct pages (default 64) and counts one step more.
 * Of every K MiB only one is random at the start (default 1: all), the others are there and zero. Pages are small, or with --huge huge.
 * With --afresh a page is given back before it is overwritten on demand, so that each of them is a fault.
 * With --steps it finishes by itself after so many steps. At the end every page is compared with what was written last.
 */
#include "guest.h"
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>

struct share {
    char *pages;
    uint64_t *seed, rng;
    size_t count, cursor;
    pthread_t thread;
};

static long rate, once_mib, threads, steps;
static bool afresh;
static struct share *shares;
static volatile sig_atomic_t asked;
static pthread_barrier_t barrier;
static volatile bool stopping;
static int asked_now;

static void on_usr1(int number) {
    (void)number;
    asked++;
}

static void overwrite(struct share *share, size_t page) {
    share->seed[page] = random_next(&share->rng) | 1;
    page_fill(share->pages + page * PAGE, share->seed[page]);
}

/* Pages for a step of 10 ms, over all threads; the remainder is spread over the steps. */
static size_t pages_in_step(void) {
    uint64_t before = guest_steps * (uint64_t)rate * 256 / 100, after = (guest_steps + 1) * (uint64_t)rate * 256 / 100;
    return after - before;
}

static void step(struct share *share, size_t index) {
    size_t all = pages_in_step(), mine = all / (size_t)threads + (index < all % (size_t)threads);
    while (mine--) overwrite(share, random_below(&share->rng, share->count));
    for (int i = 0; i < asked_now; i++)
        for (size_t page = 0; page < (size_t)once_mib * 256 / (size_t)threads; page++) {
            if (afresh) MUST(madvise(share->pages + share->cursor * PAGE, PAGE, MADV_DONTNEED));
            overwrite(share, share->cursor);
            share->cursor = (share->cursor + 1) % share->count;
        }
}

static void *work(void *argument) {
    struct share *share = argument;
    for (;;) {
        pthread_barrier_wait(&barrier); /* a step begins */
        if (stopping) return NULL;
        step(share, (size_t)(share - shares));
        pthread_barrier_wait(&barrier); /* all have done their part of it */
    }
}

static void check(const struct share *share) {
    for (size_t page = 0; page < share->count; page++) {
        long differs = page_difference(share->pages + page * PAGE, share->seed[page]);
        CHECK(differs < 0, "page %zu of %zu (%p) differs at byte %ld after %lu steps", page, share->count,
              (void *)(share->pages + page * PAGE), differs, guest_steps);
    }
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    size_t pages = (size_t)guest_option(argc, argv, "mib", 64) * 256;
    rate = guest_option(argc, argv, "rate", 20);
    once_mib = guest_option(argc, argv, "once-mib", 64);
    threads = guest_option(argc, argv, "threads", 1);
    steps = guest_option(argc, argv, "steps", 0);
    afresh = guest_option(argc, argv, "afresh", 0);
    size_t filled = (size_t)guest_option(argc, argv, "filled", 1);
    int advice = guest_option(argc, argv, "huge", 0) ? MADV_HUGEPAGE : MADV_NOHUGEPAGE;
    struct sigaction action = {.sa_handler = on_usr1, .sa_flags = SA_RESTART};
    MUST(sigaction(SIGUSR1, &action, NULL));
    char *all = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint64_t *seeds = mmap(NULL, pages * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(all != MAP_FAILED && seeds != MAP_FAILED, "mmap: %s", strerror(errno));
    (void)madvise(all, pages * PAGE, advice); /* without huge pages at all this fails */
    shares = calloc((size_t)threads, sizeof *shares);
    MUST0(pthread_barrier_init(&barrier, NULL, (unsigned)threads));
    for (size_t i = 0; i < (size_t)threads; i++) {
        size_t each = pages / (size_t)threads;
        shares[i] = (struct share){.pages = all + i * each * PAGE, .seed = seeds + i * each, .rng = i + 1, .count = each};
        for (size_t page = 0; page < each; page++) {
            if ((i * each + page) / 256 % filled == 0)
                overwrite(&shares[i], page);
            else
                page_fill(shares[i].pages + page * PAGE, 0);
        }
        if (i > 0) MUST0(pthread_create(&shares[i].thread, NULL, work, &shares[i]));
    }
    int done = 0;
    guest_ready();
    while (!guest_finishing() && (steps == 0 || guest_steps < (uint64_t)steps)) {
        asked_now = asked - done;
        done += asked_now;
        pthread_barrier_wait(&barrier);
        step(&shares[0], 0);
        pthread_barrier_wait(&barrier);
        guest_step();
        guest_sleep_ms_eintr(10);
    }
    stopping = true;
    pthread_barrier_wait(&barrier);
    for (size_t i = 0; i < (size_t)threads; i++) {
        if (i > 0) MUST0(pthread_join(shares[i].thread, NULL));
        check(&shares[i]);
    }
    guest_ok();
}
