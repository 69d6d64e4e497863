/*
 * Memory that a checkpoint may leave out.
 *
 * Five areas of 64 pages each: one that a test has left out by its range, one that is not to be dumped (MADV_DONTDUMP), one
 * that is shared, one that is a file (DIR/mapped) written through a shared mapping, and one that always stays. Every page has its
 * pattern, which a step renews in some of them. With DIR/lost.AREA the guest accepts zeroes there once (it is the test that had
 * them left out), or in the file what it last wrote, and fills it again. While there is DIR/hold, it leaves the areas alone: a
 * checkpoint that loses some of one must not catch it in the middle of a page.
 */
#include "guest.h"

#include <sys/mman.h>

#define PAGES 64UL

enum { NAMED, UNDUMPED, SHARED, MAPPED, KEPT, AREAS };

static const char *const names[AREAS] = {"named", "undumped", "shared", "file", "kept"};
static unsigned char *areas[AREAS];
static uint64_t seeds[AREAS][PAGES];

static void renew(int area, size_t page) {
    seeds[area][page] = (uint64_t)(area + 1) << 48 | page << 32 | (guest_steps + 1);
    page_fill(areas[area] + page * PAGE, seeds[area][page]);
}

static void check_all(void) {
    for (int area = 0; area < AREAS; area++)
        for (size_t page = 0; page < PAGES; page++)
            CHECK(page_difference(areas[area] + page * PAGE, seeds[area][page]) < 0, "area %s, page %zu is not what it was",
                  names[area], page);
}

/* Every page of an area must be zero, or as the file has it; it is filled again. */
static void accept_loss(int area) {
    char name[32];
    snprintf(name, sizeof name, "lost.%s", names[area]);
    char path[PATH_MAX];
    if (!guest_has(name)) return;
    for (size_t page = 0; page < PAGES; page++) {
        CHECK(page_difference(areas[area] + page * PAGE, area == MAPPED ? seeds[area][page] : 0) < 0,
              "area %s, page %zu was left out and is something else than nothing", names[area], page);
        renew(area, page);
    }
    MUST(unlink(guest_path(path, name)));
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    char path[PATH_MAX];
    int file = MUST(open(guest_path(path, "mapped"), O_CREAT | O_RDWR | O_TRUNC | O_CLOEXEC, 0600));
    MUST(ftruncate(file, PAGES * PAGE));
    for (int area = 0; area < AREAS; area++) {
        int how = area == MAPPED ? MAP_SHARED : area == SHARED ? MAP_SHARED | MAP_ANONYMOUS : MAP_PRIVATE | MAP_ANONYMOUS;
        /* A page of nothing on either side keeps the mappings apart. */
        unsigned char *all = MUST(mmap(NULL, (PAGES + 2) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        areas[area] = MUST(mmap(all + PAGE, PAGES * PAGE, PROT_READ | PROT_WRITE, how | MAP_FIXED, area == MAPPED ? file : -1, 0));
        for (size_t page = 0; page < PAGES; page++) renew(area, page);
        char name[32], range[64];
        snprintf(name, sizeof name, "say.%s", names[area]);
        snprintf(range, sizeof range, "%lx-%lx", (unsigned long)areas[area], (unsigned long)areas[area] + PAGES * PAGE);
        guest_link(name, range);
    }
    MUST(close(file));
    MUST(madvise(areas[UNDUMPED], PAGES * PAGE, MADV_DONTDUMP));
    guest_ready();
    while (!guest_finishing()) {
        for (int area = 0; area < AREAS && !guest_has("hold"); area++) {
            accept_loss(area);
            renew(area, guest_steps % 16); /* the others stay as they were */
        }
        if (!guest_has("hold")) check_all();
        guest_step();
        guest_sleep_ms(2);
    }
    check_all();
    guest_ok();
}
