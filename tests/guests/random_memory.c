/*
 * Memory that changes at random, in every way in which memory can: by stores, by the kernel, by another process, past the caches, with and
 * without a page fault; that comes and goes, moves, and is given up. A model knows what each page must hold.
 *
 *   random_memory DIR [--seed N]
 *
 * A step is one operation. While DIR/go.1 exists it only counts steps. At the end every page is compared with the model.
 */
#include "guest.h"
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>

#define ARENAS 6
#define PAGES 1024UL
#define FILE_PAGES 64UL
#define HUGE (2UL << 20)

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#define GUARD_INSTALL 102
#define GUARD_REMOVE 103

/* What a page holds: what belongs to its seed; or that or zeroes, if it was given up. */
struct arena {
    char *at;
    uint64_t seed[PAGES];
    bool given_up[PAGES], guarded[PAGES];
};

static struct arena arenas[ARENAS];
static uint64_t rng, file_seed[FILE_PAGES];
static int file, direct, channel[2];
static char *staging;
static bool has_guards = true;

static uint64_t below(uint64_t bound) { return random_below(&rng, bound); }

static char *map(char *at, int more) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | more | (at ? MAP_FIXED : 0);
    char *got = mmap(at, PAGES * PAGE, PROT_READ | PROT_WRITE, flags, -1, 0);
    CHECK(got != MAP_FAILED, "mmap: %s", strerror(errno));
    return got;
}

/* Pages of an arena, none of them guarded. */
struct run {
    struct arena *arena;
    size_t first, count;
    char *at;
};

static struct run choose(size_t most) {
    for (;;) {
        struct arena *arena = &arenas[below(ARENAS)];
        size_t first = below(PAGES), count = 1 + below(most);
        if (first + count > PAGES) count = PAGES - first;
        bool guarded = false;
        for (size_t page = first; page < first + count; page++) guarded |= arena->guarded[page];
        if (!guarded) return (struct run){arena, first, count, arena->at + first * PAGE};
    }
}

static void now_holds(struct run run, size_t page, uint64_t seed) {
    run.arena->seed[run.first + page] = seed;
    run.arena->given_up[run.first + page] = false;
}

static void all_zero(struct run run) {
    for (size_t page = 0; page < run.count; page++) now_holds(run, page, 0);
}

static struct run whole(struct arena *arena) { return (struct run){arena, 0, PAGES, arena->at}; }

/* -- the operations ------------------------------------------------------------------------------------------------------------ */

static void store(void) {
    struct run run = choose(16);
    for (size_t page = 0; page < run.count; page++) {
        uint64_t seed = random_next(&rng) | 1;
        page_fill(run.at + page * PAGE, seed);
        now_holds(run, page, seed);
    }
}

static void read_into(int from) {
    struct run run = choose(8);
    size_t first = below(FILE_PAGES - 8);
    ssize_t wanted = (ssize_t)(run.count * PAGE);
    CHECK(pread(from, run.at, (size_t)wanted, (off_t)(first * PAGE)) == wanted, "pread: %s", strerror(errno));
    for (size_t page = 0; page < run.count; page++) now_holds(run, page, file_seed[first + page]);
}

static void read_file(void) { read_into(file); }
static void read_past_the_cache(void) { read_into(direct); }

/* Fills the staging pages with what belongs to fresh seeds. */
static void stage(struct run run, uint64_t *seeds) {
    for (size_t page = 0; page < run.count; page++) {
        seeds[page] = random_next(&rng) | 1;
        page_fill(staging + page * PAGE, seeds[page]);
    }
}

static void staged(struct run run, const uint64_t *seeds) {
    for (size_t page = 0; page < run.count; page++) now_holds(run, page, seeds[page]);
}

static void receive(void) {
    struct run run = choose(4);
    uint64_t seeds[4];
    stage(run, seeds);
    size_t bytes = run.count * PAGE;
    CHECK(send(channel[0], staging, bytes, 0) == (ssize_t)bytes, "send: %s", strerror(errno));
    CHECK(recv(channel[1], run.at, bytes, MSG_WAITALL) == (ssize_t)bytes, "recv: %s", strerror(errno));
    staged(run, seeds);
}

static void write_by_own_memory_file(void) {
    struct run run = choose(4);
    uint64_t seeds[4];
    stage(run, seeds);
    int memory = MUST(open("/proc/self/mem", O_RDWR | O_CLOEXEC));
    ssize_t bytes = (ssize_t)(run.count * PAGE);
    CHECK(pwrite(memory, staging, (size_t)bytes, (off_t)(uintptr_t)run.at) == bytes, "/proc/self/mem: %s", strerror(errno));
    MUST(close(memory));
    staged(run, seeds);
}

static void write_remotely(pid_t pid, struct run run) {
    struct iovec local = {staging, run.count * PAGE};
    size_t half = run.count / 2 * PAGE;
    struct iovec remote[2] = {{run.at, half}, {run.at + half, run.count * PAGE - half}};
    ssize_t wrote = process_vm_writev(pid, &local, 1, remote, 2, 0);
    CHECK(wrote == (ssize_t)(run.count * PAGE), "process_vm_writev: %s", strerror(errno));
}

static void write_to_oneself(void) {
    struct run run = choose(6);
    uint64_t seeds[6];
    stage(run, seeds);
    write_remotely(getpid(), run);
    staged(run, seeds);
}

static void end_of(pid_t child) {
    int status;
    while (waitpid(child, &status, 0) < 0) CHECK(errno == EINTR, "waitpid: %s", strerror(errno));
    CHECK(status == 0, "the child ended with %#x", status);
}

static void let_child_write(void) {
    struct run run = choose(6);
    uint64_t seeds[6];
    stage(run, seeds);
    pid_t parent = getpid(), child = MUST(fork());
    if (child == 0) {
        write_remotely(parent, run);
        _exit(0);
    }
    end_of(child);
    staged(run, seeds);
}

static void let_child_write_to_its_own(void) {
    struct run run = choose(32);
    pid_t child = MUST(fork());
    if (child == 0) {
        memset(run.at, 0x77, run.count * PAGE);
        _exit(0);
    }
    if (below(2)) store();
    end_of(child);
}

static void drop(void) {
    struct run run = choose(64);
    MUST(madvise(run.at, run.count * PAGE, MADV_DONTNEED));
    all_zero(run);
}

static void give_up(void) {
    struct run run = choose(32);
    MUST(madvise(run.at, run.count * PAGE, MADV_FREE));
    for (size_t page = 0; page < run.count; page++) run.arena->given_up[run.first + page] = true;
}

static void map_anew(int more) {
    struct arena *arena = &arenas[below(ARENAS)];
    if (below(2)) MUST(munmap(arena->at, PAGES * PAGE));
    map(arena->at, more);
    memset(arena->guarded, 0, sizeof arena->guarded);
    all_zero(whole(arena));
}

static void map_empty(void) { map_anew(0); }
static void map_filled(void) { map_anew(MAP_POPULATE); }

static void move(void) {
    struct arena *arena = &arenas[below(ARENAS)];
    char *to = map(NULL, 0);
    bool leave = below(2);
    for (size_t page = 0; page < PAGES; page++)
        if (arena->guarded[page]) leave = false;
    int flags = MREMAP_MAYMOVE | MREMAP_FIXED | (leave ? MREMAP_DONTUNMAP : 0);
    CHECK(mremap(arena->at, PAGES * PAGE, PAGES * PAGE, flags, to) == to, "mremap: %s", strerror(errno));
    if (leave) {
        /* The old place stays, with nothing in it. */
        MUST(munmap(to, PAGES * PAGE));
        all_zero(whole(arena));
    } else
        arena->at = to;
}

static void protect(void) {
    struct run run = choose(64);
    MUST(mprotect(run.at, run.count * PAGE, PROT_READ));
    MUST(mprotect(run.at, run.count * PAGE, PROT_READ | PROT_WRITE));
}

static void guard(void) {
    struct run run = choose(8);
    if (!has_guards) return;
    if (madvise(run.at, run.count * PAGE, GUARD_INSTALL) != 0) {
        CHECK(errno == EINVAL, "MADV_GUARD_INSTALL: %s", strerror(errno));
        has_guards = false;
        guest_skip("guards", "this kernel has no guard pages");
        return;
    }
    all_zero(run);
    for (size_t page = 0; page < run.count; page++) run.arena->guarded[run.first + page] = true;
}

static void unguard(void) {
    struct arena *arena = &arenas[below(ARENAS)];
    if (!has_guards) return;
    MUST(madvise(arena->at, PAGES * PAGE, GUARD_REMOVE));
    memset(arena->guarded, 0, sizeof arena->guarded);
}

static void populate(void) {
    struct run run = choose(32);
    (void)!madvise(run.at, run.count * PAGE, MADV_POPULATE_WRITE);
}

static void lock(void) {
    struct run run = choose(8);
    if (mlock(run.at, run.count * PAGE) == 0) MUST(munlock(run.at, run.count * PAGE));
}

static void collapse(void) {
    struct arena *arena = &arenas[below(ARENAS)];
    char *huge = (char *)(((uintptr_t)arena->at + HUGE - 1) / HUGE * HUGE);
    (void)!madvise(huge, HUGE, MADV_COLLAPSE);
}

static void look(void) {
    struct run run = choose(16);
    volatile char sum = 0;
    for (size_t page = 0; page < run.count; page++) sum += run.at[page * PAGE];
}

/* -- the end ------------------------------------------------------------------------------------------------------------------- */

static void check(const struct arena *arena) {
    for (size_t page = 0; page < PAGES; page++) {
        char *at = arena->at + page * PAGE;
        if (arena->guarded[page]) {
            char byte;
            struct iovec local = {&byte, 1}, remote = {at, 1};
            CHECK(process_vm_readv(getpid(), &local, 1, &remote, 1, 0) < 0, "page %zu is no guard any more", page);
            continue;
        }
        long at_seed = page_difference(at, arena->seed[page]);
        if (at_seed >= 0 && arena->given_up[page]) at_seed = page_difference(at, 0);
        CHECK(at_seed < 0, "page %zu of arena %td differs at byte %ld", page, arena - arenas, at_seed);
    }
}

static void make_file(void) {
    char path[PATH_MAX];
    guest_path(path, "pages");
    file = MUST(open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    for (size_t page = 0; page < FILE_PAGES; page++) {
        file_seed[page] = random_next(&rng) | 1;
        page_fill(staging, file_seed[page]);
        CHECK(pwrite(file, staging, PAGE, (off_t)(page * PAGE)) == (ssize_t)PAGE, "writing a file: %s", strerror(errno));
    }
    MUST(fsync(file));
    direct = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    if (direct < 0) {
        guest_skip("o-direct", "O_DIRECT: %s", strerror(errno));
        direct = MUST(dup(file));
    }
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    rng = (uint64_t)guest_option(argc, argv, "seed", 4);
    staging = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(staging != MAP_FAILED, "mmap: %s", strerror(errno));
    make_file();
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, channel));
    for (int i = 0; i < ARENAS; i++) arenas[i].at = map(NULL, 0);
    guest_ready();
    static void (*const operations[])(void) = {
        store, store, store, store, store, read_file, read_file, read_past_the_cache, receive, drop, let_child_write, let_child_write_to_its_own, give_up, map_empty, map_filled, move, protect, guard, unguard,
        populate, lock, collapse, look};
    /* These write where nobody sees it beforehand: after one of them, everything must be looked at. */
    static void (*const hidden[])(void) = {write_by_own_memory_file, write_to_oneself};
    while (!guest_finishing()) {
        if (!guest_has("go.1")) (below(100) ? operations[below(ARRAY_LEN(operations))] : hidden[below(ARRAY_LEN(hidden))])();
        guest_step();
        guest_sleep_ms(1);
    }
    for (int i = 0; i < ARENAS; i++) check(&arenas[i]);
    guest_ok();
}
