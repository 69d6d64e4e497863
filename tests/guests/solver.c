/*
 * The main job: explicit 2-D heat equation on a rectangle, two grids of doubles, pthreads and barriers, as HPC codes do it.
 * The answer depends on --mib and the number of steps only, to the bit: not on the threads, not on when they run.
 *
 *   solver [--mib M] [--threads T] [--steps N] [--progress] [--dir DIR [--hold]]
 *
 * --mib is the size of both grids together (default 256); with --dir it also speaks the protocol of guest.h: it is ready after
 * the first step, counts steps, and gives "ok" as the verdict (the answer is what the test compares). Told to finish, it ends
 * early, and says `steps` and how many it took. The last line on standard output is `answer` and 16 hexadecimal digits. With
 * --hold all steps but the first are the one round of bench.h.
 */
#include "bench.h"
#include <pthread.h>

static size_t rows, columns;
static long steps = 2000, threads = 2;
/* The last step. Written by the first thread between two barriers, for the one after the next. */
static volatile long last;
static double *grid[2];
static uint64_t *row_hash;
static pthread_barrier_t barrier;
static bool progress, protocol, hold;
static uint64_t begun;

static double initial(size_t row, size_t column) {
    uint64_t state = row * 1000003u + column;
    return (double)(random_next(&state) >> 40) / 1024.0;
}

static void first_touch(size_t from, size_t to) {
    for (size_t row = from; row < to; row++)
        for (size_t column = 0; column < columns; column++)
            grid[0][row * columns + column] = grid[1][row * columns + column] = initial(row, column);
}

/* Five-point stencil of the rows from..to; the rim stays as it is and feeds the inside for ever. */
static void relax(const double *restrict old, double *restrict new, size_t from, size_t to) {
    for (size_t row = from; row < to; row++) {
        if (row == 0 || row == rows - 1) continue;
        const double *here = old + row * columns, *above = here - columns, *below = here + columns;
        double *out = new + row * columns;
        for (size_t column = 1; column + 1 < columns; column++)
            out[column] = here[column] +
                          0.2 * (above[column] + below[column] + here[column - 1] + here[column + 1] - 4.0 * here[column]);
    }
}

static void hash_rows(const double *last, size_t from, size_t to) {
    for (size_t row = from; row < to; row++) {
        uint64_t hash = 0xcbf29ce484222325u;
        for (size_t column = 0; column < columns; column++) {
            uint64_t bits;
            memcpy(&bits, last + row * columns + column, sizeof bits);
            hash = (hash ^ bits) * 0x100000001b3u;
            hash ^= hash >> 29;
        }
        row_hash[row] = hash;
    }
}

static void show(long step) {
    if (progress && (step % 100 == 0 || step == steps)) fprintf(stderr, "step %ld/%ld\n", step, steps);
    if (!protocol) return;
    guest_step();
    if (step == 1 && hold) {
        (void)bench_next();
        begun = guest_now_ns(CLOCK_MONOTONIC);
    } else if (step == 1) {
        guest_ready();
    }
    if (step == steps && hold) bench_say("ns", guest_now_ns(CLOCK_MONOTONIC) - begun);
    if (!hold && step + 1 < last && guest_finishing()) last = step + 1;
}

static void *work(void *argument) {
    size_t index = (size_t)argument, each = (rows + (size_t)threads - 1) / (size_t)threads;
    size_t from = index * each < rows ? index * each : rows, to = from + each < rows ? from + each : rows;
    char name[16];
    snprintf(name, sizeof name, "solver-%zu", index % 1000);
    pthread_setname_np(pthread_self(), name);
    first_touch(from, to);
    pthread_barrier_wait(&barrier);
    for (long step = 1; step <= last; step++) {
        relax(grid[(step - 1) & 1], grid[step & 1], from, to);
        pthread_barrier_wait(&barrier);
        if (index == 0) show(step);
    }
    hash_rows(grid[last & 1], from, to);
    return NULL;
}

int main(int argc, char **argv) {
    long mib = guest_option(argc, argv, "mib", 256);
    threads = guest_option(argc, argv, "threads", 2);
    steps = guest_option(argc, argv, "steps", steps);
    last = steps;
    progress = guest_option(argc, argv, "progress", 0) || isatty(2);
    for (int i = 1; i + 1 < argc; i++) {
        if (strcmp(argv[i], "--dir") != 0) continue;
        char *for_start[] = {argv[0], argv[i + 1], NULL};
        guest_start(2, for_start);
        protocol = true;
        hold = guest_option(argc, argv, "hold", 0);
    }
    if (mib < 1 || mib > 1 << 20 || threads < 1 || threads > 4096 || steps < 1) {
        fprintf(stderr, "usage: solver [--mib 1..1048576] [--threads 1..4096] [--steps 1..] [--progress] [--dir DIR]\n");
        return 2;
    }
    columns = mib >= 64 ? 4096 : 1024;
    rows = ((size_t)mib << 20) / 2 / sizeof(double) / columns;
    size_t bytes = rows * columns * sizeof(double);
    for (int i = 0; i < 2; i++) {
        grid[i] = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (grid[i] == MAP_FAILED) {
            fprintf(stderr, "solver: cannot have %zu bytes: %s\n", bytes, strerror(errno));
            return 1;
        }
    }
    row_hash = calloc(rows, sizeof *row_hash);
    pthread_barrier_init(&barrier, NULL, (unsigned)threads);
    pthread_t *thread = calloc((size_t)threads, sizeof *thread);
    for (size_t i = 1; i < (size_t)threads; i++)
        if (pthread_create(&thread[i], NULL, work, (void *)i) != 0) {
            fprintf(stderr, "solver: cannot start thread %zu\n", i);
            return 1;
        }
    work(NULL);
    for (size_t i = 1; i < (size_t)threads; i++) pthread_join(thread[i], NULL);
    uint64_t answer = 0;
    for (size_t row = 0; row < rows; row++) {
        answer ^= row_hash[row];
        answer = random_next(&answer);
    }
    if (last < steps) printf("steps %ld\n", last);
    printf("answer %016lx\n", answer);
    if (fflush(stdout) != 0) return 1;
    if (protocol) guest_ok();
    return 0;
}
