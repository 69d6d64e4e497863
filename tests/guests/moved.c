/*
 * Mappings that take each other's place, grow and are moved, while they are put under tracking: `mremap` takes one mapping, so what the
 * program sees as one must never be two to the kernel.
 *
 * A step is 200 rounds. In each, a mapping is made and written, replaced by a larger one, and that is extended, moved, and compared.
 */
#include "guest.h"

#include <sys/mman.h>

enum { SMALL = 16, LARGE = 64, LARGER = 80, ROOM = 4096, ROUNDS = 200 };

static char *room; /* nothing else is mapped there */

static char *map_at(char *address, size_t pages) {
    char *made = mmap(address, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    CHECK(made == address, "mmap of %zu pages in round %lu: %s", pages, guest_steps, strerror(errno));
    return made;
}

static void mark(char *pages, size_t count, uint64_t value) {
    for (size_t page = 0; page < count; page++) *(uint64_t *)(pages + page * PAGE) = value + page;
}

static void compare(const char *pages, size_t count, uint64_t value, const char *what) {
    for (size_t page = 0; page < count; page++) {
        uint64_t found = *(const uint64_t *)(pages + page * PAGE);
        CHECK(found == value + page, "page %zu of what was %s holds %lu, not %lu", page, what, found, value + page);
    }
}

static char *remap(char *from, size_t old, size_t new, const char *what) {
    char *there = mremap(from, old * PAGE, new * PAGE, MREMAP_MAYMOVE);
    CHECK(there != MAP_FAILED, "%s in step %lu: %s", what, guest_steps, strerror(errno));
    return there;
}

static void round_of(uint64_t value) {
    mark(map_at(room, SMALL), SMALL, value);
    char *large = map_at(room, LARGE);
    mark(large, LARGE, value + 1);
    char *extended = remap(large, LARGE, LARGER, "extending");
    compare(extended, LARGE, value + 1, "extended");
    /* No room behind it: it goes elsewhere. */
    char *wall = map_at(room + LARGER * PAGE, 1);
    char *moved = remap(extended, LARGER, LARGER + 1, "moving");
    compare(moved, LARGE, value + 1, "moved");
    MUST(munmap(moved, (LARGER + 1) * PAGE));
    MUST(munmap(wall, PAGE));
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    char *whole = MUST(mmap(NULL, ROOM * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    MUST(munmap(whole, ROOM * PAGE));
    room = whole + ROOM / 4 * PAGE;
    static uint64_t values = 1;
    guest_ready();
    while (!guest_finishing()) {
        for (int i = 0; i < ROUNDS; i++) round_of(values += LARGE);
        guest_step();
    }
    guest_ok();
}
