/*
 * An allocator-heavy job: mappings that come and go, and small and large blocks of the heap, by several threads.
 *
 *   churn DIR [--threads T] [--work N]
 *
 * In each round (see bench.h) each of T threads (default 4) does N times a thousand (default 10): give a block of the heap back and
 * get another of 16 bytes to 64 KiB, and with every 16th also unmap a mapping and map another of 16 to 256 KiB. Every new block is
 * written; what was written is checked before it is given back.
 */
#include "bench.h"
#include <pthread.h>

enum { BLOCKS = 512, MAPPINGS = 64 };

struct block {
    uint8_t *at;
    size_t size;
    uint8_t mark;
};

struct worker {
    pthread_t thread;
    uint64_t rng;
    struct block block[BLOCKS], mapping[MAPPINGS];
};

static long threads, work;
static struct worker *workers;
static pthread_barrier_t barrier;
static volatile bool stopping;

static void check(const struct block *block) {
    if (!block->at) return;
    for (size_t i = 0; i < block->size; i += 512)
        CHECK(block->at[i] == block->mark, "byte %zu of a block of %zu was changed", i, block->size);
}

static void fill(struct block *block, uint64_t random) {
    block->mark = (uint8_t)(random >> 40);
    memset(block->at, block->mark, block->size);
}

static void churn(struct worker *self) {
    for (long i = 0; i < work * 1000; i++) {
        uint64_t random = random_next(&self->rng);
        struct block *block = &self->block[random % BLOCKS];
        check(block);
        free(block->at);
        /* Most are small: the exponent is spread evenly. */
        block->size = (size_t)16 << (random >> 16) % 13;
        block->at = malloc(block->size);
        CHECK(block->at, "malloc of %zu", block->size);
        fill(block, random);
        if (i % 16) continue;
        struct block *mapping = &self->mapping[(random >> 24) % MAPPINGS];
        check(mapping);
        if (mapping->at) MUST(munmap(mapping->at, mapping->size));
        mapping->size = (4 + (random >> 32) % 61) * PAGE;
        mapping->at = mmap(NULL, mapping->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(mapping->at != MAP_FAILED, "mmap: %s", strerror(errno));
        fill(mapping, random);
    }
}

static void *other(void *argument) {
    for (;;) {
        pthread_barrier_wait(&barrier);
        if (stopping) return NULL;
        churn(argument);
        pthread_barrier_wait(&barrier);
    }
}

static void all(void) {
    pthread_barrier_wait(&barrier);
    churn(&workers[0]);
    pthread_barrier_wait(&barrier);
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    threads = guest_option(argc, argv, "threads", 4);
    work = guest_option(argc, argv, "work", 10);
    CHECK(threads >= 1 && threads <= 64, "1 to 64 threads");
    workers = calloc((size_t)threads, sizeof *workers);
    MUST0(pthread_barrier_init(&barrier, NULL, (unsigned)threads));
    for (long i = 0; i < threads; i++) workers[i].rng = (uint64_t)i;
    for (long i = 1; i < threads; i++) MUST0(pthread_create(&workers[i].thread, NULL, other, &workers[i]));
    bench_rounds(all);
    stopping = true;
    pthread_barrier_wait(&barrier);
    for (long i = 1; i < threads; i++) MUST0(pthread_join(workers[i].thread, NULL));
    for (long i = 0; i < threads; i++) {
        for (int b = 0; b < BLOCKS; b++) check(&workers[i].block[b]);
        for (int m = 0; m < MAPPINGS; m++) check(&workers[i].mapping[m]);
    }
    guest_ok();
}
