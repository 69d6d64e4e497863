/*
 * A job whose pages are like each other: many are the same, and what is in them repeats itself.
 *
 *   alike DIR [--mib M] [--kinds K] [--text]
 *
 * It holds M MiB (default 64) of pages, each of one of K kinds (default 16). In each step it makes some of them pages of another
 * kind, one of its own, or zero. With --text a page holds its number again and again, so that it can be compressed; else it is
 * random. At the end every page is compared with what was written last.
 */
#include "guest.h"
#include <sys/mman.h>

enum { PER_STEP = 40 };

static bool text;

static void write_page(char *page, uint64_t seed) {
    if (!text || seed == 0) {
        page_fill(page, seed);
        return;
    }
    for (size_t at = 0; at < PAGE; at += 32) snprintf(page + at, 32, "value %-24lx", seed);
}

static void check_page(const char *page, uint64_t seed, size_t number) {
    static char wanted[PAGE];
    write_page(wanted, seed);
    CHECK(memcmp(page, wanted, PAGE) == 0, "page %zu is not as it was written with %lx after %lu steps", number, seed, guest_steps);
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    size_t pages = (size_t)guest_option(argc, argv, "mib", 64) * 256;
    uint64_t kinds = (uint64_t)guest_option(argc, argv, "kinds", 16), rng = 5;
    text = guest_option(argc, argv, "text", 0);
    char *all = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint64_t *seeds = mmap(NULL, pages * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(all != MAP_FAILED && seeds != MAP_FAILED, "mmap: %s", strerror(errno));
    for (size_t page = 0; page < pages; page++) {
        seeds[page] = 1 + random_below(&rng, kinds);
        write_page(all + page * PAGE, seeds[page]);
    }
    guest_ready();
    while (!guest_finishing()) {
        for (int i = 0; i < PER_STEP; i++) {
            size_t page = random_below(&rng, pages);
            uint64_t what = random_below(&rng, 8);
            seeds[page] = what == 0 ? 0 : what < 3 ? random_next(&rng) | 1UL << 40 : 1 + random_below(&rng, kinds);
            write_page(all + page * PAGE, seeds[page]);
        }
        guest_step();
        guest_sleep_ms(10);
    }
    for (size_t page = 0; page < pages; page++) check_page(all + page * PAGE, seeds[page], page);
    guest_ok();
}
