/*
 * The traps of dirty tracking, one at a time: what changes memory in a way that page protection alone does not show.
 *
 *   trap DIR NAME
 *
 * It acts on demand: for N = 1, 2, … it waits for DIR/go.N, changes memory in the trap's way, and makes the number of steps N.
 * `trap - list` prints the names. Two traps are sprung by the test: for process-vm-writev and proc-mem, DIR/say.address holds the
 * address and the length of memory that the test overwrites before go.N, byte by byte with 0x50 + N.
 */
#include "guest.h"
#include <sys/mman.h>
#include <sys/wait.h>

#define PAGES 512UL
#define HUGE (2UL << 20)

static char *at, *other_at; /* the memory under test; another mapping of it or in place of it */
static uint64_t seed[4 * PAGES], other_seed[4 * PAGES], rng = 11;
static size_t pages = PAGES, other_pages;
static int memfd = -1, file = -1;
static char **arguments;
static uint64_t filler; /* the test's byte, if it writes */

static char *map(size_t count) {
    char *address = mmap(NULL, count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(address != MAP_FAILED, "mmap: %s", strerror(errno));
    return address;
}

static void put(size_t page) {
    seed[page] = random_next(&rng) | 1;
    page_fill(at + page * PAGE, seed[page]);
}

static void put_some(size_t count) {
    while (count--) put(random_below(&rng, pages));
}

static void fill_all(void) {
    for (size_t page = 0; page < pages; page++) put(page);
}

static void forget(size_t first, size_t count) { memset(seed + first, 0, count * sizeof *seed); }

/* -- the traps ---------------------------------------------------------------------------------------------------------------- */

static void set_up_plain(void) {
    at = map(pages);
    fill_all();
}

static void act_move(int n) {
    put_some(20);
    char *to = map(pages + 16); /* unmapped by mremap as far as it is needed */
    CHECK(mremap(at, pages * PAGE, pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to, "mremap: %s", strerror(errno));
    at = to;
    if (n % 2) put_some(20);
}

static void act_grow(int n) {
    (void)n;
    char *to = mremap(at, pages * PAGE, (pages + 64) * PAGE, MREMAP_MAYMOVE);
    CHECK(to != MAP_FAILED, "mremap: %s", strerror(errno));
    at = to;
    forget(pages, 64);
    pages += 64;
    put_some(30);
}

static void act_move_keeping(int n) {
    put_some(5);
    char *to = mremap(at, pages * PAGE, pages * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
    CHECK(to != MAP_FAILED, "mremap with MREMAP_DONTUNMAP: %s", strerror(errno));
    other_at = at; /* now all zero */
    other_pages = pages;
    at = to;
    if (n % 2) put_some(5);
}

static void act_dontneed(int n) {
    size_t first = (size_t)n * 50 % (pages - 100);
    MUST(madvise(at + first * PAGE, 100 * PAGE, MADV_DONTNEED));
    forget(first, 100);
    if (n % 2 == 0) put(first + 3);
}

static void act_remap(int n) {
    size_t first = (size_t)n * 40 % (pages - 100);
    MUST(munmap(at + first * PAGE, 100 * PAGE));
    CHECK(mmap(at + first * PAGE, 100 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at + first * PAGE,
          "mmap: %s", strerror(errno));
    forget(first, 100);
    put(first + 5);
}

static void act_new_mapping(int n) {
    if (n == 1) {
        other_at = map(64);
        other_pages = 64;
    }
    for (size_t page = (size_t)n; page < 64; page += 3) {
        other_seed[page] = random_next(&rng) | 1;
        page_fill(other_at + page * PAGE, other_seed[page]);
    }
}

static void set_up_huge(void) {
    pages = 4 * PAGES;
    at = map(5 * PAGES);
    at = (char *)(((uintptr_t)at + HUGE - 1) & ~(HUGE - 1));
    if (madvise(at, 4 * HUGE, MADV_HUGEPAGE) != 0) guest_skip("huge", "MADV_HUGEPAGE: %s", strerror(errno));
    fill_all();
}

static void act_huge(int n) {
    for (size_t huge = 0; huge < 4; huge++) put(huge * PAGES + (size_t)n * 17);
}

static void act_huge_dontneed(int n) {
    /* A part of one huge page, and the whole of another. */
    MUST(madvise(at + (size_t)n * 30 * PAGE, 20 * PAGE, MADV_DONTNEED));
    forget((size_t)n * 30, 20);
    size_t whole = 1 + (size_t)n % 3;
    MUST(madvise(at + whole * HUGE, HUGE, MADV_DONTNEED));
    forget(whole * PAGES, PAGES);
    put(whole * PAGES + 9);
}

static void set_up_alias(void) {
    memfd = MUST(memfd_create("cr-trap", MFD_CLOEXEC));
    MUST(ftruncate(memfd, (off_t)(pages * PAGE)));
    at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
    fill_all();
    other_at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
    CHECK(at != MAP_FAILED && other_at != MAP_FAILED, "mmap of memfd: %s", strerror(errno));
}

static void act_alias(int n) {
    for (size_t page = (size_t)n; page < pages; page += 37) {
        seed[page] = random_next(&rng) | 1;
        page_fill(other_at + page * PAGE, seed[page]);
    }
}

static void act_memfd_write(int n) {
    char content[PAGE];
    for (size_t page = (size_t)n; page < pages; page += 41) {
        seed[page] = random_next(&rng) | 1;
        page_fill(content, seed[page]);
        CHECK(pwrite(memfd, content, PAGE, (off_t)(page * PAGE)) == (ssize_t)PAGE, "write to memfd: %s", strerror(errno));
    }
}

static void act_memfd_hole(int n) {
    size_t first = (size_t)n * 60;
    MUST(fallocate(memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(first * PAGE), 50 * PAGE));
    forget(first, 50);
    MUST(ftruncate(memfd, (off_t)((pages - 10) * PAGE)));
    MUST(ftruncate(memfd, (off_t)(pages * PAGE)));
    forget(pages - 10, 10);
    put(first + 2);
}

/* A file of pages with known seeds, to be read into protected memory. */
static void set_up_file(int flags) {
    char path[PATH_MAX], page[PAGE];
    set_up_plain();
    file = MUST(open(guest_path(path, "data.bin"), O_CREAT | O_TRUNC | O_WRONLY, 0600));
    for (size_t i = 0; i < 64; i++) {
        page_fill(page, 9000 + i);
        CHECK(write(file, page, PAGE) == (ssize_t)PAGE, "write: %s", strerror(errno));
    }
    MUST(fsync(file));
    MUST(close(file));
    file = open(path, O_RDONLY | flags);
    if (file < 0 && flags == O_DIRECT) {
        guest_skip("o-direct", "open with O_DIRECT: %s", strerror(errno));
        file = MUST(open(path, O_RDONLY));
    }
    MUST(file);
}

static void set_up_read(void) { set_up_file(0); }
static void set_up_direct(void) { set_up_file(O_DIRECT); }

static void act_read(int n) {
    size_t first = (size_t)n * 70, from = (size_t)n * 8;
    CHECK(pread(file, at + first * PAGE, 16 * PAGE, (off_t)(from * PAGE)) == 16 * (ssize_t)PAGE, "read: %s", strerror(errno));
    for (size_t i = 0; i < 16; i++) seed[first + i] = 9000 + from + i;
}

static void act_protect(int n) {
    size_t first = (size_t)n * 20;
    MUST(mprotect(at + first * PAGE, 20 * PAGE, PROT_READ | PROT_WRITE));
    for (size_t i = 0; i < 20; i += 3) put(first + i);
    MUST(mprotect(at + first * PAGE, 20 * PAGE, n % 2 ? PROT_READ : PROT_NONE));
}

static void set_up_protected(void) {
    set_up_plain();
    MUST(mprotect(at, pages * PAGE, PROT_READ));
}

static void act_zero(int n) {
    for (size_t page = (size_t)n; page < pages; page += 23) {
        memset(at + page * PAGE, 0, PAGE);
        seed[page] = 0;
    }
}

/* After fork every page of the parent is shared with a child, which writes to it and ends. */
static void act_fork(int n) {
    pid_t child = MUST(fork());
    if (child == 0) {
        for (size_t page = 0; page < pages; page++) at[page * PAGE] = 'x';
        _exit(0);
    }
    put_some(10 + (size_t)n);
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0, "the child ended with %x", status);
    put_some(10);
}

/* A new program under the same pid: the process goes on from the actions that are done. */
static void act_exec(int n) {
    char done[16];
    snprintf(done, sizeof done, "%d", n);
    execl("/proc/self/exe", arguments[0], arguments[1], arguments[2], done, NULL);
    guest_fail("exec: %s", strerror(errno));
}

static void set_up_heap(void) {
    at = (char *)(((uintptr_t)sbrk(0) + PAGE - 1) & ~(PAGE - 1));
    MUST(brk(at + pages * PAGE));
    fill_all();
}

static void act_heap(int n) {
    MUST(brk(at + (pages - 60) * PAGE));
    MUST(brk(at + pages * PAGE));
    forget(pages - 60, 60);
    put(pages - 10 - (size_t)n);
    put_some(5);
}

static void set_up_written_by_test(void) {
    char text[64];
    set_up_plain();
    snprintf(text, sizeof text, "%p %lu", (void *)(at + 100 * PAGE), 10 * PAGE);
    guest_link("say.address", text);
}

static void act_written_by_test(int n) { filler = 0x50 + (uint64_t)n; }

static const struct trap {
    const char *name;
    void (*set_up)(void);
    void (*act)(int n);
} traps[] = {
    {"mremap-move", set_up_plain, act_move},
    {"mremap-grow", set_up_plain, act_grow},
    {"mremap-dontunmap", set_up_plain, act_move_keeping},
    {"dontneed", set_up_plain, act_dontneed},
    {"unmap-and-map", set_up_plain, act_remap},
    {"new-mapping", set_up_plain, act_new_mapping},
    {"huge-write", set_up_huge, act_huge},
    {"huge-dontneed", set_up_huge, act_huge_dontneed},
    {"shared-alias", set_up_alias, act_alias},
    {"memfd-write", set_up_alias, act_memfd_write},
    {"memfd-hole", set_up_alias, act_memfd_hole},
    {"read", set_up_read, act_read},
    {"o-direct-read", set_up_direct, act_read},
    {"mprotect", set_up_protected, act_protect},
    {"zeroed", set_up_plain, act_zero},
    {"fork", set_up_plain, act_fork},
    {"exec", set_up_plain, act_exec},
    {"heap-shrink", set_up_heap, act_heap},
    {"process-vm-writev", set_up_written_by_test, act_written_by_test},
    {"proc-mem", set_up_written_by_test, act_written_by_test},
};

static void check_all(void) {
    if (strcmp(arguments[2], "mprotect") == 0) MUST(mprotect(at, pages * PAGE, PROT_READ));
    for (size_t page = 0; page < pages; page++) {
        bool foreign = filler && page >= 100 && page < 110;
        for (size_t i = 0; foreign && i < PAGE; i++)
            CHECK((unsigned char)at[page * PAGE + i] == filler, "page %zu: byte %zu is %02x, another process wrote %02lx", page, i,
                  (unsigned char)at[page * PAGE + i], filler);
        if (foreign) continue;
        CHECK(page_difference(at + page * PAGE, seed[page]) < 0, "page %zu of %zu differs (seed %lx) after action %lu", page, pages,
              seed[page], guest_steps);
    }
    const uint64_t *other = memfd >= 0 ? seed : other_seed;
    for (size_t page = 0; other_at && page < (memfd >= 0 ? pages : other_pages); page++)
        CHECK(page_difference(other_at + page * PAGE, other[page]) < 0, "other mapping: page %zu differs (seed %lx) after action %lu", page,
              other[page], guest_steps);
}

int main(int argc, char **argv) {
    if (argc >= 3 && strcmp(argv[2], "list") == 0) {
        for (size_t i = 0; i < ARRAY_LEN(traps); i++) printf("%s\n", traps[i].name);
        return 0;
    }
    guest_start(argc, argv);
    CHECK(argc >= 3, "usage: trap DIR NAME");
    arguments = argv;
    const struct trap *trap = NULL;
    for (size_t i = 0; i < ARRAY_LEN(traps); i++)
        if (strcmp(traps[i].name, argv[2]) == 0) trap = &traps[i];
    CHECK(trap, "there is no trap %s", argv[2]);
    trap->set_up();
    int next = argc > 3 ? atoi(argv[3]) + 1 : 1; /* after exec */
    for (guest_steps = 0; guest_steps + 1 < (uint64_t)next;) guest_step();
    if (next == 1) guest_ready();
    while (!guest_finishing()) {
        char go[32];
        snprintf(go, sizeof go, "go.%d", next);
        if (guest_has(go)) {
            trap->act(next++);
            guest_step();
        }
        guest_sleep_ms(5);
    }
    check_all();
    guest_ok();
}
