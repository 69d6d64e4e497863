/*
 * Every kind of mapping, with contents that keep changing.
 *
 * A region is a mapping whose page contents are known: page i holds what belongs to seed[i] (0: zeroes). Each step changes some
 * regions at random and their seeds with them; at the end every page of every region is compared, and what smaps says of
 * the mappings that do not move (permissions, flags, names) is compared with what it said at the start.
 *
 *   memory DIR [--mib M]     M: size of the plain anonymous region (default 16)
 */
#include "guest.h"
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif
#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#define PR_SET_VMA_ANON_NAME 0
#endif

#define MAX_REGIONS 64
#define HUGE (2UL << 20)

struct region {
    const char *name;
    char *at;
    char *check_at; /* an alias to read through, or `at` */
    size_t pages;
    uint64_t *seed;
    int protection; /* as it stands between steps */
    bool fixed;     /* compare its smaps entry */
};

static struct region regions[MAX_REGIONS];
static size_t region_count;
static uint64_t rng = 1;
static uint64_t *seed_pool;
static size_t seeds_left;

static char text_before[1 << 20], text_after[1 << 20], smaps[4 << 20];

/* -- regions ------------------------------------------------------------------------------------------------------------------ */

static uint64_t *take_seeds(size_t count) {
    CHECK(count <= seeds_left, "the guest's seed pool is too small");
    seeds_left -= count;
    return seed_pool + seeds_left;
}

static struct region *add(const char *name, void *at, size_t pages, int protection, bool fixed) {
    CHECK(at != MAP_FAILED, "mmap for %s: %s", name, strerror(errno));
    CHECK(region_count < MAX_REGIONS, "too many regions");
    struct region *region = &regions[region_count++];
    *region = (struct region){name, at, at, pages, take_seeds(pages), protection, fixed};
    return region;
}

/* With an unreachable page at either side: which neighbours the kernel merges is not part of the state. */
static struct region *add_anonymous(const char *name, size_t pages, bool fixed) {
    char *at = mmap(NULL, (pages + 2) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED, "mmap for %s: %s", name, strerror(errno));
    MUST(mprotect(at + PAGE, pages * PAGE, PROT_READ | PROT_WRITE));
    return add(name, at + PAGE, pages, PROT_READ | PROT_WRITE, fixed);
}

static void write_page(struct region *region, size_t page) {
    bool open_first = !(region->protection & PROT_WRITE) || !(region->protection & PROT_READ);
    char *at = region->at + page * PAGE;
    if (open_first) MUST(mprotect(at, PAGE, PROT_READ | PROT_WRITE));
    region->seed[page] = random_next(&rng) | 1;
    page_fill(at, region->seed[page]);
    if (open_first) MUST(mprotect(at, PAGE, region->protection));
}

static void write_some(struct region *region, size_t count) {
    while (count--) write_page(region, random_below(&rng, region->pages));
}

static void check_region(const struct region *region) {
    bool open_first = !(region->protection & PROT_READ);
    if (open_first) MUST(mprotect(region->check_at, region->pages * PAGE, PROT_READ));
    for (size_t page = 0; page < region->pages; page++) {
        long differs = page_difference(region->check_at + page * PAGE, region->seed[page]);
        CHECK(differs < 0, "%s: page %zu of %zu (%p) differs at byte %ld: has %016lx, seed %016lx, after %lu steps", region->name,
              page, region->pages, (void *)(region->check_at + page * PAGE), differs,
              *(uint64_t *)(region->check_at + page * PAGE + differs), region->seed[page], guest_steps);
    }
    if (open_first) MUST(mprotect(region->check_at, region->pages * PAGE, region->protection));
}

/* -- faults ------------------------------------------------------------------------------------------------------------------- */

static sigjmp_buf fault_return;

static void on_fault(int number) { siglongjmp(fault_return, number); }

static bool faults_on_read(const char *at) {
    if (sigsetjmp(fault_return, 1)) return true;
    (void)*(volatile const char *)at;
    return false;
}

static bool faults_on_write(char *at) {
    if (sigsetjmp(fault_return, 1)) return true;
    *(volatile char *)at = *(volatile const char *)at;
    return false;
}

/* -- plain regions ------------------------------------------------------------------------------------------------------------ */

static struct region *plain, *named, *read_only, *sealed_away, *write_only, *locked, *huge, *hugetlb;

static void set_up_plain(long mib) {
    plain = add_anonymous("anonymous", (size_t)mib * 256, true);
    write_some(plain, plain->pages / 2);
    read_only = add_anonymous("read-only", 64, false);
    for (size_t i = 0; i < 64; i++) write_page(read_only, i);
    read_only->protection = PROT_READ;
    MUST(mprotect(read_only->at, 64 * PAGE, PROT_READ));
    sealed_away = add_anonymous("PROT_NONE with contents", 64, false);
    for (size_t i = 0; i < 64; i += 2) write_page(sealed_away, i);
    sealed_away->protection = PROT_NONE;
    MUST(mprotect(sealed_away->at, 64 * PAGE, PROT_NONE));
    write_only = add_anonymous("write-only", 16, false);
    write_some(write_only, 8);
    write_only->protection = PROT_WRITE;
    MUST(mprotect(write_only->at, 16 * PAGE, PROT_WRITE));
    named = add_anonymous("named", 32, true);
    if (prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, named->at, 32 * PAGE, "cr guest: a name") != 0)
        guest_skip("anon-name", "PR_SET_VMA_ANON_NAME: %s", strerror(errno));
    struct region *grows = add("growsdown",
                               mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE,
                                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_STACK, -1, 0),
                               8, PROT_READ | PROT_WRITE, true);
    for (size_t i = 0; i < 8; i++) write_page(grows, i);
}

static void set_up_locked(void) {
    locked = add_anonymous("mlock", 32, true);
    write_some(locked, 20);
    if (mlock(locked->at, 32 * PAGE) != 0) guest_skip("mlock", "mlock: %s", strerror(errno));
    struct region *on_fault_only = add_anonymous("mlock2 on fault", 32, true);
    write_some(on_fault_only, 5);
    if (mlock2(on_fault_only->at, 32 * PAGE, MLOCK_ONFAULT) != 0) guest_skip("mlock2", "mlock2: %s", strerror(errno));
}

static void set_up_advised(void) {
    static const struct {
        int advice;
        const char *name;
    } advices[] = {{MADV_DONTFORK, "MADV_DONTFORK"},     {MADV_DONTDUMP, "MADV_DONTDUMP"},   {MADV_MERGEABLE, "MADV_MERGEABLE"},
                   {MADV_WIPEONFORK, "MADV_WIPEONFORK"}, {MADV_SEQUENTIAL, "MADV_SEQUENTIAL"}, {MADV_RANDOM, "MADV_RANDOM"},
                   {MADV_NOHUGEPAGE, "MADV_NOHUGEPAGE"}};
    for (size_t i = 0; i < ARRAY_LEN(advices); i++) {
        struct region *region = add_anonymous(advices[i].name, 16, true);
        write_some(region, 10);
        if (madvise(region->at, 16 * PAGE, advices[i].advice) != 0)
            guest_skip(advices[i].name, "madvise: %s", strerror(errno));
    }
}

/* A function that returns 42, on an executable page of its own, and one that cannot be read. */
static int (*code)(void), (*code_unreadable)(void);

static void set_up_code(void) {
    static const unsigned char returns_42[] = {0xb8, 42, 0, 0, 0, 0xc3};
    for (int i = 0; i < 2; i++) {
        char *at = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(at != MAP_FAILED, "mmap for code: %s", strerror(errno));
        memcpy(at, returns_42, sizeof returns_42);
        MUST(mprotect(at, PAGE, i == 0 ? PROT_READ | PROT_EXEC : PROT_EXEC));
        *(i == 0 ? &code : &code_unreadable) = (int (*)(void))at;
    }
}

static void check_protections(void) {
    CHECK(code() == 42 && code_unreadable() == 42, "code on its own page returns something else");
    CHECK(!faults_on_read(read_only->at) && faults_on_write(read_only->at), "the read-only region can be written");
    CHECK(faults_on_read(sealed_away->at) && faults_on_write(sealed_away->at + PAGE), "the PROT_NONE region can be read");
}

/* -- huge pages --------------------------------------------------------------------------------------------------------------- */

static void set_up_huge(void) {
    char *at = mmap(NULL, 5 * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED, "mmap for huge pages: %s", strerror(errno));
    at = (char *)(((uintptr_t)at + HUGE - 1) & ~(HUGE - 1));
    if (madvise(at, 4 * HUGE, MADV_HUGEPAGE) != 0) guest_skip("huge", "MADV_HUGEPAGE: %s", strerror(errno));
    huge = add("huge pages", at, 4 * HUGE / PAGE, PROT_READ | PROT_WRITE, true);
    for (size_t i = 0; i < huge->pages; i += 7) write_page(huge, i);
    void *pages = mmap(NULL, 2 * HUGE, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
    if (pages == MAP_FAILED) {
        guest_skip("hugetlb", "MAP_HUGETLB: %s (vm.nr_hugepages is too low)", strerror(errno));
        return;
    }
    hugetlb = add("hugetlb", pages, 2 * HUGE / PAGE, PROT_READ | PROT_WRITE, true);
    write_some(hugetlb, 50);
}

/* -- files -------------------------------------------------------------------------------------------------------------------- */

static char *private_file, *shared_file;
static int shared_fd;
#define FILE_PAGES 128
#define FILE_TAIL 1000 /* the last page of the private file holds so many bytes only */
static uint64_t shared_round = 1;

static int file_with_pattern(const char *name, uint64_t first_seed, size_t bytes) {
    char path[PATH_MAX], page[PAGE];
    int file = MUST(open(guest_path(path, name), O_CREAT | O_RDWR | O_TRUNC | O_CLOEXEC, 0644));
    for (size_t done = 0, i = 0; done < bytes; i++) {
        size_t now = bytes - done < PAGE ? bytes - done : PAGE;
        page_fill(page, first_seed + i);
        CHECK(write(file, page, now) == (ssize_t)now, "write to %s: %s", path, strerror(errno));
        done += now;
    }
    return file;
}

static void set_up_files(void) {
    char path[PATH_MAX];
    /* Private: every second page is copied on write at once, others later, some never; the tail is a partial page. */
    int file = file_with_pattern("private.bin", 1000, FILE_PAGES * PAGE + FILE_TAIL);
    private_file = mmap(NULL, (FILE_PAGES + 1) * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
    struct region *region = add("private file", private_file, FILE_PAGES, PROT_READ | PROT_WRITE, true);
    for (size_t i = 0; i < FILE_PAGES; i++) region->seed[i] = 1000 + i;
    for (size_t i = 0; i < FILE_PAGES; i += 2) write_page(region, i);
    region = add("private file, read-only, at an offset", mmap(NULL, 16 * PAGE, PROT_READ, MAP_PRIVATE, file, 8 * PAGE), 16,
                 PROT_READ, true);
    for (size_t i = 0; i < 16; i++) region->seed[i] = 1008 + i;
    close(file);

    /* Shared: the file itself is the truth, and it is not rolled back; so each step rewrites the changing half. */
    shared_fd = file_with_pattern("shared.bin", 2000, 32 * PAGE);
    shared_file = mmap(NULL, 32 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, shared_fd, 0);
    CHECK(shared_file != MAP_FAILED, "mmap of shared.bin: %s", strerror(errno));

    /* Deleted: nothing but the mappings hold it any more. */
    file = file_with_pattern("deleted.bin", 3000, 32 * PAGE);
    region = add("deleted file, shared", mmap(NULL, 32 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0), 32,
                 PROT_READ | PROT_WRITE, false);
    for (size_t i = 0; i < 32; i++) region->seed[i] = 3000 + i;
    struct region *other = add("deleted file, private", mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 24 * PAGE),
                               8, PROT_READ | PROT_WRITE, false);
    for (size_t i = 0; i < 8; i++) other->seed[i] = 3024 + i;
    for (size_t i = 0; i < 8; i += 2) write_page(other, i);
    region->pages = 24; /* a page not yet copied shows what the shared mapping writes: leave those alone */
    close(file);
    MUST(unlink(guest_path(path, "deleted.bin")));
}

static void step_shared_file(void) {
    shared_round++;
    for (size_t i = 16; i < 32; i++) page_fill(shared_file + i * PAGE, shared_round * 100 + i);
}

static void check_shared_file(void) {
    char page[PAGE];
    step_shared_file();
    for (size_t i = 0; i < 32; i++) {
        uint64_t seed = i < 16 ? 2000 + i : shared_round * 100 + i;
        CHECK(page_difference(shared_file + i * PAGE, seed) < 0, "shared file: page %zu differs in the mapping", i);
        CHECK(pread(shared_fd, page, PAGE, (off_t)(i * PAGE)) == (ssize_t)PAGE && page_difference(page, seed) < 0,
              "shared file: page %zu differs in the file: the mapping no longer writes through", i);
    }
    page_fill(page, 7);
    CHECK(pwrite(shared_fd, page, PAGE, 20 * PAGE) == (ssize_t)PAGE && page_difference(shared_file + 20 * PAGE, 7) < 0,
          "shared file: what is written to the file does not show in the mapping");
    step_shared_file();
    for (size_t i = FILE_PAGES * PAGE + FILE_TAIL; i < (FILE_PAGES + 1) * PAGE; i++)
        CHECK(private_file[i] == 0, "private file: byte %zu after the end of the file is not zero", i);
}

static struct region *alias_one, *alias_two, *memfd_closed, *memfd_written;
static int memfd_fd;

static void set_up_shared_memory(void) {
    int memfd = MUST(memfd_create("cr-guest-aliases", MFD_CLOEXEC));
    MUST(ftruncate(memfd, 64 * PAGE));
    char *one = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
    char *two = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
    alias_one = add("memfd, first alias", one, 64, PROT_READ | PROT_WRITE, true);
    alias_two = add("memfd, second alias", two, 64, PROT_READ | PROT_WRITE, true);
    alias_two->seed = alias_one->seed;
    alias_one->check_at = two; /* written through one, read through the other, both ways */
    alias_two->check_at = one;
    write_some(alias_one, 20);
    write_some(alias_two, 20);

    memfd_fd = MUST(memfd_create("cr-guest-written", 0));
    MUST(ftruncate(memfd_fd, 16 * PAGE));
    memfd_written = add("memfd written by write(2)", mmap(NULL, 16 * PAGE, PROT_READ, MAP_SHARED, memfd_fd, 0), 16, PROT_READ, true);

    int closed = MUST(memfd_create("cr-guest-closed", MFD_CLOEXEC));
    MUST(ftruncate(closed, 32 * PAGE));
    memfd_closed = add("memfd, descriptor closed", mmap(NULL, 32 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, closed, 0), 32,
                       PROT_READ | PROT_WRITE, true);
    write_some(memfd_closed, 20);
    close(closed);
    struct region *shared = add("shared anonymous",
                                mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), 64,
                                PROT_READ | PROT_WRITE, true);
    write_some(shared, 40);
}

static void step_memfd_by_write(void) {
    char content[PAGE];
    size_t page = random_below(&rng, memfd_written->pages);
    memfd_written->seed[page] = random_next(&rng) | 1;
    page_fill(content, memfd_written->seed[page]);
    CHECK(pwrite(memfd_fd, content, PAGE, (off_t)(page * PAGE)) == (ssize_t)PAGE, "write to memfd: %s", strerror(errno));
}

/* -- layout that changes ------------------------------------------------------------------------------------------------------ */

/* One mapping that grows, shrinks, moves, loses pages and is mapped anew, within two fixed slots of 512 pages each. */
#define SLOT_PAGES 512UL
static struct region *moving;
static char *slot[2];
static int slot_now;
static struct region *split, *guarded;
static bool have_guards, guard_on[32];

/* Fills a hole of a slot, so that no other mapping can settle there. */
static void reserve(char *at, size_t pages) {
    if (pages == 0) return;
    CHECK(mmap(at, pages * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0) == at,
          "mmap to reserve %zu pages at %p: %s", pages, (void *)at, strerror(errno));
}

static void set_up_changing(void) {
    for (int i = 0; i < 2; i++) {
        slot[i] = mmap(NULL, SLOT_PAGES * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        CHECK(slot[i] != MAP_FAILED, "mmap of a slot: %s", strerror(errno));
    }
    MUST(munmap(slot[0], 100 * PAGE));
    moving = add("moving", mmap(slot[0], 100 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0),
                 100, PROT_READ | PROT_WRITE, false);
    (void)take_seeds(SLOT_PAGES - 100); /* seeds are handed out downwards */
    moving->seed = seed_pool + seeds_left;
    write_some(moving, 60);
    split = add_anonymous("split by mprotect", 64, false);
    for (size_t i = 0; i < 64; i++) write_page(split, i);

    guarded = add_anonymous("with guard pages", 32, false);
    for (size_t i = 0; i < 32; i++) write_page(guarded, i);
    have_guards = madvise(guarded->at + 4 * PAGE, PAGE, MADV_GUARD_INSTALL) == 0;
    if (!have_guards) guest_skip("guard-pages", "MADV_GUARD_INSTALL: %s", strerror(errno));
    if (have_guards) guarded->seed[4] = 0, guard_on[4] = true;
}

static void map_moving_anew(void) {
    MUST(munmap(moving->at, moving->pages * PAGE));
    CHECK(mmap(moving->at, moving->pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1,
               0) == moving->at,
          "mmap anew: %s", strerror(errno));
    memset(moving->seed, 0, moving->pages * sizeof *moving->seed);
}

static void step_moving(void) {
    struct region *region = moving;
    size_t old = region->pages, new;
    switch (random_below(&rng, 6)) {
    case 0: /* grow in place */
        new = old + 1 + random_below(&rng, 40);
        if (new > SLOT_PAGES) return;
        MUST(munmap(region->at + old * PAGE, (new - old) * PAGE));
        if (mremap(region->at, old * PAGE, new * PAGE, 0) != region->at) {
            reserve(region->at + old * PAGE, new - old);
            CHECK(errno == EFAULT, "mremap to grow %zu to %zu pages: %s", old, new, strerror(errno));
            map_moving_anew(); /* it has become several mappings, which mremap does not grow */
            return;
        }
        memset(region->seed + old, 0, (new - old) * sizeof *region->seed);
        region->pages = new;
        break;
    case 1: /* shrink */
        new = old - random_below(&rng, 40 < old - 20 ? 40 : old - 20);
        if (new == old) return;
        CHECK(mremap(region->at, old * PAGE, new * PAGE, 0) == region->at, "mremap to shrink: %s", strerror(errno));
        reserve(region->at + new * PAGE, old - new);
        region->pages = new;
        break;
    case 2: /* move to the other slot */
        if (mremap(region->at, old * PAGE, old * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, slot[slot_now ^ 1]) != slot[slot_now ^ 1]) {
            CHECK(errno == EFAULT, "mremap to move: %s", strerror(errno));
            map_moving_anew(); /* several mappings are moved together by Linux 6.17 and later only, and not while they are tracked */
            return;
        }
        slot_now ^= 1;
        region->at = region->check_at = slot[slot_now];
        reserve(slot[slot_now ^ 1], old);
        break;
    case 3: { /* drop pages */
        size_t first = random_below(&rng, old), count = 1 + random_below(&rng, old - first < 16 ? old - first : 16);
        MUST(madvise(region->at + first * PAGE, count * PAGE, MADV_DONTNEED));
        memset(region->seed + first, 0, count * sizeof *region->seed);
        break;
    }
    case 4: { /* another mapping at the same addresses */
        size_t first = random_below(&rng, old), count = 1 + random_below(&rng, old - first < 16 ? old - first : 16);
        char *at = region->at + first * PAGE;
        MUST(munmap(at, count * PAGE));
        CHECK(mmap(at, count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == at,
              "mmap at the same address: %s", strerror(errno));
        memset(region->seed + first, 0, count * sizeof *region->seed);
        if (guest_steps % 2) write_page(region, first);
        break;
    }
    default: write_some(region, 8);
    }
}

/* Splits and joins: a random run of pages becomes read-only and writable again. Its protections are checked at once. */
static void step_split(void) {
    size_t first = random_below(&rng, 60), count = 1 + random_below(&rng, 64 - first < 8 ? 64 - first : 8);
    MUST(mprotect(split->at + first * PAGE, count * PAGE, PROT_READ));
    CHECK(faults_on_write(split->at + first * PAGE), "a page made read-only can be written");
    MUST(mprotect(split->at, 64 * PAGE, PROT_READ | PROT_WRITE));
    write_page(split, first);
}

static void step_guards(void) {
    if (!have_guards) return;
    size_t page = random_below(&rng, 32);
    if (page == 4) return; /* this one stays */
    if (guard_on[page]) {
        MUST(madvise(guarded->at + page * PAGE, PAGE, MADV_GUARD_REMOVE));
        guard_on[page] = false;
        write_page(guarded, page);
    } else {
        MUST(madvise(guarded->at + page * PAGE, PAGE, MADV_GUARD_INSTALL));
        guard_on[page] = true;
        guarded->seed[page] = 0;
    }
}

static void check_guards(void) {
    for (size_t page = 0; page < 32; page++) {
        CHECK(faults_on_read(guarded->at + page * PAGE) == guard_on[page], "guard page %zu: expected %s", page,
              guard_on[page] ? "a fault" : "none");
        if (guard_on[page]) MUST(madvise(guarded->at + page * PAGE, PAGE, MADV_GUARD_REMOVE));
        guard_on[page] = false;
    }
}

/* -- heap, reservation, stack ------------------------------------------------------------------------------------------------- */

static char *heap_start;
static struct region *heap, *reservation;
static size_t touched[256], touched_count;
#define RESERVED (64UL << 30)

static void set_up_heap(void) {
    heap_start = sbrk(0);
    char *aligned = (char *)(((uintptr_t)heap_start + PAGE - 1) & ~(PAGE - 1));
    MUST(brk(aligned + 256 * PAGE));
    heap = add("heap", aligned, 256, PROT_READ | PROT_WRITE, false);
    (void)take_seeds(256); /* it grows up to 512 pages */
    heap->seed = seed_pool + seeds_left;
    write_some(heap, 150);
}

static void step_heap(void) {
    size_t new = 200 + random_below(&rng, 312);
    CHECK(sbrk(0) == heap->at + heap->pages * PAGE, "the break is at %p, expected %p", sbrk(0), (void *)(heap->at + heap->pages * PAGE));
    if (new > heap->pages) memset(heap->seed + heap->pages, 0, (new - heap->pages) * sizeof *heap->seed);
    MUST(brk(heap->at + new * PAGE));
    heap->pages = new;
    write_some(heap, 10);
}

static void set_up_reservation(void) {
    reservation = add("reservation of 64 GiB",
                      mmap(NULL, RESERVED, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0), 0,
                      PROT_READ | PROT_WRITE, true);
    reservation->seed = take_seeds(ARRAY_LEN(touched));
    CHECK(mmap(NULL, RESERVED, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) != MAP_FAILED,
          "mmap of 64 GiB PROT_NONE: %s", strerror(errno));
}

static void step_reservation(void) {
    size_t index = touched_count < ARRAY_LEN(touched) && guest_steps % 4 == 0 ? touched_count++ : random_below(&rng, touched_count + 1);
    if (index == touched_count) return;
    if (!touched[index]) touched[index] = 1 + random_below(&rng, RESERVED / PAGE - 1);
    reservation->seed[index] = random_next(&rng) | 1;
    page_fill(reservation->at + touched[index] * PAGE, reservation->seed[index]);
}

static bool is_touched(size_t page, size_t but_for) {
    for (size_t i = 0; i < touched_count; i++)
        if (i != but_for && touched[i] == page) return true;
    return false;
}

static void check_reservation(void) {
    for (size_t i = 0; i < touched_count; i++) {
        if (is_touched(touched[i], i)) continue; /* drawn twice */
        CHECK(page_difference(reservation->at + touched[i] * PAGE, reservation->seed[i]) < 0, "reservation: page %zu differs", touched[i]);
        size_t below = touched[i] - 1;
        CHECK(is_touched(below, ARRAY_LEN(touched)) || page_difference(reservation->at + below * PAGE, 0) < 0,
              "reservation: page %zu, which nobody touched, is not zero", below);
    }
}

/* -- smaps -------------------------------------------------------------------------------------------------------------------- */

static bool is_fixed(uintptr_t start) {
    if ((uintptr_t)code == start || (uintptr_t)code_unreadable == start || (uintptr_t)shared_file == start) return true;
    for (size_t i = 0; i < region_count; i++)
        if (regions[i].fixed && (uintptr_t)regions[i].at == start) return true;
    return false;
}

/* A flag that is the tracker's or the accounting's, not the job's. */
static bool flag_counts(const char *flag) {
    static const char ignored[][3] = {"uw", "um", "ui", "sd", "ac"};
    for (size_t i = 0; i < ARRAY_LEN(ignored); i++)
        if (strncmp(flag, ignored[i], 2) == 0) return false;
    return true;
}

/* Writes the smaps header line and the VmFlags of each fixed mapping to `out`. */
static void layout(char *out, size_t size) {
    char *end = out + size;
    guest_read_file("/proc/self/smaps", smaps, sizeof smaps);
    bool wanted = false;
    char *save = NULL;
    *out = 0;
    for (char *line = strtok_r(smaps, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        unsigned long start, stop;
        if (sscanf(line, "%lx-%lx ", &start, &stop) == 2) {
            wanted = is_fixed(start);
            /* A deleted or memory-backed object gets a new inode number and device on restore: compare up to there. */
            char perms[5] = "", *name = strchr(line, '/');
            unsigned long offset = 0;
            sscanf(line, "%*x-%*x %4s %lx", perms, &offset);
            if (!name) name = strchr(line, '[');
            if (wanted) out += snprintf(out, (size_t)(end - out), "%lx-%lx %s %lx %s:", start, stop, perms, offset, name ? name : "");
        } else if (wanted && strncmp(line, "VmFlags:", 8) == 0) {
            for (char *flag = line + 9; flag[0] && flag[1]; flag += flag[2] ? 3 : 2)
                if (flag_counts(flag)) out += snprintf(out, (size_t)(end - out), " %.2s", flag);
            out += snprintf(out, (size_t)(end - out), "\n");
        }
    }
}

static void check_layout(void) {
    layout(text_after, sizeof text_after);
    char *save_a = NULL, *save_b = NULL;
    char *before = strtok_r(text_before, "\n", &save_a), *after = strtok_r(text_after, "\n", &save_b);
    for (; before && after; before = strtok_r(NULL, "\n", &save_a), after = strtok_r(NULL, "\n", &save_b))
        CHECK(strcmp(before, after) == 0, "smaps was  %s  and is  %s", before, after);
    CHECK(!before && !after, "smaps has %s mappings than before: %s", before ? "fewer" : "more", before ? before : after);
}

/* -- the story ---------------------------------------------------------------------------------------------------------------- */

static void step(void) {
    write_some(plain, 32);
    for (size_t i = 0; i < region_count; i++)
        if (&regions[i] != plain && &regions[i] != moving && &regions[i] != guarded && &regions[i] != reservation &&
            regions[i].protection & PROT_WRITE)
            write_some(&regions[i], 1);
    write_page(read_only, random_below(&rng, 64));
    write_page(sealed_away, random_below(&rng, 64));
    step_moving();
    step_split();
    step_guards();
    step_heap();
    step_reservation();
    step_shared_file();
    step_memfd_by_write();
}

static void check_all(void) {
    check_layout();
    check_protections();
    check_guards();
    check_reservation();
    check_shared_file();
    for (size_t i = 0; i < region_count; i++) check_region(&regions[i]);
}

/* The loop runs at the bottom of a deep stack, every frame of which holds a known page. */
static void run_below(int depth) {
    uint64_t frame[PAGE / 8];
    page_fill(frame, 5000 + (uint64_t)depth);
    __asm__ volatile("" : : "r"(frame) : "memory");
    if (depth > 0) {
        run_below(depth - 1);
    } else {
        layout(text_before, sizeof text_before);
        guest_ready();
        while (!guest_finishing()) {
            step();
            guest_step();
            guest_sleep_ms(10);
        }
        check_all();
    }
    CHECK(page_difference(frame, 5000 + (uint64_t)depth) < 0, "stack: the frame at depth %d differs", depth);
}

static volatile bool other_stops;

/* A second thread on a stack of its own, with contents there. */
static void *other_thread(void *unused) {
    uint64_t frame[PAGE / 8];
    for (uint64_t round = 1; !other_stops; round++) {
        page_fill(frame, round);
        __asm__ volatile("" : : "r"(frame) : "memory");
        guest_sleep_ms(5);
        CHECK(page_difference(frame, round) < 0, "the second thread's stack differs in round %lu", round);
    }
    return unused;
}

int main(int argc, char **argv) {
    guest_start(argc, argv);
    long mib = guest_option(argc, argv, "mib", 16);
    struct sigaction action = {.sa_handler = on_fault, .sa_flags = SA_NODEFER};
    MUST(sigaction(SIGSEGV, &action, NULL));
    MUST(sigaction(SIGBUS, &action, NULL));
    seeds_left = (size_t)mib * 256 + 16384;
    seed_pool = mmap(NULL, seeds_left * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(seed_pool != MAP_FAILED, "mmap of the seeds: %s", strerror(errno));

    pthread_t other;
    MUST0(pthread_create(&other, NULL, other_thread, NULL));
    set_up_plain(mib);
    set_up_locked();
    set_up_advised();
    set_up_code();
    set_up_huge();
    set_up_files();
    set_up_shared_memory();
    set_up_changing();
    set_up_heap();
    set_up_reservation();
    check_protections();
    run_below(200);
    other_stops = true;
    MUST0(pthread_join(other, NULL));
    guest_ok();
}
