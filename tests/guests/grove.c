/*
 * A tree of processes of one size, for benches.
 *
 *   grove DIR [--processes N] [--mib M] [--once-mib K] [--fork-only]
 *
 * N processes (default 100), the root among them, hold M MiB of random pages each (default 10). On SIGUSR1 each overwrites K MiB of
 * them (default 1), in order and round, and the root counts one step more. At the end every page of all is compared.
 *
 * With --fork-only it says in DIR/say.ms how many milliseconds it takes to fork N children and for each to get M MiB and touch
 * every page of them, and ends.
 */
#include "tree.h"

static size_t pages, once;
static struct pattern memory;
static size_t cursor;
static volatile sig_atomic_t asked;
static struct worker *workers;

static void on_usr1(int number) {
    (void)number;
    asked++;
}

static void grow(int number) {
    memory = pattern_make(pages, (uint64_t)number + 1);
    for (size_t page = 0; page < pages; page++) pattern_write(&memory, page);
}

static void overwrite(void) {
    for (size_t i = 0; i < once; i++) {
        pattern_write(&memory, cursor);
        cursor = (cursor + 1) % pages;
    }
}

static void body(int number) {
    /* What is for the root alone. */
    for (int i = 1; i < number; i++) {
        MUST(close(workers[i].orders));
        MUST(close(workers[i].answers));
    }
    grow(number);
    worker_answer();
    while (worker_order()) {
        overwrite();
        worker_answer();
    }
    pattern_check(&memory, "process", number);
    _exit(0);
}

static void touch(int unused) {
    (void)unused;
    volatile char *at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED, "mmap: %s", strerror(errno));
    for (size_t page = 0; page < pages; page++) at[page * PAGE] = 1;
    worker_answer();
    worker_order();
    _exit(0);
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    long processes = guest_option(argc, argv, "processes", 100);
    pages = (size_t)guest_option(argc, argv, "mib", 10) * 256;
    once = (size_t)guest_option(argc, argv, "once-mib", 1) * 256;
    bool fork_only = guest_option(argc, argv, "fork-only", 0);
    workers = calloc((size_t)processes, sizeof *workers);
    CHECK(workers, "no memory");
    struct sigaction action = {.sa_handler = on_usr1, .sa_flags = SA_RESTART};
    MUST(sigaction(SIGUSR1, &action, NULL));
    uint64_t start = guest_now_ns(CLOCK_MONOTONIC);
    if (fork_only) {
        struct worker_pipes pipes = worker_pipes(); /* one for all: what is measured is not the making of pipes */
        for (long i = 0; i < processes; i++)
            if (MUST(fork()) == 0) {
                worker_begin(&pipes);
                touch(0);
            }
        char ready;
        for (long i = 0; i < processes; i++) pipe_get(pipes.answers[0], &ready, 1);
        char ms[32];
        snprintf(ms, sizeof ms, "%.3f", (double)(guest_now_ns(CLOCK_MONOTONIC) - start) / 1e6);
        for (long i = 0; i < processes; i++) pipe_put(pipes.orders[1], "f", 1);
        for (long i = 0; i < processes; i++) MUST(wait(NULL));
        guest_link("say.ms", ms);
        guest_ok();
    }
    for (long i = 1; i < processes; i++) workers[i] = worker_start(body, (int)i);
    grow(0);
    int done = 0;
    guest_ready();
    while (!guest_finishing()) {
        for (; done < asked; done++) {
            overwrite();
            for (long i = 1; i < processes; i++) worker_step(&workers[i]);
        }
        guest_step();
        guest_sleep_ms_eintr(10);
    }
    pattern_check(&memory, "process", 0);
    for (long i = 1; i < processes; i++) worker_end(&workers[i], 0);
    guest_ok();
}
